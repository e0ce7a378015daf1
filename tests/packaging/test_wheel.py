"""What a user gets who installs Solowire: one importable name, and the SDK without the servers."""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

import pytest

import solowire
from tests.support.wheel import ROOT, run

SDK_IMPORTS = f"from solowire import {', '.join(solowire.__all__)}"


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment with the wheel and what the SDK needs, beside packages of the user's own."""
    place = tmp_path_factory.mktemp("light")
    assert run(sys.executable, "-m", "venv", place).returncode == 0
    site = next(place.glob("lib/python*/site-packages"))
    for name in ("gateway", "router"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"mine = {name!r}\n")
    done = run(place / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    assert done.returncode == 0, done.stderr
    return place


def test_the_wheel_has_one_name(wheel: Path) -> None:
    """Whatever else is installed beside it is not overwritten."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"solowire"}
    modules = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert {"solowire/router/server.py", "solowire/gateway/server.py", "solowire/workers/net/frames.py"} <= modules
    assert "solowire/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_the_light_install_is_the_sdk(light: Path) -> None:
    """It imports without the servers' libraries, and harms no package of the user's own."""
    packages = run(light / "bin" / "pip", "list", "--format", "freeze").stdout.lower()
    assert not any(f"{name}==" in packages for name in ("pyzmq", "granian", "uvloop", "pydantic", "litestar"))
    code = f"{SDK_IMPORTS}\nimport gateway, router; print(gateway.mine)"
    done = run(light / "bin" / "python", "-W", "error", "-c", code, cwd=light)
    assert (done.stdout, done.stderr) == ("gateway\n", "")


def test_the_command_says_what_it_lacks(light: Path) -> None:
    """Whoever has only the SDK is told how to get the rest, and sees no traceback."""
    done = run(light / "bin" / "solowire", "up")
    assert done.returncode == 1
    assert done.stderr == (
        "solowire: only the SDK is installed; the command comes with: pip install 'solowire[server]'\n"
    )


def test_public_names_are_typed() -> None:
    """What is imported when it is asked for is what a type checker sees."""
    tree = ast.parse((ROOT / "solowire/__init__.py").read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("solowire.")
        for alias in node.names
    }
    assert seen == set(solowire.__all__)
    assert all(getattr(solowire, name) for name in solowire.__all__)
    with pytest.raises(AttributeError, match="Clinet"):
        solowire.__getattr__("Clinet")
