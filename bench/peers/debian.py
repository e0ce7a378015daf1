"""Programs from Debian's packages."""

from __future__ import annotations

import shutil
import subprocess

from bench.report import ROOT

_PLACES = "/usr/sbin:/usr/bin:/usr/local/bin"


def installed(program: str, *packages: str) -> str:
    """The path of a program, '' if it is missing. packages: are installed first, if we may."""
    if packages:
        subprocess.run([ROOT / ".ci" / "system-packages", *packages], capture_output=True)
    return shutil.which(program, path=_PLACES) or ""
