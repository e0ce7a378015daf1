"""Changes of records, end to end: nsupdate at a real named, and each change is one event in the gateway's log."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from solowire.sdk.client import Client
from tests.support.bind_servers import ZONE, BindServer
from tests.support.system import System, free_ports, running
from tests.support.zones_harness import CHANGES

UPDATES = 300

TOLD = [*CHANGES, "zone_updated", "zone_created", "zone_deleted", "bulk_started", "record_changes", "bulk_completed"]


@pytest.fixture
def own_system(tmp_path: Path) -> Iterator[System]:
    with running(tmp_path / "data", shards=1) as system:
        yield system


async def list_told(system: System) -> list[tuple[str, dict[str, Any]]]:
    """All events of zones in the gateway's log, in its order."""
    token = system.token("reader")
    async with Client(system.url, token) as client:
        return [(event.type, event.data) async for event in client.history(types=TOLD)]


async def wait_for_serial(system: System, serial: int, zone: str = "z.example") -> list[tuple[str, dict[str, Any]]]:
    async with asyncio.timeout(120):
        while True:
            told = await list_told(system)
            if any(type == "zone_updated" and (d["zone"], d["serial"]) == (zone, serial) for type, d in told):
                return told
            await asyncio.sleep(0.2)


class Agent:
    """`solowire source bind9` that watches z.example, started as often as it is killed, ended with its block."""

    def __init__(self, system: System, server: BindServer, name: str, port: int, state: Path) -> None:
        self.system = system
        self.output = state.with_suffix(".log")
        self.ready = state.with_suffix(".ready")
        server.log.touch()
        options = ["--zones-of", f"127.0.0.1#{server.port}", "--zone-names", "z.example", "--server", name]
        options += ["--notify", f"127.0.0.1#{port}", "--log", str(server.log), "--data-dir", str(system.data_dir)]
        self.options = [*options, "--url", system.url, "--state-dir", str(state)]
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    async def start(self) -> None:
        """Returns when the zone is held."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self.ready.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, self.output.open("ab") as output:
            heard.bind(str(self.ready))
            heard.settimeout(60)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "solowire", "source", "bind9", *self.options],
                env=self.system.environment | {"NOTIFY_SOCKET": str(self.ready)},
                stdout=output,
                stderr=output,
                cwd=self.output.parent,
            )
            while b"READY=1" not in heard.recv(100):
                assert self.process.poll() is None, self.output.read_text()

    async def wait_until_left_out(self, serial: int) -> None:
        """Waits until it has left out steps up to a serial, as another one has told them."""
        async with asyncio.timeout(120):
            while True:
                lines = self.output.read_text().splitlines(keepends=True)
                told = [json.loads(line) for line in lines if '"zone_steps_left_out"' in line and line.endswith("\n")]
                if any(line["serial"] == serial for line in told):
                    return
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def end(self) -> None:
        """Ends it as an operator does: what it has read is told then."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0, self.output.read_text()


async def test_300_updates_are_told_in_order_and_once_whoever_dies(own_system: System, tmp_path: Path) -> None:
    """The agent is killed three times in the middle, and the gateway is restarted; authors are told."""
    system = own_system
    port = free_ports(1)
    with ExitStack() as stack:
        server = stack.enter_context(BindServer(tmp_path / "ns", zones={"z.example": ZONE}, notify=[port]))
        agent = stack.enter_context(Agent(system, server, "ns1", port, tmp_path / "state"))
        await agent.start()
        server.update("add first.z.example 60 A 192.0.2.1")
        await wait_for_serial(system, 2)
        made = threading.Semaphore(0)

        def make_updates() -> None:
            for number in range(UPDATES):
                commands = [f"add n{number % 7}.z.example 60 TXT {number}"]
                if number >= 7:
                    commands.append(f"delete n{number % 7}.z.example TXT {number - 7}")
                server.update(*commands, key="deploy")
                made.release()

        updates = asyncio.create_task(asyncio.to_thread(make_updates))
        for count, what in ((50, "kill"), (60, "restart"), (40, "kill"), (30, "kill")):
            for _ in range(count):
                await asyncio.to_thread(made.acquire)
            if what == "kill":
                agent.kill()
                for _ in range(10):
                    await asyncio.to_thread(made.acquire)
                await agent.start()
            else:
                await asyncio.to_thread(system.stop)
                await asyncio.to_thread(system.start)
        await updates
        told = await wait_for_serial(system, UPDATES + 2)
        agent.end()
    changes = [(type, data) for type, data in told if type in CHANGES and data["name"] != "first.z.example"]
    for number, (type, data) in enumerate(changes):
        before = data.get("before", {}).get("records")
        assert (type, data["serial"], data["name"], before, data["after"]["records"]) == (
            "record_updated" if number >= 7 else "record_created",
            number + 3,
            f"n{number % 7}.z.example",
            [f'"{number - 7}"'] if number >= 7 else None,
            [f'"{number}"'],
        )
    assert len(changes) == UPDATES
    summaries = [data["serial"] for type, data in told if type == "zone_updated"]
    assert summaries == list(range(2, UPDATES + 3))
    known = [data.get("tsig_key") for _, data in changes]
    assert set(known) <= {"deploy", None}
    assert known.count("deploy") > UPDATES * 2 // 3  # a kill may lose the lines of the last moments


