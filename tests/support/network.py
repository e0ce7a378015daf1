"""A network of hosts on this machine: network namespaces on one switch, each with addresses of its own (ip-netns(8)).

Needs root. A test that uses it moves into one of them (`Network.enter`), so that nothing of this machine's own network
is touched, and two tests at a time don't meet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_NAMES = Path("/etc/netns")
"""What stands here for a namespace is mounted over /etc in it."""


def can_make() -> bool:
    """Whether namespaces can be made here."""
    name = f"sw{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):  # there is no `ip`, or no right to it
        return False
    _ip("netns", "del", name)
    return True


class Network:
    """Hosts by their names, each with 10.77.0.N and fd77::N; N counts from 1."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts
        self._prefix = f"sw{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for number, host in enumerate(hosts, 1):
            name, port = self._name(host), f"port{number}"
            _ip("netns", "add", name)
            _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "address", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
            _ip("-n", name, "link", "set", "eth0", "up")
        self.name_addresses({})

    def close(self) -> None:
        for host in self._hosts:
            _ip("netns", "del", self._name(host))
            shutil.rmtree(_NAMES / self._name(host), ignore_errors=True)
        _ip("netns", "del", self._switch)

    def address(self, host: str) -> str:
        return f"10.77.0.{self._hosts.index(host) + 1}"

    def ipv6_address(self, host: str) -> str:
        return f"fd77::{self._hosts.index(host) + 1}"

    def name_addresses(self, addresses: Mapping[str, str]) -> None:
        """What names mean on all hosts from now on: name → address."""
        text = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
        for host in self._hosts:
            file = _NAMES / self._name(host) / "hosts"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)  # in place: it is mounted where a process runs

    def part(self, one: str, other: str) -> None:
        """Nothing passes between the two any more, and nobody is told so."""
        self._change_routes("add", one, other)

    def join(self, one: str, other: str) -> None:
        """What `part` has parted is joined."""
        self._change_routes("del", one, other)

    def command(self, host: str, *arguments: str) -> list[str]:
        """What runs a command on a host, as the process that is started."""
        return ["ip", "netns", "exec", self._name(host), *arguments]

    @contextlib.contextmanager
    def enter(self, host: str) -> Iterator[None]:
        """This thread is on that host: sockets that it makes are, and stay so."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self._name(host)}") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def _change_routes(self, deed: str, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            _ip("-n", self._name(here), "route", deed, "blackhole", f"{self.address(there)}/32")
            _ip("-n", self._name(here), "-6", "route", deed, "blackhole", f"{self.ipv6_address(there)}/128")

    def _name(self, host: str) -> str:
        return f"{self._prefix}-{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _set_namespace(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
