"""`solowire keys`: four files that fit together, and none that is lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from solowire.backplane.curve_keys import find_public_key
from solowire.cli import key_files
from solowire.cli.key_files import write_keys
from solowire.errors import ConfigError
from solowire.runtime.data_directory import write_private


def test_two_pairs_are_written(tmp_path: Path) -> None:
    """The secret ones for their owner alone; what is printed names the files by their settings, and no key."""
    out = tmp_path / "new" / "keys"
    lines = "\n".join(write_keys(out))
    texts = {path.name: path.read_text().strip() for path in out.iterdir()}
    assert set(texts) == {"router.key", "router.pub", "member.key", "member.pub"}
    for name in ("router", "member"):
        assert find_public_key(texts[f"{name}.key"]) == texts[f"{name}.pub"]
        assert stat.S_IMODE((out / f"{name}.key").stat().st_mode) == 0o600
        assert texts[f"{name}.key"] not in lines
    assert f"SOLOWIRE_CURVE__SECRET_KEY_FILE={out}/router.key" in lines
    assert f"SOLOWIRE_CURVE__ROUTER_KEY_FILE={out}/router.pub" in lines


def test_keys_that_are_there_are_kept(tmp_path: Path) -> None:
    """A system runs with them: one of the four is enough to refuse, and nothing is written."""
    (tmp_path / "member.pub").write_text("kept")
    with pytest.raises(ConfigError, match=r"member\.pub is there"):
        write_keys(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["member.pub"]


def test_a_place_that_cant_be_written_is_one_line(tmp_path: Path) -> None:
    """Such as a file."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*: "):
        write_keys(tmp_path / "file")


def test_keys_that_have_no_room_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the files would be in the way of the next try, as keys that would be lost."""

    def write(path: Path, text: str) -> None:
        if path.name == "member.key":
            raise OSError(28, "No space left on device")
        write_private(path, text)

    monkeypatch.setattr(key_files, "write_private", write)
    with pytest.raises(ConfigError, match="No space left"):
        write_keys(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_keys(tmp_path)
