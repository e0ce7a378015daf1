"""The files that a log was rotated to, in the order in which they were written.

Named's own rotation, logrotate and their like put something behind the log's name, or before its extension: a number
that grows with age (`queries.log.0`, `.1`), or a time (`queries.log-20261123`, `queries-20261123.log`). All of them are
told apart from the log by that, and put in order by it; by the time of their last write where it says nothing. Where
the log is a link to a file of the day, those of other days have the same name but for the digits of the time in it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

_COMPRESSED = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".lzma", ".Z")
_TIME = re.compile(r"\d{4}\D?\d\d", re.ASCII)  # a year and a month, in a name
_NUMBER = re.compile(r"\d{1,6}", re.ASCII)
_ATTEMPTS = 5


class RotatedFile(NamedTuple):
    """A file beside the log, as it was when it was looked at. suffix: what sets its name apart from the log's."""

    path: Path
    suffix: str
    device: int
    inode: int
    size: int
    modified_ns: int

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode


def find_rotated(log: Path) -> list[RotatedFile]:
    """The log's rotated files, the oldest first; not those that are compressed. Raises OSError.

    If the log is a symbolic link, the files beside the link and beside what it names.
    """
    for _ in range(_ATTEMPTS):  # until no rotation comes in between: a directory is not read in one moment
        found = _scan_directory(log)
        if [(file.path, file.identity) for file in found] == [
            (file.path, file.identity) for file in _scan_directory(log)
        ]:
            break
    return order_rotated(found)


def order_rotated(files: list[RotatedFile]) -> list[RotatedFile]:
    """The oldest first: by number, by the time in the name, or by the last write if the names are of several kinds."""
    suffixes = [file.suffix.strip(".-_") for file in files]
    if all(_NUMBER.fullmatch(suffix) for suffix in suffixes):
        return sorted(files, key=lambda file: -int(file.suffix.strip(".-_")))
    if all(len(suffix) >= 8 and suffix[:8].isdecimal() for suffix in suffixes):
        return sorted(files, key=lambda file: file.suffix)
    return sorted(files, key=lambda file: file.modified_ns)


def _scan_directory(log: Path) -> list[RotatedFile]:
    found = {}
    target = Path(os.path.realpath(log))
    dated = _make_pattern(target.name) if log.is_symlink() else None
    for beside in dict.fromkeys((log.absolute(), target)):
        try:
            with os.scandir(beside.parent) as entries:
                for entry in entries:
                    suffix = _suffix(entry.name, beside)
                    if suffix is None and dated is not None and beside is target and dated.fullmatch(entry.name):
                        suffix = "".join(filter(str.isdecimal, entry.name))
                    if suffix is None or entry.path in (str(log.absolute()), str(target)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # renamed meanwhile, which the next look sees
                    if stat.S_ISREG(status.st_mode):
                        found[entry.path] = RotatedFile(
                            Path(entry.path),
                            suffix,
                            status.st_dev,
                            status.st_ino,
                            status.st_size,
                            status.st_mtime_ns,
                        )
        except FileNotFoundError:
            continue
    return sorted(found.values())


def _make_pattern(name: str) -> re.Pattern[str] | None:
    """The names that differ from this one in the digits of its time alone; None if there is no time in it."""
    if not _TIME.search(name):
        return None
    return re.compile(re.sub(r"\d", r"\\d", re.escape(name), flags=re.ASCII), re.ASCII)


def _suffix(name: str, log: Path) -> str | None:
    """What sets a rotated file's name apart from the log's; None if it is none."""
    if name.endswith(_COMPRESSED):
        return None
    if name.startswith(log.name) and len(name) > len(log.name) and name[len(log.name)] in ".-_":
        return name[len(log.name) :]
    if log.suffix and name.endswith(log.suffix) and name.startswith(log.stem):
        middle = name[len(log.stem) : -len(log.suffix)]
        if middle[:1] in (".", "-", "_") and middle[1:2].isdecimal():
            return middle
    return None
