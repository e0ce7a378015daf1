"""The keys of a process on a backplane over TCP, out of the settings and the files that these name.

What it keeps true: no process listens or connects over TCP without keys. What is missing is one line that names it.
"""

from __future__ import annotations

from pathlib import Path

from solowire.backplane.curve_keys import (
    MemberKeys,
    RouterKeys,
    derive_member_keys,
    derive_router_keys,
    find_public_key,
)
from solowire.errors import ConfigError
from solowire.runtime.settings import Settings
from solowire.runtime.settings.curve_settings import check_keys, split_keys, split_seeds
from solowire.runtime.settings.setting_paths import to_variable

_MOST_BYTES = 1024 * 1024  # some twenty thousand keys


def load_router_keys(settings: Settings) -> RouterKeys | None:
    """The router's; None where the backplane is ipc, whose directory keeps others out. Raises ConfigError."""
    if not settings.is_networked:
        return None
    seeds = _read_seeds(settings)
    if seeds:
        return derive_router_keys(seeds)
    secret, members = _read_pairs(settings, "member_keys")
    return RouterKeys(secret, frozenset(members))


def load_member_keys(settings: Settings) -> MemberKeys | None:
    """A shard's or a gateway's; None where the backplane is ipc. Raises ConfigError."""
    if not settings.is_networked:
        return None
    seeds = _read_seeds(settings)
    if seeds:
        return derive_member_keys(seeds)
    secret, routers = _read_pairs(settings, "router_key")
    return MemberKeys(secret, tuple(routers))


def _read_pairs(settings: Settings, name: str) -> tuple[str, list[str]]:
    """This process's secret key, and others' public ones by the name of their setting. Raises ConfigError."""
    secret, others = _read_secret_key(settings), _read_keys(settings, name)
    if secret is None or not others:
        found = {"secret_key": secret, name: others}
        missing = " and ".join(to_variable(("curve", key)) for key in found if not found[key])
        seed = to_variable(("curve", "seed"))
        raise ConfigError(
            f"{settings.name_setting('backplane')}: a tcp backplane needs keys; set {missing} (`solowire keys` "
            f"makes them), or {seed} to the same text for all processes"
        )
    _check_others(settings, name, others, secret)
    return secret, others


def _check_others(settings: Settings, name: str, keys: list[str], secret: str) -> None:
    """Raises ConfigError where the process's own key is among those of others, which nobody would find out else."""
    for key, kind in ((secret, "secret"), (find_public_key(secret), "public")):
        if key in keys:
            raise ConfigError(
                f"{_name_source(settings, name)}: it has this process's own {kind} key; of the files of `solowire "
                "keys` the router takes router.key and member.pub, shards and gateways member.key and router.pub"
            )


def _name_source(settings: Settings, name: str) -> str:
    """The setting of keys as it was written, or that of the file with them and its path."""
    path = getattr(settings.curve, f"{name}_file")
    setting = settings.name_setting(f"curve.{name}" if path is None else f"curve.{name}_file")
    return setting if path is None else f"{setting} {path}"


def _read_seeds(settings: Settings) -> list[str]:
    if settings.curve.seed is not None:
        return split_seeds(settings.curve.seed.get_secret_value())
    if settings.curve.seed_file is None:
        return []
    try:
        return split_seeds(_read_file(settings, "seed_file", settings.curve.seed_file))
    except ValueError as error:
        raise ConfigError(f"{settings.name_setting('curve.seed_file')} {settings.curve.seed_file}: {error}") from None


def _read_secret_key(settings: Settings) -> str | None:
    if settings.curve.secret_key is not None:
        return settings.curve.secret_key.get_secret_value()
    path = settings.curve.secret_key_file
    if path is None:
        return None
    secret = _read_file(settings, "secret_key_file", path).strip()
    try:
        find_public_key(secret)
    except ValueError as error:
        raise ConfigError(f"{settings.name_setting('curve.secret_key_file')} {path}: {error}") from None
    return secret


def _read_keys(settings: Settings, name: str) -> list[str]:
    path: Path | None = getattr(settings.curve, f"{name}_file")
    found: list[str] = getattr(settings.curve, name)
    if path is None:
        return found
    try:
        return check_keys(split_keys(_read_file(settings, f"{name}_file", path)))
    except ValueError as error:
        raise ConfigError(f"{settings.name_setting(f'curve.{name}_file')} {path}: {error}") from None


def _read_file(settings: Settings, name: str, path: Path) -> str:
    """Of a file whose permissions are the operator's affair: a volume of Kubernetes belongs to root and a group."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{settings.name_setting(f'curve.{name}')} {path}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(
            f"{settings.name_setting(f'curve.{name}')} {path}: it is larger than any file of keys; is it another one?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{settings.name_setting(f'curve.{name}')} {path}: it is no text") from None
