"""The wheel that users install, built from the sources as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)


def build_wheel(folder: Path) -> Path:
    """Builds it in `folder`; its file."""
    tracked = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, tracked):  # a copy, since building leaves its own files beside the sources
        source, target = ROOT / name, folder / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, folder / "tree")
    assert done.returncode == 0, done.stderr
    [made] = folder.glob("*.whl")
    return made
