"""The data directory and the secret are closed to others, or the system doesn't start."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.errors import ConfigError
from solowire.observability.audit import open_audit
from solowire.runtime.data_directory import make_directories, write_private
from solowire.runtime.settings import Settings, load
from solowire.runtime.signing_secrets import load_secret

SECRET = "a secret of a test, long enough to sign"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path / "above" / "data")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make(path: Path, mode: int = 0o755, **files: str) -> None:
    """A directory that is there already."""
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    path.chmod(mode)


STARTS: dict[str, Callable[[Settings], Any]] = {
    "directories": make_directories,
    "secret": lambda settings: load_secret(settings, create=True),
}
starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


@starts
def test_it_is_made_closed(settings: Settings, start: Callable[[Settings], Any]) -> None:
    """Whatever is first to need it, it is its owner's alone; directories above it are like others."""
    old = os.umask(0)
    try:
        start(settings)
    finally:
        os.umask(old)
    assert mode(settings.data_dir) == 0o700
    assert mode(settings.data_dir.parent) == 0o777


def test_the_audit_log_does_not_make_it_open(settings: Settings) -> None:
    """A process with a secret from outside may write its first line before anything else is there."""
    audit = open_audit(settings, "gateway")
    audit("connected")
    audit.close()
    assert mode(settings.data_dir) == mode(settings.data_dir / "audit") == 0o700


@starts
@pytest.mark.parametrize("before", [0o755, 0o750, 0o777, 0o701, 0o2770])
@pytest.mark.parametrize("files", [{}, {"secret": SECRET}, {"journal.sqlite3": "", "notes.txt": ""}])
def test_one_that_was_open_is_closed_and_said_so(
    settings: Settings, start: Callable[[Settings], Any], before: int, files: dict[str, str]
) -> None:
    """An older version made it with mode 0755: one line says what was found."""
    make(settings.data_dir, before, **files)
    with capture_logs() as lines:
        start(settings)
    assert mode(settings.data_dir) & 0o777 == 0o700
    [line] = [line for line in lines if line["event"] == "data_directory_permissions_fixed"]
    assert line["mode"] == f"{before:04o}"
    with capture_logs() as lines:
        start(settings)
    assert lines == []


@starts
def test_a_directory_of_somebody_elses_files_is_refused_and_left_alone(
    settings: Settings, start: Callable[[Settings], Any]
) -> None:
    """To close /tmp, or a home, would harm more than it helps: the line names another place."""
    make(settings.data_dir, 0o755, **{"thesis.tex": ""})
    with pytest.raises(ConfigError, match=r"mode 0755.*not Solowire's alone.*data/solowire"):
        start(settings)
    assert mode(settings.data_dir) == 0o755
    assert [path.name for path in settings.data_dir.iterdir()] == ["thesis.tex"]


@starts
def test_a_directory_that_all_share_is_refused_and_left_alone(
    settings: Settings, start: Callable[[Settings], Any]
) -> None:
    """The sticky bit says that it is everybody's, whatever of ours is in it already."""
    make(settings.data_dir, 0o1777, secret=SECRET)
    with pytest.raises(ConfigError, match="not Solowire's alone"):
        start(settings)
    assert mode(settings.data_dir) == 0o1777


@starts
def test_a_directory_that_cant_be_closed_is_refused(
    settings: Settings, start: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is another user's, such as a volume's root, is named with the way out."""
    make(settings.data_dir, 0o770)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(ConfigError, match=r"can't be closed: Operation not permitted; name another.*data/solowire"):
        start(settings)


def test_with_a_secret_from_outside_it_is_looked_at_all_the_same(settings: Settings) -> None:
    """Sockets and journal are in it, whoever signs the tokens."""
    make(settings.data_dir, 0o755, **{"router.lock": ""})
    load_secret(load(data_dir=settings.data_dir, secret=SECRET), create=True)
    assert mode(settings.data_dir) == 0o700


def test_a_command_that_only_uses_the_secret_leaves_the_directory(settings: Settings) -> None:
    """`solowire token` is no process of the system."""
    make(settings.data_dir, 0o755, secret=SECRET)
    (settings.data_dir / "secret").chmod(0o600)
    with capture_logs() as lines:
        assert load_secret(settings, create=False) == (SECRET, False)
    assert (mode(settings.data_dir), lines) == (0o755, [])


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("before", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_was_open_is_closed_and_said_so(settings: Settings, before: int, create: bool) -> None:
    """Whoever read it can sign tokens: the line says so, and how to get another."""
    make(settings.data_dir, 0o700, secret=SECRET)
    path = settings.data_dir / "secret"
    path.chmod(before)
    with capture_logs() as lines:
        assert load_secret(settings, create=create) == (SECRET, False)
    assert mode(path) == 0o600
    assert [(line["event"], line["mode"]) for line in lines] == [("secret_permissions_fixed", f"{before:04o}")]
    assert SECRET not in str(lines)


def test_a_secret_that_cant_be_closed_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that is read-only, say, nothing is signed with what others may read."""
    make(settings.data_dir, 0o700, secret=SECRET)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(ConfigError, match=r"mode 0644.*Read-only file system.*SOLOWIRE_SECRET"):
        load_secret(settings, create=True)


def test_a_private_file_replaces_the_one_that_is_there(tmp_path: Path) -> None:
    """Whoever had the old one open, or made it readable, doesn't get the new text; and no draft is left."""
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o666)
    with path.open() as held:
        write_private(path, "new")
        assert held.read() == "old"
    assert (path.read_text(), mode(path)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        write_private(tmp_path / "nowhere" / "token", "new")


def test_the_sockets_directory_is_closed_to_others(tmp_path: Path) -> None:
    """Whoever could open the sockets could publish: mode 0700, also where it was open before."""
    settings = load(data_dir=tmp_path / "data")
    settings.run_dir.mkdir(parents=True)
    settings.run_dir.chmod(0o755)
    make_directories(settings)
    assert stat.S_IMODE(settings.run_dir.stat().st_mode) == 0o700
