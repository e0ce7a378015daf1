"""Where settings come from, and which of them win."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.runtime.settings import load
from tests.runtime.settings.loading import fault, toml


def test_nothing_has_to_be_set() -> None:
    """A newcomer's start needs no configuration: loopback, port 8000, a shard per core."""
    settings = load()
    assert (settings.host, settings.port, settings.shards) == ("127.0.0.1", 8000, os.cpu_count() or 1)
    assert settings.secret is None


def test_later_sources_win(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of --config is below .env, that below the environment, and that below the command line."""
    config = toml(
        place, "port = 1001\nshards = 11\n[session]\nheartbeat_interval_s = 21\nmessage_rate = 31\nmessage_burst = 41\n"
    )
    (place / ".env").write_text("SOLOWIRE_PORT=1002\nSOLOWIRE_SHARDS=12\nSOLOWIRE_SESSION__HEARTBEAT_INTERVAL_S=22\n")
    monkeypatch.setenv("SOLOWIRE_PORT", "1003")
    monkeypatch.setenv("SOLOWIRE_SHARDS", "13")
    monkeypatch.setenv("SOLOWIRE_SESSION__MESSAGE_BURST", "43")
    settings = load(config, port=1004, shards=None)
    assert (settings.port, settings.shards) == (1004, 13)
    made = settings.session
    assert (made.heartbeat_interval_s, made.message_rate, made.message_burst) == (22.0, 31.0, 43.0)


def test_sources_are_merged_setting_by_setting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section may have one setting from each source: none of them hides the others' settings, at any depth."""
    config = toml(
        place,
        "[shard]\nmerge_memory = true\n[shard.flush]\nhigh_ms = 1\nnormal_ms = 2\nlow_ms = 3\n[limits]\nlease_s = 9\n",
    )
    (place / ".env").write_text("SOLOWIRE_SHARD__FLUSH__NORMAL_MS=20\nSOLOWIRE_SHARD__FLUSH__LOW_MS=30\n")
    monkeypatch.setenv("SOLOWIRE_SHARD__FLUSH__LOW_MS", "300")
    monkeypatch.setenv("SOLOWIRE_LIMITS__CONNECT__RATE", "7")
    settings = load(config, shard={"port": 7000})
    assert (settings.shard.port, settings.shard.merge_memory) == (7000, True)
    flush = settings.shard.flush
    assert (flush.high_ms, flush.normal_ms, flush.low_ms, flush.per_connection_ms) == (1, 20, 300, 1)
    assert (settings.limits.lease_s, settings.limits.connect.rate, settings.limits.connect.burst) == (9, 7, 2000)
    assert load(config, shard={"port": None}).shard.port is None


def test_a_table_of_values_is_one_setting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's groups take the place of the file's: who names groups says all of them."""
    config = toml(place, "[limits.groups.admin]\nreserved = 3\n")
    monkeypatch.setenv("SOLOWIRE_LIMITS__GROUPS", '{"Staff": {"weight": 2}}')
    assert list(load(config).limits.groups) == ["Staff"]


@pytest.mark.parametrize("name", ["solowire_shard__flush__high_ms", "Solowire_Shard__Flush__High_Ms"])
def test_the_case_of_a_variable_means_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was for flat settings."""
    monkeypatch.setenv(name, "7")
    assert load().shard.flush.high_ms == 7


def test_one_load_leaves_nothing_for_the_next(place: Path) -> None:
    """The file of one --config has no part in settings that are loaded without it."""
    assert load(toml(place, "port = 1001\n")).port == 1001
    assert load().port == 8000


def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's `SOLOWIRE_PORT=` means the default."""
    monkeypatch.setenv("SOLOWIRE_PORT", "")
    assert load().port == 8000


def test_settings_cant_be_changed() -> None:
    """They are read once and passed down as values."""
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1  # type: ignore[misc]


def test_others_settings_in_dotenv_are_left_alone(place: Path) -> None:
    """A .env is shared with other programs."""
    (place / ".env").write_text("DATABASE_URL=postgres://\nSOLOWIRE_PORT=8123\n")
    assert load().port == 8123


def test_an_unreadable_dotenv_is_one_line(place: Path) -> None:
    """A .env that is no text doesn't end in a traceback."""
    (place / ".env").write_bytes(b"SOLOWIRE_PORT=\xff\xfe\n")
    assert ".env" in fault()


def test_a_file_may_begin_as_editors_on_windows_begin_it(place: Path) -> None:
    """A byte order mark is no fault of the file's, and what is not ASCII is UTF-8 whatever the locale is."""
    path = place / "bom.toml"
    path.write_bytes("\ufeffshards = 3\n[auth]\nissuers = ['https://ü.example']\n".encode())
    assert load(path).shards == 3


def test_a_file_that_is_not_toml_is_named(place: Path) -> None:
    """A syntax error tells file and line."""
    line = fault(toml(place, "port = 8000\nport: 1\n"))
    assert "solowire.toml" in line
    assert "line 2" in line


def test_a_file_that_is_not_text_is_named(place: Path) -> None:
    """Bytes that are no UTF-8 are the file's fault."""
    path = place / "solowire.toml"
    path.write_bytes(b"\xff\xfe")
    assert "solowire.toml" in fault(path)


def test_a_missing_file_is_named(place: Path) -> None:
    """A --config that isn't there is not passed over."""
    line = fault(place / "missing.toml")
    assert "missing.toml" in line
    assert "No such file" in line


SERVICE_LINKS = {
    "SOLOWIRE_SERVICE_HOST": "10.96.3.4",
    "SOLOWIRE_SERVICE_PORT": "8000",
    "SOLOWIRE_GATEWAY_SERVICE_HOST": "10.96.3.4",
    "SOLOWIRE_GATEWAY_SERVICE_PORT_HTTP_WEB": "8000",
    "SOLOWIRE_GATEWAY_PORT": "tcp://10.96.3.4:8000",
    "SOLOWIRE_GATEWAY_PORT_8000_TCP": "tcp://10.96.3.4:8000",
    "SOLOWIRE_GATEWAY_PORT_8000_TCP_PROTO": "tcp",
    "SOLOWIRE_X_PORT_8000_TCP_PORT": "8000",
    "SOLOWIRE_X_PORT_8000_TCP_ADDR": "fd00::1",
    "SOLOWIRE_PORT_53_UDP": "udp://[fd00::1]:53",
}


def test_service_links_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes tells every pod of every service: one that is called solowire-… is no misspelt setting."""
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as logged:
        assert load().port == 8000
    assert logged == []


@pytest.mark.parametrize(("name", "value"), [("PORT", 8000)])
def test_a_service_link_in_the_place_of_a_setting_is_ignored(
    name: str, value: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service called `solowire` sets SOLOWIRE_PORT=tcp://…, which nobody meant as a port: it is told and left out."""
    monkeypatch.setenv(f"SOLOWIRE_{name}", "tcp://10.96.3.4:8000")
    with capture_logs() as logged:
        assert getattr(load(), name.lower()) == value
    assert [(entry["event"], entry["name"]) for entry in logged] == [("service_link_ignored", f"SOLOWIRE_{name}")]


@pytest.mark.parametrize("value", ["tcp://", "http://10.96.3.4:8000", "10.96.3.4:8000"])
def test_what_only_looks_like_a_service_link_is_a_wrong_port(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what Kubernetes writes is left out; whatever else is no port stays a fault."""
    monkeypatch.setenv("SOLOWIRE_PORT", value)
    assert "SOLOWIRE_PORT" in fault()
