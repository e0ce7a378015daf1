"""The secrets that sign: set, or made once in the data directory."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_directories
from solowire.runtime.settings import load
from solowire.runtime.signing_secrets import load_secret, load_secrets


def test_a_data_directory_that_cant_be_made_is_one_line(place: Path) -> None:
    """A file in the way is named."""
    (place / "file").write_text("")
    settings = load(data_dir=place / "file")
    for attempt in (lambda: make_directories(settings), lambda: load_secret(settings, create=True)):
        with pytest.raises(ConfigError, match="file"):
            attempt()


def test_a_secret_is_made_once(place: Path) -> None:
    """The first start makes a secret that only its owner can read; the next one finds it."""
    settings = load(data_dir=place / "data")
    secret, made = load_secret(settings, create=True)
    assert made
    assert len(secret) >= 32
    assert stat.S_IMODE((settings.data_dir / "secret").stat().st_mode) == 0o600
    assert load_secret(settings, create=True) == (secret, False)
    assert load_secret(settings, create=False) == (secret, False)
    assert [p.name for p in settings.data_dir.iterdir() if p.is_file()] == ["secret"]


def test_processes_that_start_together_agree_on_the_secret(place: Path) -> None:
    """Whoever is first, all get the one whole secret, and one of them has made it."""
    settings = load(data_dir=place / "data")
    found: list[tuple[str, bool]] = []
    begin = threading.Barrier(8)

    def start() -> None:
        begin.wait()
        found.append(load_secret(settings, create=True))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({secret for secret, _ in found}) == 1
    assert [made for _, made in found].count(True) == 1


def test_without_a_secret_nothing_is_made_up(place: Path) -> None:
    """A command that only uses a secret says where it looked and how to give one."""
    with pytest.raises(ConfigError, match=r"no secret: .*SOLOWIRE_SECRET"):
        load_secret(load(data_dir=place / "data"), create=False)
    assert not (place / "data").exists()


@pytest.mark.parametrize("content", ["", "\n", "short\n", "   a secret   \n"])
def test_a_secret_file_that_is_no_secret_is_refused(place: Path, content: str) -> None:
    """An emptied or cut secret file must not sign tokens that anyone can make."""
    (place / "data").mkdir()
    (place / "data" / "secret").write_text(content)
    with pytest.raises(ConfigError, match="secret"):
        load_secret(load(data_dir=place / "data"), create=True)


def test_a_configured_secret_wins_over_the_file(place: Path) -> None:
    """Containers get their secret from outside."""
    settings = load(data_dir=place / "data", secret="from outside, long enough")
    assert load_secret(settings, create=True) == ("from outside, long enough", False)
    assert not (place / "data").exists()


KEY = "a secret of enough letters"


@pytest.mark.parametrize("around", ["\n", "\r\n", " ", "\t"])
def test_a_secret_is_the_same_wherever_it_stands(place: Path, monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    """What an editor or `echo` puts around it, and a byte order mark, is in no key: one secret is one key."""
    (place / "data").mkdir()
    (place / "data" / "secret").write_text(f"\ufeff{around}{KEY}{around}", encoding="utf-8")
    assert load_secrets(load(data_dir=place / "data"), create=True)[0] == [KEY]
    monkeypatch.setenv("SOLOWIRE_SECRET", f"\ufeff{around}{KEY}{around}")
    for accepted in (f"{around}{KEY} 2{around}", json.dumps([f"{KEY} 2{around}"])):
        monkeypatch.setenv("SOLOWIRE_ACCEPTED_SECRETS", accepted)
        assert load_secrets(load(data_dir=place / "data"), create=True)[0] == [KEY, f"{KEY} 2"]
    monkeypatch.setenv("SOLOWIRE_TOKEN", f"{around}a.b.c{around}")
    token = load().token
    assert token is not None
    assert token.get_secret_value() == "a.b.c"


def test_a_secret_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file each line is one; two in a variable would be one key with a newline in it."""
    monkeypatch.setenv("SOLOWIRE_SECRET", f"{KEY}\n{KEY} 2")
    with pytest.raises(ConfigError, match=r"SOLOWIRE_SECRET.*one line"):
        load()


def test_a_secret_of_blanks_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not count."""
    monkeypatch.setenv("SOLOWIRE_SECRET", "short" + " " * 20)
    with pytest.raises(ConfigError, match="16 characters"):
        load()
