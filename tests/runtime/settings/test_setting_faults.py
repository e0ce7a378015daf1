"""One line for each setting that is wrong, which names it as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solowire.runtime.settings import load
from solowire.runtime.settings.renamed_settings import RENAMED
from solowire.runtime.settings.setting_paths import list_paths
from tests.runtime.settings.loading import fault, toml


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eight"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("SHARDS", "0"),
        ("SHARDS", "257"),
        ("SESSION__HEARTBEAT_INTERVAL_S", "nan"),
        ("SESSION__HEARTBEAT_INTERVAL_S", "inf"),
        ("SESSION__HELLO_TIMEOUT_S", "0"),
        ("LOGGING__LEVEL", "loud"),
        ("SESSION__ON_DUPLICATE", "maybe"),
        ("SHARD__CREDIT_EVENTS", "1"),
        ("PUBLISH__TIMEOUT_S", "inf"),
        ("JOURNAL__DUPLICATE_WINDOW_S", "nan"),
        ("LISTEN__WRITE_TIMEOUT_S", "inf"),
        ("SHARD__REBALANCE_USERS_PER_S", "nan"),
        ("SESSION__MESSAGE_RATE", "nan"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_given(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is no number, or out of range, or unknown, is one line with the setting's name."""
    monkeypatch.setenv(f"SOLOWIRE_{name}", value)
    line = fault()
    assert f"SOLOWIRE_{name}" in line
    assert value in line


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wrong settings are two names in the one line, so that nobody has to try twice."""
    monkeypatch.setenv("SOLOWIRE_PORT", "eight")
    monkeypatch.setenv("SOLOWIRE_SHARDS", "many")
    line = fault()
    assert "SOLOWIRE_PORT" in line
    assert "SOLOWIRE_SHARDS" in line


def test_a_wrong_value_in_dotenv_is_named(place: Path) -> None:
    """A .env is checked like the environment."""
    (place / ".env").write_text("SOLOWIRE_PORT=eight\n")
    assert fault().startswith(".env: SOLOWIRE_PORT: ")


def test_a_wrong_value_in_the_file_is_named(place: Path) -> None:
    """The file's values are checked like any other."""
    line = fault(toml(place, "port = 'eight'\n[shard.flush]\nhigh_ms = -1\n"))
    assert "solowire.toml: port: " in line
    assert "solowire.toml: shard.flush.high_ms: " in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"SHARD__FLUSH__HIGH_MS": 200}, ["SOLOWIRE_SHARD__FLUSH__HIGH_MS", "shard.flush.normal_ms (by default)"]),
        ({"SHARD__FLUSH__NORMAL_MS": 5000}, ["SOLOWIRE_SHARD__FLUSH__NORMAL_MS", "shard.flush.low_ms (by default)"]),
        ({"SESSION__RECONNECT_MIN_MS": 30_000}, ["SOLOWIRE_SESSION__RECONNECT_MIN_MS", "session.reconnect_max_ms"]),
        ({"PORT": 65_530, "SHARDS": 8}, ["SOLOWIRE_PORT", "65530", "8 shards", "SOLOWIRE_SHARDS"]),
        ({"PUBLISH__MAX_REQUEST_BYTES": 1024}, ["SOLOWIRE_PUBLISH__MAX_REQUEST_BYTES", "publish.max_event_bytes"]),
        ({"PUBLISH__MAX_HELD_BYTES": 2**20}, ["SOLOWIRE_PUBLISH__MAX_HELD_BYTES", "publish.max_request_bytes"]),
        (
            {"PUBLISH__LAG_SOFT_S": 5.0, "PUBLISH__LAG_HARD_S": 5.0},
            ["SOLOWIRE_PUBLISH__LAG_SOFT_S must be below SOLOWIRE_PUBLISH__LAG_HARD_S"],
        ),
        ({"AUTH__ACCEPT_SECRET_TOKENS": "false"}, ["SOLOWIRE_AUTH__ACCEPT_SECRET_TOKENS", "auth.jwks"]),
        ({"AUTH__JWKS": "keys.json"}, ["auth.issuers (by default)", "SOLOWIRE_AUTH__JWKS"]),
        ({"BACKPLANE": "tcp://0.0.0.0:7400"}, ["SOLOWIRE_BACKPLANE:", "SOLOWIRE_BACKPLANE_BIND"]),
        ({"BACKPLANE": "tcp://[::]:7400"}, ["SOLOWIRE_BACKPLANE:", "SOLOWIRE_BACKPLANE_BIND"]),
        ({"BACKPLANE_BIND": "tcp://[::]:7400"}, ["SOLOWIRE_BACKPLANE_BIND", "backplane (by default)"]),
        ({"CURVE__SEED": "s" * 32, "CURVE__SEED_FILE": "x"}, ["SOLOWIRE_CURVE__SEED ", "SOLOWIRE_CURVE__SEED_FILE"]),
        (
            {"CURVE__SEED": "s" * 32, "CURVE__ROUTER_KEY": "x" * 40},
            ["SOLOWIRE_CURVE__SEED ", "SOLOWIRE_CURVE__ROUTER_KEY"],
        ),
        (
            {"CURVE__MEMBER_KEYS_FILE": "x", "CURVE__MEMBER_KEYS": "x" * 40},
            ["SOLOWIRE_CURVE__MEMBER_KEYS ", "SOLOWIRE_CURVE__MEMBER_KEYS_FILE"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named(options: dict[str, Any], words: list[str]) -> None:
    """Values that are fine alone and wrong together are one line with their names, as they were written."""
    line = fault(variables=options)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"SECRET": "short"}, ["16"]),
        ({"ACCEPTED_SECRETS": "long enough to be one,short"}, ["16"]),
        ({"ACCEPTED_SECRETS": ["a secret of this number: 1"] * 8}, ["7 are the most"]),
        ({"ACCEPTED_SECRETS": "["}, ["JSON"]),
        ({"AUTH__JWKS": "ftp://id.example/keys"}, ["ftp://id.example/keys"]),
        ({"AUTH__CLAIMS__SCOPE_MAPPING": {"zonez": "x"}}, ["zonez", "zones"]),
        ({"AUTH__CLAIMS__ROLE_MAPPING": "admin"}, ["as JSON"]),
        ({"GATEWAY__SHARD_URL": "ws://{hots}/ws"}, ["{host}"]),
        ({"GATEWAY__SHARD_URL": "ws://{host/ws"}, ["{host}"]),
        ({"GATEWAY__SHARD_URL": "ws://{}/ws"}, ["{host}"]),
        ({"GATEWAY__SHARD_URL": "ws://{host.x}/ws"}, ["{host}"]),
        ({"GATEWAY__SHARD_URL": "http://{host}:{port}/ws"}, ["wss://"]),
        ({"GATEWAY__SHARD_URL": "{host}:{port}/ws"}, ["wss://"]),
        ({"GATEWAY__SHARD_URL": "wss:///ws"}, ["wss://"]),
        ({"LISTEN__ADVERTISED_HOST": "http://10.0.0.5"}, ["10.0.0.5"]),
        ({"LISTEN__ADVERTISED_HOST": "10.0.0.5:8001"}, ["without"]),
        ({"LISTEN__ADVERTISED_HOST": "s 1"}, ["without"]),
        ({"LISTEN__ADVERTISED_HOST": "[fd00::1"}, ["without"]),
        ({"BACKPLANE": "http://router:7400"}, ["tcp://HOST:PORT", "ipc://"]),
        ({"BACKPLANE": "ipc://"}, ["tcp://HOST:PORT", "ipc://"]),
        ({"BACKPLANE": "tcp://router"}, ["port"]),
        ({"BACKPLANE": "tcp://router:0"}, ["port"]),
        ({"BACKPLANE": "tcp://router:70000"}, ["port"]),
        ({"BACKPLANE": "tcp://:7400"}, ["address or a name"]),
        ({"BACKPLANE": "tcp://fd00::1:7400"}, ["in brackets"]),
        ({"BACKPLANE": "tcp://[fd00::x]:7400"}, ["address or a name"]),
        ({"CURVE__SEED": "short"}, ["32"]),
        ({"CURVE__SECRET_KEY": "x" * 39}, ["40 characters", "`solowire keys`"]),
        ({"CURVE__ROUTER_KEY": "x" * 39}, ["40 characters", "`solowire keys`"]),
        ({"CURVE__MEMBER_KEYS": "x" * 40 + "," + "x" * 41}, ["number 2", "`solowire keys`"]),
        ({"BACKPLANE": "ipc://" + "x" * 200}, ["too long"]),
        ({"URL": "localhost:8000"}, ["http://"]),
        ({"URL": "http://[::1"}, ["http://"]),
        ({"SHARD__AGGREGATION__TYPE_EVENTS_PER_S": {"dns_query_log": -1}}, ["dns_query_log"]),
        ({"SHARD__CONFLATION__TYPE_INTERVAL_S": {"system_metrics": -1}}, ["system_metrics"]),
    ],
)
def test_a_value_that_means_nothing_is_named_with_the_way_out(options: dict[str, Any], words: list[str]) -> None:
    """What is no number that could be out of range is told how it is written."""
    line = fault(variables=options)
    [name] = options
    assert line.startswith(f"SOLOWIRE_{name}: ")
    assert all(word in line for word in words), line


