"""Programs built from the Go module proxy, each once, into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.machine import LeftOut

BUILD_TIMEOUT_S = 1500.0
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solowire-bench"


def place(program: str, version: str) -> Path:
    """Where `build` puts it."""
    return _CACHE / f"{program}-{version}"


def build(program: str, module: str, version: str) -> None:
    """The module's main package, whose last part but for a major version is the program. Raises LeftOut."""
    if place(program, version).exists():
        return
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not go:
        raise LeftOut("there is no Go to build it with")
    _CACHE.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["nice", "-n", "19", go, "install", f"{module}@{version}"],
            env={**os.environ, "GOBIN": str(_CACHE), "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise LeftOut(f"go install took longer than {BUILD_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise LeftOut(f"go install: {(done.stderr.strip() or 'no reason').splitlines()[-1]}")
    (_CACHE / program).replace(place(program, version))
