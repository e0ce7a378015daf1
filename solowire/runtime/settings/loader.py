"""The loader of settings: read once, at start, validated together, and passed down as values.

Later ones win: defaults, the file of `--config`, `.env`, the environment (`SOLOWIRE_…`), options of the command line.
They win setting by setting, whatever section these are of. Whatever is wrong becomes one line that names the setting
as it was written.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from solowire.errors import ConfigError
from solowire.runtime.environment import find_unknown, is_service_link
from solowire.runtime.settings.dotenv_file import DOTENV, read_dotenv
from solowire.runtime.settings.renamed_settings import RENAMED
from solowire.runtime.settings.setting_faults import SettingsOrigin, describe_fault, write_name
from solowire.runtime.settings.setting_paths import index_names, list_paths, merge, to_variable
from solowire.runtime.settings.system_settings import PREFIX, Settings

logger = structlog.get_logger("solowire.settings")

_VARIABLES = frozenset(map(to_variable, list_paths()))
_RENAMED_VARIABLES = {PREFIX + old.upper(): to_variable(tuple(new.split("."))) for old, new in RENAMED.items()}
_SIMILAR_VARIABLES = {PREFIX + name.upper(): to_variable(path) for name, path in index_names().items()}


def load(config: Path | None = None, **options: Any) -> Settings:
    """The settings in force. options: from the command line, None where not given. Raises ConfigError."""
    dotenv, unreadable = read_dotenv()
    faults = [*_find_unknown(os.environ), *(f"{DOTENV}: {fault}" for fault in _find_unknown(dotenv)), *unreadable]
    origins = [
        SettingsOrigin(_drop_unset(options), lambda path: "--" + path[-1].replace("_", "-")),
        SettingsOrigin(_read_variables(os.environ), to_variable),
        SettingsOrigin(_read_variables(dotenv), to_variable, DOTENV),
    ]
    if config is not None:
        origins.append(SettingsOrigin(_read_file(config), ".".join, str(config)))
    settings = None
    try:
        settings = Settings(**reduce(merge, (origin.values for origin in origins)))
    except ValidationError as error:
        faults += [describe_fault(e, origins) for e in error.errors(include_url=False)]
    if settings is None or faults:
        raise ConfigError("; ".join(faults))
    settings.set_writer(partial(write_name, origins=origins))
    for name, value in (dotenv | os.environ).items():
        if _is_link(name, value) and name.upper() in _VARIABLES:
            hint = "Kubernetes set it, for a service of that name; name a port by --port or a file of --config"
            logger.warning("service_link_ignored", name=name.upper(), value=value, hint=hint)
    return settings


def _find_unknown(variables: Mapping[str, str | None]) -> list[str]:
    return find_unknown(variables, PREFIX, _VARIABLES, renamed=_RENAMED_VARIABLES, similar=_SIMILAR_VARIABLES)


def _is_link(name: str, value: str | None) -> bool:
    return name.upper().startswith(PREFIX) and is_service_link(name[len(PREFIX) :], value)


def _read_variables(variables: Mapping[str, str | None]) -> dict[str, Any]:
    """Those that are settings, as sections."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {
        name.lower(): value
        for name, value in variables.items()
        if name.upper() in _VARIABLES and value and not _is_link(name, value)
    }
    return source()


class _ConfigFile(TomlConfigSettingsSource):
    """The file of `--config`, which may begin as editors on Windows begin it, and has to be there."""

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:
        return tomllib.loads(Path(files).read_text("utf-8-sig"))


def _read_file(path: Path) -> dict[str, Any]:
    """Reads a settings file. Raises ConfigError."""
    try:
        return _ConfigFile(Settings, path)()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid TOML: {error}") from None


def _drop_unset(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without options that were not given, and sections in which none was."""

    def kept() -> Iterator[tuple[str, Any]]:
        for name, value in options.items():
            given = _drop_unset(value) if isinstance(value, dict) else value
            if given is not None and given != {}:
                yield name, given

    return dict(kept())
