"""The configuration of a real `named`, edited, reloaded, refused and taken back."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.errors import ConfigError
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.bind9.server import config_files, config_history, config_part
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.config_part import ConfigPart
from solowire.sources.bind9.server.config_state import ConfigState, ConfigStateFile
from solowire.sources.bind9.server.reload_log import ReloadLog
from solowire.sources.bind9.server.server_lines import ServerLines
from tests.support.guarded_named import SECRET, GuardedNamed
from tests.support.kept_events import KeptEvents
from tests.support.query_log_agent import follow_log
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgYW5vdGhlciBzZWNyZXQhISE="


class Watch:
    """A part that runs, and the log of its named."""

    def __init__(self, outlet: RecordedOutlet, status: PartStatus, log: KeptEvents) -> None:
        self.outlet = outlet
        self.status = status
        self.log = log

    def changes(self) -> list[tuple[str, str]]:
        return [(data["action"], data["status"]) for data in self.outlet.of_type("config_change")]


@asynccontextmanager
async def watching(conf: Path, state: Path, log: Path | None = None) -> AsyncIterator[Watch]:
    outlet, status, kept, stop = RecordedOutlet(), PartStatus("x"), KeptEvents(), asyncio.Event()
    part = ConfigPart(conf, outlet, state_dir=state, has_outcomes=log is not None)
    tasks = [asyncio.create_task(part.run(status, stop))]
    if log is not None:
        lines = ServerLines(ReloadLog(part.mask_line), BindState("ns1"), outcomes=[part])
        tasks.append(asyncio.create_task(follow_log(log, lines, kept, from_start=False, stop=stop)))
    try:
        await until(lambda: status.status != "starting")
        yield Watch(outlet, status, kept)
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def replace(path: Path, text: str) -> None:
    """As editors do: a new file takes the old one's name."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    os.replace(draft, path)


async def test_the_history_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is loaded, one that is refused, one that nobody loads, one that is taken back, a new secret."""
    monkeypatch.setattr(config_history, "EDITED_S", 1.0)
    with GuardedNamed(tmp_path) as named:
        async with watching(named.conf, tmp_path / "state", named.all_log) as watch:
            replace(named.conf, named.make_conf('zone "new.example" { type primary; file "new.zone"; };\n'))
            await asyncio.to_thread(named.rndc, "reconfig")
            await until(lambda: watch.changes() == [("loaded", "loaded")])

            replace(named.conf, named.make_conf(f'nonsense "{OTHER_SECRET}";\n'))
            await asyncio.to_thread(named.rndc, "reload")
            await until(lambda: watch.changes()[1:] == [("rejected", "rejected")])

            replace(named.conf, named.make_conf())
            await until(lambda: watch.changes()[2:] == [("edited", "not loaded")])
            replace(named.conf, named.make_conf('zone "new.example" { type primary; file "new.zone"; };\n'))
            await until(lambda: watch.changes()[3:] == [("reverted", "loaded")])

            replace(named.dir / "rndc.key", (named.dir / "rndc.key").read_text().replace(SECRET, OTHER_SECRET))
            await until(lambda: watch.changes()[4:] == [("edited", "not loaded")])
            assert watch.status.status == "running"
    first, second, _, _, last = watch.outlet.of_type("config_change")
    assert '+zone "new.example" {' in first["diff"]
    assert (first["path"], first["entity_type"]) == (str(named.conf), "named.conf")
    assert first["before"] != first["after"]
    assert any("nonsense" in error for error in second["details"]["errors"])
    assert second["details"]["files"] == [str(named.conf)]
    assert last["diff"].count("\tsecret") == 2
    everything = json.dumps([watch.outlet.events, watch.log.events])
    assert SECRET not in everything
    assert OTHER_SECRET not in everything


async def test_a_comment_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is another order of what means the same, nor a file that named itself writes beside it."""
    monkeypatch.setattr(config_history, "QUICK_S", 0.0)
    conf = tmp_path / "named.conf"
    conf.write_text("options { recursion no; };\n")
    async with watching(conf, tmp_path / "state") as watch:
        replace(conf, f"// secret {SECRET}\noptions {{ recursion no; }};\n")
        (tmp_path / "_default.nzf").write_text("zone x {};\n")
        read = watch.status.read_count
        await until(lambda: watch.status.read_count > read)
        replace(conf, "options { recursion yes; };\n")
        await until(lambda: len(watch.changes()) == 1)
    [data] = watch.outlet.of_type("config_change")
    assert data["status"] == "unknown"
    assert "recursion yes" in data["diff"]