def test_a_host_that_is_empty_in_the_file(place: Path) -> None:
    """There an empty text is one, other than in the environment."""
    assert "solowire.toml: listen.advertised_host: " in fault(toml(place, "[listen]\nadvertised_host = ''\n"))


def test_a_conflict_says_where_each_setting_stands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the file, one in .env, one by default: whoever mends it knows where to look."""
    (place / ".env").write_text("SOLOWIRE_SHARD__FLUSH__NORMAL_MS=50\n")
    line = fault(toml(place, "[shard.flush]\nhigh_ms = 60\n"))
    assert line == (
        f"shard.flush.high_ms (in {place / 'solowire.toml'}) ≤ SOLOWIRE_SHARD__FLUSH__NORMAL_MS (in .env) ≤ "
        "shard.flush.low_ms (by default) must hold"
    )


def test_a_wrong_option_is_named_as_it_is_typed() -> None:
    """Options of the command line have names of their own."""
    assert fault(data_dir=3).startswith("--data-dir: ")
    assert fault(shard={"port": 70_000}).startswith("--port: ")


OLD = [(old.upper(), new.replace(".", "__").upper()) for old, new in RENAMED.items()]


@pytest.mark.parametrize(("old", "new"), OLD)
@pytest.mark.parametrize("place_of", ["environment", ".env"])
def test_an_old_variable_is_refused_with_its_new_name(
    old: str, new: str, place_of: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes from an older version is told what to write, and the old name is not in force in silence."""
    if place_of == "environment":
        monkeypatch.setenv(f"SOLOWIRE_{old}", "1")
    else:
        (place / ".env").write_text(f"SOLOWIRE_{old}=1\n")
    wanted = f"SOLOWIRE_{old} is called SOLOWIRE_{new} now"
    assert fault() == (wanted if place_of == "environment" else f".env: {wanted}")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_in_the_file_is_refused_with_its_new_one(old: str, new: str, place: Path) -> None:
    """In the file it is told with the table that it stands in now."""
    section, _, name = new.rpartition(".")
    line = fault(toml(place, f"{old} = 1\n"))
    assert f"solowire.toml: {old} is called {new} ({name} in the table [{section}]) now" in line


