"""Options that the commands of `solowire` share, and the settings that these are part of."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from solowire.errors import ConfigError
from solowire.runtime import logging as logs
from solowire.runtime.settings import Settings, load

F = TypeVar("F", bound=Callable[..., Any])


class PathOption(click.Path):
    """A path that an option names. An empty one, as of a variable that is not set, would be the working directory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            raise ConfigError(
                f"{param.opts[0] if param is not None else 'it'} must not be empty; {_explain_empty(param)}"
            )
        return super().convert(value, param, ctx)


def common(command: F) -> F:
    """The options that every command has."""
    command = click.option("--data-dir", type=PathOption(), help="Data directory of the system.")(command)
    return click.option("--config", type=PathOption(), help="Settings from a TOML file.")(command)


def remote(command: F) -> F:
    """The options of commands that talk to a running gateway."""
    for option in (
        click.option("--ca-file", type=PathOption(), help="The gateway's CA, in PEM. [default: the system's]"),
        click.option("--token-file", type=PathOption(), help="File with it, read again when another one is needed."),
        click.option("--token", help="Token to use. [default: one signed with the secret of the data directory]"),
    ):
        command = option(command)
    return common(click.option("--url", help="The gateway. [default: http://127.0.0.1:8000]")(command))


def load_server_settings(config: Path | None, role: str, **options: Any) -> Settings:
    """For a process of the system, or `up`, which says so if it is root."""
    from solowire.runtime.privileges import warn_of_root

    settings = load_settings(config, role, **options)
    warn_of_root()
    return settings


def load_settings(config: Path | None, role: str | None, **options: Any) -> Settings:
    check_texts()
    settings = load(config, **options)
    if role is not None:
        from solowire.runtime import process

        process.reload_from(lambda: load(config, **options), settings)
        process.on_reload(lambda fresh: logs.set_level(fresh.logging.level), is_last=True)
    if settings.ca_file is not None:
        from solowire.sdk.trusted_certificates import set_ca_file

        set_ca_file(settings.ca_file, settings.name_setting("ca_file"))
    context: dict[str, object] = {"role": role} if role is not None else {}
    if role == "shard" and settings.shard_index is not None:
        context["shard"] = settings.shard_index
    logs.configure(settings.logging.level if role else "warning", settings.logging.format, **context)
    if role:
        try:
            os.getcwd()
        except FileNotFoundError:
            raise ConfigError("the working directory is gone; start from another, such as /") from None
    else:  # a command tells its user itself what its client meets
        for name in ("solowire.client", "solowire.publisher"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return settings


def _explain_empty(parameter: click.Parameter | None) -> str:
    """The way out for who has given an option no value."""
    if parameter is None or not parameter.required:
        named = "the file" if parameter is not None and isinstance(parameter.type, click.Path) else "one"
        return f"leave {parameter.opts[0] if parameter is not None else 'it'} out, or name {named}"
    return "name the file" if isinstance(parameter.type, click.Path) else "name one"


def check_texts() -> None:
    """Raises ConfigError for an option that is empty, and for what nothing could send on, which UTF-8 can't say.

    Paths may be anything but empty, which `PathOption` sees to.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        is_given = context.get_parameter_source(parameter.name or "") is not click.core.ParameterSource.DEFAULT
        for text in value if isinstance(value, (list, tuple)) else (value,):
            if is_given and isinstance(parameter, click.Option) and isinstance(text, str) and not text.strip():
                raise ConfigError(f"{parameter.opts[0]} must not be empty; {_explain_empty(parameter)}")
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                name = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(context)
                raise ConfigError(f"{name} {text!a}: that is not UTF-8, as all that is sent on has to be")


def read_zones(text: str | None) -> tuple[str, ...]:
    """The names of --zones; () where it was not given. Raises ConfigError for one that is no zone's."""
    from solowire.auth.scopes import find_name_fault

    if text is None:
        return ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        fault, hint = find_name_fault(name)
        if fault:
            raise ConfigError(f"--zones {shlex.quote(text)}: {name!r} {fault}; {hint.replace('the scope', '--zones')}")
    return names
