"""Backups of a journal that is written meanwhile, and journals made of them."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from pydantic import SecretStr

from solowire.backplane.messages import PublishedEvent
from solowire.errors import ConfigError
from solowire.router import backup
from solowire.router.backup import BackupManifest, make_backup, restore_backup
from solowire.router.log.earlier_epochs import MOST_EPOCHS, encode_epochs, load_earlier_epochs
from solowire.router.log.sqlite_journal import SqliteJournal
from solowire.runtime.directory_lock import router_lock
from solowire.runtime.settings import Settings
from tests.support.requirements import NEEDS_ROOT

NOW = 1_790_000_000.0


def settings_of(directory: Path, secret: str | None = None) -> Settings:
    return Settings(data_dir=directory, secret=SecretStr(secret) if secret is not None else None)


def open_journal(directory: Path, epoch: str = "epoch-1") -> SqliteJournal:
    return SqliteJournal(
        directory / "journal.sqlite3",
        new_epoch=epoch,
        max_age=1e9,
        max_events=10**6,
        max_bytes=2**30,
        window=60.0,
        now=NOW,
    )


def keep(journal: SqliteJournal, count: int, size: int = 20) -> None:
    first = journal.last_offset + 1
    journal.append([PublishedEvent(f"id-{n}", None, b"%d" % n + b"." * size) for n in range(first, first + count)], NOW)
    journal.commit(NOW)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data directory with ten events and a secret."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    (directory / "secret").touch(mode=0o600)
    (directory / "secret").write_text("s" * 40 + "\n")
    with closing(open_journal(directory)) as journal:
        keep(journal, 10)
    return directory


def test_a_backup_is_of_one_moment_while_the_router_writes(source: Path, tmp_path: Path) -> None:
    """What is committed between two steps of the copy is not in it, nor does it have the copy begin anew."""
    steps = 0

    def write_on(seconds: float) -> None:
        nonlocal steps
        steps += 1
        keep(journal, 20, size=1000)

    with closing(open_journal(source)) as journal:
        keep(journal, 3000, size=1000)
        manifest = make_backup(settings_of(source), tmp_path / "backup", write_on)
        assert steps > 2
        assert journal.last_offset == 3010 + 20 * steps
    assert (manifest.epoch, manifest.start_offset, manifest.last_offset) == ("epoch-1", 0, 3010)
    with closing(open_journal(tmp_path / "backup")) as copy:
        assert (copy.epoch, copy.last_offset) == ("epoch-1", 3010)
        assert [record.offset for record in copy.read(0, 10**6)] == list(range(1, 3011))


def test_a_backup_is_for_its_owner_alone(source: Path, tmp_path: Path) -> None:
    """Whoever reads it can sign tokens and reads all events."""
    target = tmp_path / "backups" / "monday"
    assert make_backup(settings_of(source), target).has_secret
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {
        "journal.sqlite3": 0o600,
        "secret": 0o600,
        "backup.json": 0o600,
    }
    assert [path.name for path in target.parent.iterdir()] == ["monday"]


def test_a_backup_that_fails_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no directory under its name, nor a half made one beside it."""
    monkeypatch.setattr(backup, "write_private", fail_for_want_of_room)
    with pytest.raises(ConfigError, match=r"no backup was made: .*No space left"):
        make_backup(settings_of(source), tmp_path / "backups" / "monday")
    assert list((tmp_path / "backups").iterdir()) == []


def fail_for_want_of_room(path: Path, text: str) -> None:
    raise OSError(28, os.strerror(28), str(path))


def test_a_secret_that_is_no_text_is_one_sentence(source: Path, tmp_path: Path) -> None:
    """It names the file, and leaves nothing where the backup was to be."""
    (source / "secret").write_bytes(b"\xff" * 40)
    with pytest.raises(ConfigError, match=r"no backup was made: .*/secret: it is no text"):
        make_backup(settings_of(source), tmp_path / "backup")
    assert [path for path in tmp_path.iterdir() if "backup" in path.name] == []


def test_a_secret_of_the_settings_is_not_copied(source: Path, tmp_path: Path) -> None:
    """It is not the file's: to restore that one would refuse all tokens."""
    settings = settings_of(source, "x" * 40)
    assert not make_backup(settings, tmp_path / "backup").has_secret
    assert not (tmp_path / "backup/secret").exists()


def test_what_cant_be_backed_up_is_refused(source: Path, tmp_path: Path) -> None:
    """A name that is taken, and a directory without a journal."""
    with pytest.raises(ConfigError, match="exists already"):
        make_backup(settings_of(source), tmp_path)
    with pytest.raises(ConfigError, match=r"has no journal.*--data-dir"):
        make_backup(settings_of(tmp_path / "other"), tmp_path / "backup")


def test_a_restored_log_goes_on_under_a_new_epoch(source: Path, tmp_path: Path) -> None:
    """With all events, the next offset, the secret, and the knowledge of where it comes from."""
    make_backup(settings_of(source), tmp_path / "backup")
    new = tmp_path / "new"
    restored = restore_backup(settings_of(new), tmp_path / "backup", "epoch-2")
    assert (restored.epoch, restored.has_secret, restored.manifest.last_offset) == ("epoch-2", True, 10)
    assert (new / "secret").read_text() == (source / "secret").read_text()
    assert stat.S_IMODE((new / "journal.sqlite3").stat().st_mode) == 0o600
    assert sorted(path.name for path in new.iterdir() if "journal" in path.name) == ["journal.sqlite3"]
    with closing(open_journal(new)) as journal:
        assert (journal.epoch, journal.last_offset) == ("epoch-2", 10)
        assert load_earlier_epochs(journal) == {"epoch-1": 10}
        keep(journal, 1)
        assert [record.offset for record in journal.read(9, 10)] == [10, 11]