def test_every_new_name_is_a_setting() -> None:
    """Nobody is sent to a name that is none, and no old name is one."""
    known = {".".join(path) for path in list_paths()}
    assert set(RENAMED.values()) <= known
    assert not known & set(RENAMED)


def test_a_setting_in_the_place_of_a_table(place: Path) -> None:
    """It is said that a table is wanted."""
    assert "solowire.toml: listen: it must be a table" in fault(toml(place, "listen = 8000\n"))
    assert "solowire.toml: limits.groups: " in fault(toml(place, "[limits]\ngroups = 3\n"))


@pytest.mark.parametrize(
    ("text", "wrong", "meant"),
    [
        ("prot = 8000", "prot", "port"),
        ("[shard.flush]\nhihg_ms = 3", "shard.flush.hihg_ms", "shard.flush.high_ms"),
        ("[shard]\nhigh_ms = 3", "shard.high_ms", "shard.flush.high_ms"),
        ("[session]\nheartbeat_s = 3", "session.heartbeat_s", "session.heartbeat_interval_s"),
        ("[journl]\nmax_age_s = 3", "journl", "journal"),
        ("[limits.connect]\nrate_per_usr = 3", "limits.connect.rate_per_usr", "limits.connect.rate_per_user"),
        ("[limits.groups.admin]\nwieght = 2", "limits.groups: admin.wieght", "weight"),
    ],
)
def test_an_unknown_setting_in_the_file_is_named(text: str, wrong: str, meant: str, place: Path) -> None:
    """A misspelt name is refused at any depth, with the file's name and the setting that is meant."""
    line = fault(toml(place, text))
    assert f"solowire.toml: {wrong} is no setting; did you mean {meant}?" in line


