"""Options that are empty, as of a shell variable that is not set: each is refused by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from solowire.cli.main import cli
from solowire.errors import ConfigError

NEEDED = {"shard": ["--index", "0"], "publish": ["custom.x", "{}"], "drain": ["0"], "undrain": ["0"], "unrevoke": ["x"]}
NEEDED |= {
    "disconnect": ["ann"],
    "token": ["--user", "ann"],
    "bind9": ["--query-log", "q.log"],
    "revoke": ["--jti", "x"],
}
NO_TEXT = (click.types.IntParamType, click.types.FloatParamType, click.IntRange, click.Choice)


def list_options(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_options(command, (*above, name))
            continue
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag and not isinstance(option.type, NO_TEXT):
                yield (*above, name), option.opts[0]


@pytest.mark.parametrize(
    ("command", "option"), list(list_options(cli)), ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
@pytest.mark.parametrize("value", ["", " "], ids=["empty", "blank"])
def test_an_empty_option(
    command: tuple[str, ...], option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made or asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOLOWIRE_DATA_DIR", str(tmp_path / "data"))
    needed = NEEDED.get(command[-1], [])
    if option in needed:
        needed = []
    with pytest.raises((ConfigError, click.UsageError)) as refused:
        cli.main([*command, *needed, option, value], standalone_mode=False)
    said = refused.value.format_message() if isinstance(refused.value, click.UsageError) else str(refused.value)
    assert option in said
    assert "must not be empty" in said or command[-1] == "token"
    assert list(tmp_path.iterdir()) == []
