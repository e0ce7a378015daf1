"""The secrets that sign tokens: of the settings, or of the data directory's file, where one is made at first."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import structlog

from solowire.auth.key_places import MAX_SECRETS
from solowire.errors import ConfigError
from solowire.runtime.data_directory import SECRET_FILE, make_directories, read_secret_file
from solowire.runtime.settings.system_settings import PREFIX, SECRET_CHARACTERS, Settings, trim_secret

logger = structlog.get_logger("solowire.settings")


def load_secrets(settings: Settings, *, create: bool) -> tuple[list[str], bool]:
    """The secrets in force, of which the first signs, and whether it was made just now.

    create: the caller is a process of the system, and its data directory is closed to others.
    Raises ConfigError if there is none and none may be made, or others may read it.
    """
    accepted = [secret.get_secret_value() for secret in settings.accepted_secrets]
    if settings.secret is not None:
        made, found = False, [settings.secret.get_secret_value()]
        if create and settings.data_dir.is_dir():
            make_directories(settings)
    else:
        found, made = _load_secrets_file(settings.need_data_dir() / SECRET_FILE, settings, create)
    secrets_in_force = list(dict.fromkeys([*found, *accepted]))
    if len(secrets_in_force) > MAX_SECRETS:
        raise ConfigError(f"there are {len(secrets_in_force)} secrets, {MAX_SECRETS} are the most")
    shortest = min(len(secret.encode()) for secret in secrets_in_force)
    if create and shortest < 32:
        logger.warning("secret_too_short", bytes=shortest, hint="RFC 7518 asks for 32 or more")
    return secrets_in_force, made


def load_secret(settings: Settings, *, create: bool) -> tuple[str, bool]:
    """The secret that signs, and whether it was made just now. Raises ConfigError as `load_secrets` does."""
    found, made = load_secrets(settings, create=create)
    return found[0], made


def _load_secrets_file(path: Path, settings: Settings, create: bool) -> tuple[list[str], bool]:
    try:
        if create:
            make_directories(settings)
        if create and not path.exists():
            # Written beside and linked into place, so that of two that start at once both get one whole secret.
            draft = path.with_name(f".secret-{secrets.token_hex(8)}")
            try:
                draft.touch(mode=0o600)
                draft.write_text(secrets.token_urlsafe(48) + "\n")
                os.link(draft, path)
                return _read_secrets(path), True
            except FileExistsError:
                pass
            finally:
                draft.unlink(missing_ok=True)
        return _read_secrets(path), False
    except FileNotFoundError:
        raise ConfigError(
            f"no secret: {path} doesn't exist; set {PREFIX}SECRET, or name the data directory of a running system"
        ) from None
    except OSError as error:
        raise ConfigError(f"secret file {path}: {error.strerror}") from None


def _read_secrets(path: Path) -> list[str]:
    """One a line. Raises ConfigError if one is none: an empty one would sign tokens that anyone can make."""
    try:
        text: str = trim_secret(read_secret_file(path))
        found = [line.strip() for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError:
        found = []
    if not found or any(len(secret) < SECRET_CHARACTERS for secret in found):
        raise ConfigError(
            f"secret file {path}: it must hold {SECRET_CHARACTERS} characters or more; remove it to get a new one"
        )
    return found
