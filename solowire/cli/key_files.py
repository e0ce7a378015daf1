"""The files that `solowire keys` writes: two pairs of CURVE keys, the secret ones for their owner alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from solowire.backplane.curve_keys import make_pair
from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_private, write_private

_NAMES = ("router", "member")


def write_keys(directory: Path) -> list[str]:
    """Writes both pairs, none if one of the files is there; what is to be said of them. Raises ConfigError."""
    paths = [directory / f"{name}.{kind}" for name in _NAMES for kind in ("key", "pub")]
    for path in paths:
        if path.exists():
            raise ConfigError(f"--out {directory}: {path.name} is there, and would be lost; name another directory")
    pairs = {name: make_pair() for name in _NAMES}
    try:
        make_private(directory)
        for name, (public, secret) in pairs.items():
            write_private(directory / f"{name}.key", secret + "\n")
            (directory / f"{name}.pub").write_text(public + "\n")
    except OSError as error:
        for path in paths:
            with suppress(OSError):
                path.unlink()
        raise ConfigError(f"--out {directory}: {error.strerror}") from None
    at = directory.absolute()
    return [
        "The router gets",
        f"  SOLOWIRE_CURVE__SECRET_KEY_FILE={at}/router.key",
        f"  SOLOWIRE_CURVE__MEMBER_KEYS_FILE={at}/member.pub",
        "shards and gateways get",
        f"  SOLOWIRE_CURVE__SECRET_KEY_FILE={at}/member.key",
        f"  SOLOWIRE_CURVE__ROUTER_KEY_FILE={at}/router.pub",
    ]
