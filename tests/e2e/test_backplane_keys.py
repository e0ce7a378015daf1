"""Keys of the backplane, as an operator meets them: none, wrong ones, and those that `solowire keys` makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.system import System, end, free_ports, ready, run, whole_lines

SECRET = "a secret of all processes, with 32 bytes"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("router",), "SOLOWIRE_CURVE__SECRET_KEY and SOLOWIRE_CURVE__MEMBER_KEYS"),
        (("shard", "--index", "0"), "SOLOWIRE_CURVE__SECRET_KEY and SOLOWIRE_CURVE__ROUTER_KEY"),
        (("gateway",), "SOLOWIRE_CURVE__SECRET_KEY and SOLOWIRE_CURVE__ROUTER_KEY"),
    ],
)
def test_without_keys_nothing_starts(command: tuple[str, ...], missing: str, tmp_path: Path) -> None:
    """A tcp backplane without keys is one line with what is missing, status 2, and no file."""
    done = run(*command, "--data-dir", "data", cwd=tmp_path, settings={"BACKPLANE": "tcp://127.0.0.1:7400"})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("solowire: SOLOWIRE_BACKPLANE: a tcp backplane needs keys; set " + missing)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_nobody_has_given_an_index(tmp_path: Path) -> None:
    """The option and the variable are named, since a pod has the variable."""
    done = run("shard", cwd=tmp_path)
    assert (done.returncode, "--index" in done.stderr, "SOLOWIRE_SHARD_INDEX" in done.stderr) == (2, True, True)


def test_keys_that_fit_and_keys_that_do_not(tmp_path: Path) -> None:
    """A system with the files of `solowire keys` serves; a gateway with others finds no router, and says why."""
    for name in ("ours", "others"):
        assert run("keys", "--out", name, cwd=tmp_path).returncode == 0
    port = free_ports(4)

    def start(name: str, *command: str, **settings: object) -> System:
        system = System(tmp_path / name)
        system.environment |= {
            "SOLOWIRE_BACKPLANE": f"tcp://127.0.0.1:{port}",
            "SOLOWIRE_SECRET": SECRET,
            "SOLOWIRE_ROUTER__METRICS_PORT": "0",
            **{f"SOLOWIRE_CURVE__{key}_FILE": str(tmp_path / str(file)) for key, file in settings.items()},
        }
        system.process = system.spawn(*command)
        return system

    member = {"SECRET_KEY": "ours/member.key", "ROUTER_KEY": "ours/router.pub"}
    started = [
        start("router", "router", SECRET_KEY="ours/router.key", MEMBER_KEYS="ours/member.pub"),
        start("shard", "shard", "--index", "0", "--port", str(port + 1), **member),
        start("gateway", "gateway", "--port", str(port + 2), **member),
    ]
    other = {"SECRET_KEY": "others/member.key", "ROUTER_KEY": "ours/router.pub"}
    started.append(start("stranger", "gateway", "--port", str(port + 3), **other))
    try:
        started[2].wait_until(lambda: ready(f"http://127.0.0.1:{port + 2}"), "the gateway is ready")
        unreachable = '"reason": "the router doesn\'t know this process\'s key"'
        started[3].wait_until(lambda: any(unreachable in line for line in started[3].said()), "the other says why")
        assert not ready(f"http://127.0.0.1:{port + 3}")
        public = (tmp_path / "others/member.pub").read_text().strip()
        assert any("backplane_key_rejected" in line and public in line for line in started[0].said())
    finally:
        for system in reversed(started):
            assert system.process is not None
            end(system.process)
    for secret in ("ours/router.key", "ours/member.key", "others/member.key"):
        text = (tmp_path / secret).read_text().strip()
        assert not any(text in "\n".join(whole_lines(system.output)) for system in started)