def test_an_unknown_setting_like_no_other_in_the_file(place: Path) -> None:
    """It is said where the known ones are listed."""
    assert "xyzzy is no setting; `solowire config` lists" in fault(toml(place, "[shard]\nxyzzy = 1\n"))
    assert "there are weight, reserved, limit" in fault(toml(place, "[limits.groups.a]\nxyzzy = 1\n"))


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a bad secret doesn't repeat it."""
    monkeypatch.setenv("SOLOWIRE_SECRET", "hunter2")
    assert "hunter2" not in fault()
    assert "hunter2" not in repr(load(secret="hunter2" * 3))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SOLOWIRE_PROT", "SOLOWIRE_PORT"),
        ("solowire_heartbeat", "SOLOWIRE_SESSION__HEARTBEAT_INTERVAL_S"),
        ("SOLOWIRE_SHARD_FLUSH_HIGH_MS", "SOLOWIRE_SHARD__FLUSH__HIGH_MS"),
        ("SOLOWIRE_SHARD__FLUSH__HIHG_MS", "SOLOWIRE_SHARD__FLUSH__HIGH_MS"),
        ("SOLOWIRE_HIGH_MS", "SOLOWIRE_SHARD__FLUSH__HIGH_MS"),
        ("SOLOWIRE_LIMITS__GROUPS__A", "SOLOWIRE_LIMITS__GROUPS"),
        ("SOLOWIRE_LIMITS__GROUP", "SOLOWIRE_LIMITS__GROUPS"),
    ],
)
@pytest.mark.parametrize("place_of", ["environment", "dotenv"])
def test_an_unknown_variable_is_refused_by_name(
    name: str, meant: str, place_of: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt variable would be a setting that is not in force: it is named, with the one that is meant."""
    if place_of == "environment":
        monkeypatch.setenv(name, "9000")
    else:
        (place / ".env").write_text(f"OTHERS=1\nexport {name}=9000\n")
    line = fault()
    assert name in line
    assert f"did you mean {meant}?" in line
    assert (".env" in line) is (place_of == "dotenv")


def test_an_unknown_variable_like_no_other_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing like it the line says where the known ones are listed."""
    monkeypatch.setenv("SOLOWIRE_QQVVXX", "")
    line = fault()
    assert "SOLOWIRE_QQVVXX" in line
    assert "`solowire config`" in line
    assert "did you mean" not in line


def test_unknown_and_wrong_ones_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mends one fault should not meet the next only then."""
    monkeypatch.setenv("SOLOWIRE_PROT", "9000")
    monkeypatch.setenv("SOLOWIRE_SHARDS", "many")
    line = fault()
    assert "SOLOWIRE_PROT" in line
    assert "SOLOWIRE_SHARDS" in line


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SHARD__AGGREGATION__TYPE_EVENTS_PER_S", {"dns_query_lgo": 5}, ["dns_query_lgo", "dns_query_log"]),
        ("SHARD__AGGREGATION__TYPE_EVENTS_PER_S", {"zone_created": 5}, ["zone_created", "durable"]),
        ("SHARD__CONFLATION__TYPE_INTERVAL_S", {"sytem_metrics": 5}, ["sytem_metrics", "system_metrics"]),
        ("SHARD__CONFLATION__TYPE_INTERVAL_S", {"rpz_hit": 5}, ["rpz_hit", "telemetry"]),
        ("LISTEN__ALLOWED_ORIGINS", ["app.example.com"], ["app.example.com", "https://"]),
        ("LISTEN__ALLOWED_ORIGINS", ["https://app.example.com/"], ["https://app.example.com"]),
    ],
)
def test_names_within_settings_are_checked(name: str, value: object, words: list[str]) -> None:
    """A setting for a type, a group or a site that doesn't exist would be in force for nothing."""
    line = fault(variables={name: value})
    assert f"SOLOWIRE_{name}: " in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize("token", ["é", "a b", "a\nb", "\udcff", "", " "])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    """A token that was copied wrongly is one line, and not shown."""
    line = fault(token=token)
    assert "token" in line
    assert not token.strip() or token not in line


@pytest.mark.parametrize(
    ("name", "value"), [("AUTH__JWKS", "ftp://keys.example"), ("LEGACY_SUNSET", "foo"), ("PORT", "eight")]
)
def test_a_wrong_value_is_shown_once(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fault itself, or behind it."""
    monkeypatch.setenv(f"SOLOWIRE_{name}", value)
    assert fault().count(value) == 1