async def test_a_primary_and_its_secondary_tell_one_change_once(own_system: System, tmp_path: Path) -> None:
    """Two agents, two servers, one log: steps, and pages of many changes."""
    ports = free_ports(5)
    with BindServer(tmp_path / "one", zones={"z.example": ZONE}, notify=[ports, ports + 2]) as primary:
        more = f'zone "z.example" {{ type secondary; primaries {{ 127.0.0.1 port {primary.port}; }}; file "z.db"; }};'
        second = BindServer(tmp_path / "two", notify=[ports + 1], more=more)
        second.port = ports + 2
        with (
            second,
            Agent(own_system, primary, "ns1", ports, tmp_path / "s1") as here,
            Agent(own_system, second, "ns2", ports + 1, tmp_path / "s2") as there,
        ):
            await here.start()
            await there.start()
            primary.update("add first.z.example 60 A 192.0.2.1")
            await wait_for_serial(own_system, 2)
            for number in range(20):
                primary.update(f"add n{number}.z.example 60 A 192.0.2.1")
            primary.update(*[f"add m{number}.z.example 60 A 192.0.2.1" for number in range(700)])
            primary.update("delete first.z.example")
            serial = primary.serial("z.example")
            assert serial == 24
            await wait_for_serial(own_system, serial)
            here.end()
            primary.update("add last.z.example 60 A 192.0.2.1")  # which the other one alone can tell, after all before
            serial += 1
            await wait_for_serial(own_system, serial)
            there.end()
            told = await list_told(own_system)
    serials = [data["serial"] for type, data in told if type == "zone_updated"]
    assert serials == list(range(2, serial + 1))
    assert len([1 for type, data in told if type in CHANGES]) == 23
    pages = [data for type, data in told if type == "record_changes"]
    assert [page["page"] for page in pages] == list(range(1, pages[0]["pages"] + 1))
    assert sum(len(page["changes"]) for page in pages) == 700
    assert [type for type, _ in told].count("bulk_started") == 1
    assert [type for type, _ in told].count("bulk_completed") == 1


async def test_a_whole_zone_and_single_steps_are_one_change_whoever_comes_first(
    own_system: System, tmp_path: Path
) -> None:
    """The secondary is sent whole zones that skip serials, and its primary's agent sees each step.

    First the steps are told and then the zone, then the zone and, by an agent that was away, the steps.
    """
    ports = free_ports(5)
    with BindServer(tmp_path / "one", zones={"z.example": ZONE}, notify=[ports, ports + 2]) as primary:
        more = (
            f'zone "z.example" {{ type secondary; primaries {{ 127.0.0.1 port {primary.port}; }}; file "z.db"; '
            "request-ixfr no; };"
        )
        second = BindServer(tmp_path / "two", notify=[ports + 1], more=more)
        second.port = ports + 2

        async def skip_serials(letter: str, upto: int) -> None:
            """Makes changes of which the secondary is sent the last state alone."""
            second.stop()
            for number in range(4):
                primary.update(f"add {letter}{number}.z.example 60 A 192.0.2.1")
            primary.update(f"delete {letter}0.z.example")
            assert primary.serial("z.example") == upto
            if here.is_running:
                await wait_for_serial(own_system, upto)
            second.start()
            second.rndc("retransfer", "z.example")

        with (
            second,
            Agent(own_system, primary, "ns1", ports, tmp_path / "s1") as here,
            Agent(own_system, second, "ns2", ports + 1, tmp_path / "s2") as there,
        ):
            await here.start()
            await there.start()
            primary.update("add first.z.example 60 A 192.0.2.1")
            await wait_for_serial(own_system, 2)
            await skip_serials("a", 7)
            await there.wait_until_left_out(7)
            here.kill()
            await skip_serials("b", 12)
            await wait_for_serial(own_system, 12)
            await here.start()
            await here.wait_until_left_out(12)
            primary.update("add last.z.example 60 A 192.0.2.1")  # a step that both see
            await wait_for_serial(own_system, 13)
            here.end()
            there.end()
            told = await list_told(own_system)
    steps = [(data["serial_before"], data["serial"], data["transfer"]) for type, data in told if type == "zone_updated"]
    assert steps == [(n, n + 1, "ixfr") for n in range(1, 7)] + [(7, 12, "axfr"), (12, 13, steps[-1][2])]
    assert [(type, data["name"]) for type, data in told if type in CHANGES] == [
        ("record_created", "first.z.example"),
        *[("record_created", f"a{number}.z.example") for number in range(4)],
        ("record_deleted", "a0.z.example"),
        *[("record_created", f"b{number}.z.example") for number in range(1, 4)],
        ("record_created", "last.z.example"),
    ]
