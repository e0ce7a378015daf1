"""The parts of the BIND 9 source, as the settings name them, and what one of them tells another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solowire.cli.bind9_parts import make_bind9_parts
from solowire.errors import ConfigError
from solowire.runtime.settings import Settings
from tests.support.recorded_outlet import RecordedOutlet


def name_parts(data_dir: Path, **source: Any) -> list[str]:
    settings = Settings(data_dir=data_dir, token="x", source=source)
    return [part.name for part in make_bind9_parts(settings, RecordedOutlet())]


def test_forwarders_are_probed_beside_bind_if_that_is_wanted(tmp_path: Path) -> None:
    """Those of the configuration that is watched, or that are named; a table for another source alone begins none."""
    dnstap = {"dnstap": tmp_path / "dnstap.sock"}
    conf = tmp_path / "named.conf"
    assert "forwarders" not in name_parts(tmp_path, queries=dnstap, forwarders={"addresses": ["192.0.2.1"]})
    for watched, probed in (({"named_conf": conf}, {}), ({}, {"addresses": ["192.0.2.1"]})):
        parts = name_parts(tmp_path, queries=dnstap, configuration=watched, forwarders={**probed, "with_bind9": True})
        assert {"dnstap", "forwarders"} <= set(parts)
    with pytest.raises(ConfigError, match="--named-conf"):
        name_parts(tmp_path, queries=dnstap, forwarders={"with_bind9": True})


def test_nothing_to_watch_is_said_with_the_ways_to_name_it(tmp_path: Path) -> None:
    """An empty source would be silent for ever."""
    with pytest.raises(ConfigError, match=r"--dnstap .*--query-log.*--zones-of"):
        name_parts(tmp_path)
