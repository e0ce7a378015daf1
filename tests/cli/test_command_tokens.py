"""The token of a file: read anew whenever one is asked for, and what a file that has none is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from solowire.cli.command_tokens import make_token
from solowire.errors import ConfigError
from solowire.model.access import PUBLISH
from solowire.runtime.settings import Settings
from tests.support.system import run


def test_a_file_is_read_whenever_a_token_is_asked_for(tmp_path: Path) -> None:
    """So that another one, written into it or put in its place, is shown without a restart."""
    place = tmp_path / "token"
    place.write_text("one\n")
    give = make_token(Settings(token_file=place), PUBLISH)
    assert callable(give)
    assert give() == "one"
    place.write_text("two")
    assert give() == "two"
    place.unlink()
    with pytest.raises(FileNotFoundError):
        give()


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"\n", "is empty"), (b"\xff x", "one word")])
def test_a_file_without_a_token_is_refused_at_the_start(tmp_path: Path, content: bytes | None, words: str) -> None:
    """With the setting and the file by name, and what is wrong."""
    place = tmp_path / "token"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        make_token(Settings(token_file=place), PUBLISH)
    assert "token_file" in str(refused.value)
    assert str(place) in str(refused.value)


def test_two_tokens_are_one_too_many(tmp_path: Path) -> None:
    """Which of them is meant is not guessed."""
    done = run("history", "--token-file", str(tmp_path / "t"), cwd=tmp_path, settings={"TOKEN": "x"})
    assert done.returncode == 2
    assert "SOLOWIRE_TOKEN and" in done.stderr
    assert len(done.stderr.splitlines()) == 1
