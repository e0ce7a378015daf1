"""The data directory is its owner's alone: the secret, the log and the sockets in it are worth as much as the system.

What it keeps true: no process runs on a data directory, or with a secret, that others may read. What was made open, as
by an older version, is closed and said so; but only a directory that is surely ours: to close one that holds somebody
else's files too, such as /tmp, could stop the whole machine. What can't be closed is refused with the way out.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from solowire.errors import ConfigError
from solowire.runtime.settings.system_settings import Settings

_OTHERS = 0o077
JOURNAL_FILE = "journal.sqlite3"
SECRET_FILE = "secret"  # noqa: S105 - its name
_OURS = frozenset([SECRET_FILE, "run", "router.lock", JOURNAL_FILE, "audit", "sources"])
"""What makes a directory a data directory."""
TOKEN_FILE = "administrator.token"  # noqa: S105

logger = structlog.get_logger("solowire.settings")


def make_private(path: Path) -> None:
    """Makes a directory with mode 0700, and those above it as usual; one that is there stays so. Raises OSError."""
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)


def make_run_directory(path: Path) -> None:
    """Makes the sockets' directory again, and the data directory above it if that is gone, too. Raises OSError."""
    make_private(path.parent)
    make_private(path)


def close_directory(path: Path) -> None:
    """Closes an existing data directory to others. Raises ConfigError if it can't be, or had better not be; OSError."""
    found = path.stat()
    if not found.st_mode & _OTHERS:
        return
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    fault = f"data directory {path}: others may enter it (mode {mode})"
    names = {entry.name for entry in path.iterdir()}
    if found.st_mode & stat.S_ISVTX or (names and not names & _OURS):
        raise ConfigError(f"{fault}, and it is not Solowire's alone; name another one, such as {path / 'solowire'}")
    try:
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"{fault}, and it can't be closed: {error.strerror}; name another one, such as {path / 'solowire'}"
        ) from None
    logger.warning("data_directory_permissions_fixed", path=str(path), mode=mode, hint="it is closed to others now")


def read_secret_file(path: Path) -> str:
    """The text of a file that only its owner may read; it is closed if others may. Raises ConfigError, OSError."""
    with path.open() as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & _OTHERS:
            try:
                os.fchmod(file.fileno(), 0o600)
            except OSError as error:
                raise ConfigError(
                    f"secret file {path}: others may use it (mode {mode:04o}), and it can't be closed: "
                    f"{error.strerror}; make it 0600, or set SOLOWIRE_SECRET"
                ) from None
            hint = "it is closed to others now; remove it to get a new one, if anybody may have read it"
            logger.warning("secret_permissions_fixed", path=str(path), mode=f"{mode:04o}", hint=hint)
        return file.read()


def write_private(path: Path, text: str) -> None:
    """A whole file that only its owner may read, in place of the one that is there. Raises OSError."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise


def give_to_owner(path: Path) -> None:
    """Gives what root has made in a directory of another user's to that user, whose service could not use it else.

    Raises OSError.
    """
    owner = path.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            entry = os.path.join(directory, name)
            if os.lstat(entry).st_uid == 0:
                os.lchown(entry, owner.st_uid, owner.st_gid)


def make_data_directory(settings: Settings) -> Path:
    """Makes the data directory, if it isn't there, for its owner alone. Raises ConfigError."""
    directory = settings.need_data_dir()
    try:
        make_private(directory)
    except OSError as error:
        raise ConfigError(f"data directory {directory}: {error.strerror}; choose another with --data-dir") from None
    return directory


def make_directories(settings: Settings) -> None:
    """Makes the data directory and the sockets' directory, closed to others. Raises ConfigError."""
    try:
        make_private(settings.need_data_dir())
        close_directory(settings.data_dir)
        settings.run_dir.mkdir(exist_ok=True, mode=0o700)
        settings.run_dir.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"data directory {settings.data_dir}: {error.strerror}; choose another with --data-dir"
        ) from None