async def test_a_change_while_the_source_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told once it is back, also of an included file; and not again after that."""
    monkeypatch.setattr(config_history, "QUICK_S", 0.0)
    conf, part = tmp_path / "named.conf", tmp_path / "part.conf"
    conf.write_text('include "part.conf";\n')
    part.write_text("options { recursion no; };\n")
    for turn in range(3):
        async with watching(conf, tmp_path / "state") as watch:
            if turn == 1:
                await until(lambda watch=watch: len(watch.changes()) == 1)  # type: ignore[misc]
        assert len(watch.changes()) == (turn == 1)
        if turn == 0:
            part.write_text("options { recursion yes; };\n")


async def test_what_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """It is said at once, with the path that is missing."""
    conf = tmp_path / "named.conf"
    conf.write_text('include "part.conf";\n')
    with capture_logs() as logs:
        async with watching(conf, tmp_path / "state") as watch:
            assert watch.status.status == "waiting"
            assert watch.status.reason is not None
            assert "part.conf" in watch.status.reason
            (tmp_path / "part.conf").write_text("options { recursion no; };\n")
            await until(lambda: watch.status.status == "running")
    assert [entry["event"] for entry in logs] == ["configuration_unreadable"]


async def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    """A pipe that is included would keep its reader waiting, and a path with a NUL byte is none."""
    conf, pipe = tmp_path / "named.conf", tmp_path / "pipe"
    os.mkfifo(pipe)
    conf.write_text(f'include "a\0b"; include "{pipe}";\n')
    async with watching(conf, tmp_path / "state") as watch:
        assert watch.status.status == "waiting"
        assert watch.status.reason is not None
        assert "FIFO" in watch.status.reason
        conf.write_text("options { recursion no; };\n")
        await until(lambda: watch.status.status == "running")


async def test_a_reading_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no file changes any more: it may have been the machine that was slow."""
    conf = tmp_path / "named.conf"
    conf.write_text("options { recursion no; };\n")
    monkeypatch.setattr(config_files, "CHECK_S", 0.0)
    monkeypatch.setattr(config_part, "LOOK_S", 0.1)
    async with watching(conf, tmp_path / "state") as watch:
        assert watch.status.reason is not None
        assert "took more than" in watch.status.reason
        monkeypatch.setattr(config_files, "CHECK_S", 30.0)
        await until(lambda: watch.status.status == "running")


async def test_a_state_that_cannot_be_read_or_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[], set[str]]
) -> None:
    """A damaged one is made anew; what can't be written is told nevertheless."""
    conf = tmp_path / "named.conf"
    conf.write_text("options { recursion no; };\n")
    file = ConfigStateFile(tmp_path / "state", conf)
    file.save(ConfigState(key="00"))
    file.path.write_text("no state")
    real_save, is_full = ConfigStateFile.save, asyncio.Event()

    def save(self: ConfigStateFile, state: ConfigState) -> None:
        if is_full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_save(self, state)

    monkeypatch.setattr(ConfigStateFile, "save", save)
    monkeypatch.setattr(config_history, "QUICK_S", 0.0)
    async with watching(conf, tmp_path / "state") as watch:
        assert "config_state_damaged" in logged()
        await until(lambda: watch.status.status == "running")
        is_full.set()
        conf.write_text("options { recursion yes; };\n")
        await until(lambda: bool(watch.changes()))
        await until(lambda: "config_state_write_failed" in logged())


def test_without_a_place_for_its_state_it_does_not_begin(tmp_path: Path) -> None:
    """The way out is named."""
    (tmp_path / "state").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        ConfigPart(tmp_path / "named.conf", RecordedOutlet(), state_dir=tmp_path / "state", has_outcomes=False)
