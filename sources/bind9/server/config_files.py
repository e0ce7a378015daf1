"""The files of a configuration, and BIND's own reading of them.

`named-checkconf` runs as a process of its own, for CHECK_S at most, and its output is bounded: the loop never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from solowire.errors import ConfigError
from solowire.sources.bind9.server.config_text import find_references
from solowire.sources.files.held_file import check_kind

FILES = 256
FILES_BYTES = 32 * 2**20
"""Of all files together that are read for what they include and their secrets."""
OUTPUT_BYTES = 64 * 2**20
CHECK_S = 30.0
_PROGRAM = "named-checkconf"
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_MESSAGE = re.compile(r"[^\t{}]+:\d+: ")

Signature = tuple[int, int, int, int] | str
"""Of one file: device, inode, size, time of the last write; or why it can't be read."""


class ConfigFiles(msgspec.Struct, frozen=True):
    """The files of a configuration, as they were. secrets: all that stand in them."""

    signatures: dict[Path, Signature]
    secrets: frozenset[str]
    trouble: OSError | None = None


class CheckResult(msgspec.Struct, frozen=True):
    """What `named-checkconf` says.

    messages: its warnings and errors. output: the canonical text. is_valid: it found no fault. problem: why it says
    nothing.
    """

    messages: list[str]
    output: str
    is_valid: bool
    problem: str | None = None


def read_config_files(path: Path) -> ConfigFiles:
    """Reads the files of the configuration at `path`, which is absolute, and all that they include, FILES at most."""
    signatures: dict[Path, Signature] = {}
    secrets: set[str] = set()
    trouble: OSError | None = None
    directory = path.parent
    waiting = [path]
    room = FILES_BYTES
    while waiting and len(signatures) < FILES:
        file = waiting.pop(0)
        if file in signatures:
            continue
        signatures[file] = sign_file(file)
        try:
            data = _read_file(file, room)
        except OSError as error:
            trouble = trouble or error
            continue
        room -= len(data)
        found = find_references(data.decode("utf-8", "replace"))
        secrets.update(found.secrets)
        if found.directory is not None:
            directory = Path(directory, found.directory)
        for name in found.includes:
            if "\0" in name:  # of a damaged file: no path
                continue
            wanted = str(Path(directory, name))
            waiting += [Path(one) for one in sorted(glob.glob(wanted))] or [Path(wanted)]
    return ConfigFiles(signatures, frozenset(secrets), trouble)


def _read_file(path: Path, size: int) -> bytes:
    """So much of a file. Raises OSError, also for what is no file: a pipe would keep its reader waiting."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(file, "rb") as opened:
        check_kind(path, os.fstat(file))
        return opened.read(size)


def sign_file(path: Path) -> Signature:
    """What tells a file from what it was."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror or "unknown"
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def list_changed(signatures: Mapping[Path, Signature]) -> list[Path]:
    """The files that are not what they were."""
    return [path for path, signature in signatures.items() if sign_file(path) != signature]


def find_checker() -> str:
    """Where `named-checkconf` is. Raises ConfigError."""
    found = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path=_PLACES)
    if found is None:
        raise ConfigError(f"{_PROGRAM} is needed to read named's configuration: apt-get install bind9-utils")
    return found


async def check_config(checker: str, path: Path, *options: str) -> CheckResult:
    """Has BIND read the configuration. path: absolute. options: of `named-checkconf`."""
    process = await asyncio.create_subprocess_exec(
        checker,
        *options,
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=path.parent,
    )
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    output = bytearray()
    try:
        async with asyncio.timeout(CHECK_S):
            while data := await process.stdout.read(2**16):
                output += data
                if len(output) > OUTPUT_BYTES:
                    return CheckResult([], "", False, f"the configuration has more than {OUTPUT_BYTES >> 20} MiB")
            await process.wait()
    except TimeoutError:
        return CheckResult([], "", False, f"{_PROGRAM} took more than {CHECK_S:g} seconds")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    messages, text = _split_messages(output.decode("utf-8", "replace"))
    return CheckResult(messages, text, process.returncode == 0)


def _split_messages(output: str) -> tuple[list[str], str]:
    """Messages come first, and name file and line; both go to standard output."""
    lines = output.split("\n")
    count = next((index for index, line in enumerate(lines) if _MESSAGE.match(line) is None), len(lines))
    return lines[:count], "\n".join(lines[count:])
