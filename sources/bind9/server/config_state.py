"""The configuration that named had last, on disk: so that a change made while the source was away is told."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec
import structlog

from solowire.sources.files.state_file import replace_file

STATE_BYTES = 8 * 2**20
"""A larger configuration is not kept."""

logger = structlog.get_logger()


class ConfigState(msgspec.Struct, kw_only=True):
    """What is kept. key: of the tags that stand for secrets, in hexadecimal. text: canonical, without secrets."""

    format: int = 1
    key: str
    text: str | None = None


class ConfigStateFile:
    """The state of one configuration."""

    def __init__(self, state_dir: Path, conf: Path) -> None:
        name = hashlib.blake2b(os.fsencode(conf.absolute()), digest_size=8).hexdigest()
        self.path = state_dir / f"{conf.name}-{name}.json"

    def load(self) -> ConfigState:
        """What was kept; a new one if nothing was, or it is damaged. Raises OSError."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=ConfigState)
        except FileNotFoundError:
            pass
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("config_state_damaged", path=str(self.path), reason=str(error), hint="it is made anew")
        return ConfigState(key=secrets.token_hex(16))

    def save(self, state: ConfigState) -> None:
        """Keeps it. Raises OSError."""
        if state.text is not None and len(state.text) > STATE_BYTES:
            state = ConfigState(key=state.key)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.path, msgspec.json.encode(state))
