"""A warning for whoever runs the system as root, and for nobody in a container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.cli.main import cli
from solowire.runtime.privileges import warn_of_root
from solowire.runtime.terminal import PARENT

HOST = {
    "proc/1/cgroup": "0::/init.scope\n",
    "proc/self/cgroup": "0::/user.slice/user-0.slice/session-1.scope\n",
    "proc/self/mountinfo": "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "90 29 0:50 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=/x\n",
}


def warnings(place: Path, uid: Any = 0, environment: Any = None, **files: str) -> list[str]:
    """The names of what is logged on a machine with these files."""
    for name, text in {**HOST, **files}.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with capture_logs() as lines:
        warn_of_root(environment or {}, uid, place)
    return [line["event"] for line in lines]


def test_root_on_a_machine_is_warned_once(tmp_path: Path) -> None:
    """One line, with the way out; a machine on which containers run is none itself."""
    assert warnings(tmp_path) == ["running_as_root"]


def test_a_machine_that_tells_nothing_is_no_container(tmp_path: Path) -> None:
    """Without /proc the warning is the safer side."""
    with capture_logs() as lines:
        warn_of_root({}, 0, tmp_path / "nowhere")
    assert len(lines) == 1


def test_nobody_else_is_warned(tmp_path: Path) -> None:
    """A user of its own is right, and what `up` has said its children don't repeat."""
    assert warnings(tmp_path, uid=1000) == []
    assert warnings(tmp_path, environment={PARENT: "1"}) == []


@pytest.mark.parametrize("name", [".dockerenv", "run/.containerenv", "run/systemd/container"])
def test_a_runtimes_file_says_that_it_is_a_container(tmp_path: Path, name: str) -> None:
    """Docker, Podman and systemd leave a file in each container."""
    assert warnings(tmp_path, **{name: ""}) == []


@pytest.mark.parametrize("environment", [{"container": "podman"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
def test_a_variable_says_that_it_is_a_container(tmp_path: Path, environment: dict[str, str]) -> None:
    """So do systemd-nspawn, Podman and Kubernetes."""
    assert warnings(tmp_path, environment=environment) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/1/cgroup", "12:pids:/docker/0123456789abcdef\n"),
        ("proc/self/cgroup", "0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-0123.scope\n"),
        ("proc/1/cgroup", "0::/machine.slice/libpod-0123.scope\n"),
        ("proc/self/mountinfo", "500 400 0:60 / / rw,relatime - overlay overlay rw,lowerdir=/x\n"),
    ],
)
def test_the_kernel_says_that_it_is_a_container(tmp_path: Path, name: str, text: str) -> None:
    """Control groups carry the runtime's name, unless they are hidden; the root's layers are not."""
    assert warnings(tmp_path, **{name: text}) == []


@pytest.mark.parametrize("command", [["router"], ["gateway"], ["shard", "--index", "0"]], ids=lambda c: c[0])
@pytest.mark.parametrize("parent", [None, "1"])
def test_each_process_that_is_started_alone_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], parent: str | None
) -> None:
    """A process of `up` says nothing: `up` has."""
    began = []
    for name in ("solowire.router.server.serve", "solowire.gateway.server.serve", "solowire.workers.server.serve"):
        monkeypatch.setattr(name, lambda *settings: began.append(settings))
    monkeypatch.setattr("solowire.cli.main.logs.configure", lambda *_, **__: None)
    monkeypatch.setattr("solowire.runtime.privileges.is_container", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if parent is not None:
        monkeypatch.setenv(PARENT, parent)
    with capture_logs() as lines:
        cli.main([*command, "--data-dir", str(tmp_path)], standalone_mode=False)
    assert len(began) == 1
    assert [line["event"] for line in lines] == (["running_as_root"] if parent is None else [])
