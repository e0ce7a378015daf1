"""A small file that is replaced whole: written beside, fsynced, renamed. So there is always one, the old or the new."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file, readable by its owner alone; it is on disk when this returns. The directory has to be there.

    Raises OSError, and then the old one is still there.
    """
    draft = path.with_suffix(".new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(data)
        os.fsync(file)
    finally:
        os.close(file)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