def test_a_log_that_was_restored_twice_knows_both(source: Path, tmp_path: Path) -> None:
    """Each earlier epoch is known up to where its backup ended."""
    make_backup(settings_of(source), tmp_path / "one")
    restore_backup(settings_of(tmp_path / "second"), tmp_path / "one", "epoch-2")
    with closing(open_journal(tmp_path / "second")) as journal:
        keep(journal, 5)
    make_backup(settings_of(tmp_path / "second"), tmp_path / "two")
    restore_backup(settings_of(tmp_path / "third"), tmp_path / "two", "epoch-3")
    with closing(open_journal(tmp_path / "third")) as journal:
        assert load_earlier_epochs(journal) == {"epoch-1": 10, "epoch-2": 15}


def test_earlier_epochs_have_a_bound() -> None:
    """The oldest are forgotten first."""
    kept = encode_epochs({f"epoch-{n}": n for n in range(100)}, "newest", 100)
    found = msgspec.msgpack.decode(kept)
    assert len(found) == MOST_EPOCHS
    assert [*found][-2:] == ["epoch-99", "newest"]


def test_a_word_about_earlier_epochs_that_cant_be_read_is_said(source: Path) -> None:
    """It costs the clients of before a gap, and the router nothing."""
    with closing(open_journal(source)) as journal:
        journal.put_metadata_item("earlier_epochs", b"\xc1")
        assert load_earlier_epochs(journal) == {}


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    """A backup."""
    make_backup(settings_of(source), tmp_path / "backup")
    return tmp_path / "backup"


def test_nothing_is_restored_over_a_journal(source: Path, made: Path) -> None:
    """Also where only its -wal is left."""
    with pytest.raises(ConfigError, match="has a journal: move"):
        restore_backup(settings_of(source), made, "epoch-2")
    (source / "journal.sqlite3").rename(source / "journal.sqlite3-wal")
    with pytest.raises(ConfigError, match="has a journal: move"):
        restore_backup(settings_of(source), made, "epoch-2")


def test_nothing_is_restored_under_a_router(tmp_path: Path, made: Path) -> None:
    """One that has the lock, even without a journal."""
    settings = settings_of(tmp_path / "new")
    settings.data_dir.mkdir(mode=0o700)
    with router_lock(settings), pytest.raises(ConfigError, match=r"a router .* already uses the data directory"):
        restore_backup(settings, made, "epoch-2")


def test_nothing_is_restored_into_the_backup_itself(made: Path) -> None:
    """Who followed the word about a journal that is there would have moved the backup's away."""
    for directory in (made, made / ".." / made.name):
        with pytest.raises(ConfigError, match="is the backup itself"):
            restore_backup(settings_of(directory), made, "epoch-2")
    assert {path.name for path in made.iterdir()} == {"backup.json", "journal.sqlite3", "secret"}


@NEEDS_ROOT
def test_what_root_restores_belongs_to_whose_directory_it_is(tmp_path: Path, made: Path) -> None:
    """A service of that user starts on it: with files of root's it could not."""
    new = tmp_path / "new"
    new.mkdir(mode=0o700)
    os.chown(new, 4711, 4712)
    restore_backup(settings_of(new), made, "epoch-2")
    found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in new.iterdir()}
    assert found == dict.fromkeys(("journal.sqlite3", "secret", "router.lock", "run"), (4711, 4712))


def test_a_secret_that_is_there_stays(tmp_path: Path, made: Path) -> None:
    """Tokens that it has signed are in use."""
    new = tmp_path / "new"
    new.mkdir(mode=0o700)
    (new / "secret").write_text("t" * 40)
    (new / "secret").chmod(0o600)
    assert not restore_backup(settings_of(new), made, "epoch-2").has_secret
    assert (new / "secret").read_text() == "t" * 40


def test_a_restore_that_fails_leaves_no_journal(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that was started on it would make a secret of its own, and refuse all tokens."""
    monkeypatch.setattr(backup, "write_private", fail_for_want_of_room)
    with pytest.raises(ConfigError, match=r"nothing was restored of .*No space left"):
        restore_backup(settings_of(tmp_path / "new"), made, "epoch-2")
    assert list((tmp_path / "new").glob("journal*")) == []


@pytest.mark.parametrize(
    "damage",
    ["no manifest", "another manifest", "newer", "damaged", "cut", "no journal", "other journal", "secret of bytes"],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, made: Path, damage: str) -> None:
    """With what is wrong, and nothing is left in the new directory that would be taken for a journal."""
    journal, manifest = made / "journal.sqlite3", made / "backup.json"
    match damage:
        case "no manifest":
            manifest.unlink()
        case "another manifest":
            manifest.write_text("{}")
        case "newer":
            known = msgspec.json.decode(manifest.read_bytes(), type=BackupManifest)
            manifest.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, format=99)))
        case "damaged":
            journal.write_bytes(b"\0" * 5000)
        case "cut":
            os.truncate(journal, 20_000)
        case "no journal":
            journal.unlink()
        case "secret of bytes":
            (made / "secret").write_bytes(b"\xff" * 40)
        case "other journal":
            shutil.rmtree(tmp_path / "else", ignore_errors=True)
            (tmp_path / "else").mkdir()
            with closing(open_journal(tmp_path / "else", "epoch-9")) as other:
                keep(other, 3)
            shutil.copy(tmp_path / "else/journal.sqlite3", journal)
    with pytest.raises(ConfigError, match=r"is no backup|newer Solowire|nothing was restored") as raised:
        restore_backup(settings_of(tmp_path / "new"), made, "epoch-2")
    assert str(made) in str(raised.value)
    assert list((tmp_path / "new").glob("journal*")) == []
