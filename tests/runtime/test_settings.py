"""Settings: where they come from, which of them win, and one line for each that is wrong."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from solowire.errors import ConfigError
from solowire.runtime.domain_loader import load_domain
from solowire.runtime.settings import Settings, load, load_secret, make_directories


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and no setting of this machine's."""
    for name in os.environ:
        if name.startswith("SOLOWIRE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fault(config: Path | None = None, **options: Any) -> str:
    """The one line that loading ends with."""
    with pytest.raises(ConfigError) as raised:
        load_domain(load(config, **options))
    line = str(raised.value)
    assert line
    assert "\n" not in line
    return line


def toml(place: Path, text: str) -> Path:
    path = place / "solowire.toml"
    path.write_text(text)
    return path


def test_nothing_has_to_be_set() -> None:
    """A newcomer's start needs no configuration: loopback, port 8000, a shard per core."""
    settings = load()
    assert (settings.host, settings.port, settings.shards) == ("127.0.0.1", 8000, os.cpu_count() or 1)
    assert settings.secret is None


def test_the_data_directory_follows_xdg(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data goes where the desktop's rules say, below the home directory otherwise."""
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "xdg"))
    assert load().data_dir == place / "xdg" / "solowire"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(place))
    assert load().data_dir == place / ".local/share/solowire"


def test_later_sources_win(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of --config is below .env, that below the environment, and that below the command line."""
    config = toml(place, "port = 1001\nshards = 11\nheartbeat_s = 21\nmessage_rate = 31\n")
    (place / ".env").write_text("SOLOWIRE_PORT=1002\nSOLOWIRE_SHARDS=12\nSOLOWIRE_HEARTBEAT_S=22\n")
    monkeypatch.setenv("SOLOWIRE_PORT", "1003")
    monkeypatch.setenv("SOLOWIRE_SHARDS", "13")
    settings = load(config, port=1004, shards=None)
    assert (settings.port, settings.shards, settings.heartbeat_s, settings.message_rate) == (1004, 13, 22.0, 31.0)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eight"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("SHARDS", "0"),
        ("SHARDS", "257"),
        ("HEARTBEAT_S", "nan"),
        ("HEARTBEAT_S", "inf"),
        ("HELLO_TIMEOUT_S", "0"),
        ("LOG_LEVEL", "loud"),
        ("ON_DUPLICATE", "maybe"),
        ("CREDIT", "1"),
        ("PUBLISH_TIMEOUT_S", "inf"),
        ("DUPLICATE_WINDOW_S", "nan"),
        ("STALLED_S", "inf"),
        ("MOVES_PER_S", "nan"),
        ("MESSAGE_RATE", "nan"),
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
    assert "SOLOWIRE_PORT" in fault()


def test_others_settings_in_dotenv_are_left_alone(place: Path) -> None:
    """A .env is shared with other programs."""
    (place / ".env").write_text("DATABASE_URL=postgres://\nSOLOWIRE_PORT=8123\n")
    assert load().port == 8123


def test_an_unreadable_dotenv_is_one_line(place: Path) -> None:
    """A .env that is no text doesn't end in a traceback."""
    (place / ".env").write_bytes(b"SOLOWIRE_PORT=\xff\xfe\n")
    assert ".env" in fault()


def test_an_unknown_setting_in_the_file_is_named(place: Path) -> None:
    """A misspelt name in the file of --config is refused, with the file's name."""
    line = fault(toml(place, "prot = 8000\n"))
    assert "'prot'" in line
    assert "solowire.toml" in line


def test_a_file_may_begin_as_editors_on_windows_begin_it(place: Path) -> None:
    """A byte order mark is no fault of the file's, and what is not ASCII is UTF-8 whatever the locale is."""
    path = place / "bom.toml"
    path.write_bytes("\ufeffshards = 3\ntoken_issuers = ['https://ü.example']\n".encode())
    assert load(path).shards == 3


def test_a_misspelt_part_of_a_group_is_told_with_what_was_meant(place: Path) -> None:
    """It is refused by its name."""
    line = fault(toml(place, "groups = {admin = {wieght = 2}}"))
    assert "WIEGHT" in line
    assert "did you mean 'weight'?" in line


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


def test_a_wrong_value_in_the_file_is_named(place: Path) -> None:
    """The file's values are checked like any other."""
    assert "PORT" in fault(toml(place, "port = 'eight'\n"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flush_high_ms": 200}, ["flush_high_ms", "flush_normal_ms"]),
        ({"flush_normal_ms": 5000}, ["flush_normal_ms", "flush_low_ms"]),
        ({"reconnect_min_ms": 30_000}, ["reconnect_min_ms", "reconnect_max_ms"]),
        ({"port": 65_530, "shards": 8}, ["65530", "8 shards"]),
        ({"secret": "short"}, ["secret", "16"]),
        ({"shard_url": "ws://{hots}/ws"}, ["shard_url", "{host}"]),
        ({"shard_url": "ws://{host/ws"}, ["shard_url"]),
        ({"shard_url": "ws://{}/ws"}, ["shard_url"]),
        ({"shard_url": "ws://{host.x}/ws"}, ["shard_url"]),
        ({"shard_url": "http://{host}:{port}/ws"}, ["shard_url", "wss://"]),
        ({"shard_url": "{host}:{port}/ws"}, ["shard_url", "wss://"]),
        ({"shard_url": "wss:///ws"}, ["shard_url", "wss://"]),
        ({"advertise_host": "http://10.0.0.5"}, ["advertise_host", "10.0.0.5"]),
        ({"advertise_host": "10.0.0.5:8001"}, ["advertise_host", "without"]),
        ({"advertise_host": "s 1"}, ["advertise_host"]),
        ({"advertise_host": ""}, ["advertise_host"]),
        ({"backplane": "tcp://0.0.0.0:9000"}, ["backplane", "CURVE"]),
        ({"backplane": "ipc://" + "x" * 200}, ["backplane", "too long"]),
        ({"url": "localhost:8000"}, ["url", "http://"]),
        ({"url": "http://[::1"}, ["url"]),
        ({"recent_bytes": 2**20, "event_max_bytes": 60 * 1024, "publish_max_bytes": 1024}, ["publish_max_bytes"]),
        ({"publish_held_bytes": 2**20}, ["publish_held_bytes", "publish_max_bytes"]),
        ({"lag_soft_s": 5.0, "lag_hard_s": 5.0}, ["lag_soft_s", "lag_hard_s"]),
        ({"telemetry_types_per_s": {"dns_query_log": -1}}, ["telemetry_types_per_s", "dns_query_log"]),
        ({"state_intervals_s": {"system_metrics": -1}}, ["state_intervals_s", "system_metrics"]),
    ],
)
def test_settings_that_contradict_each_other_are_named(options: dict[str, Any], words: list[str]) -> None:
    """Values that are fine alone and wrong together are one line with their names."""
    line = fault(**options)
    assert all(word in line.lower() or word in line for word in words), line


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line about a bad secret doesn't repeat it."""
    monkeypatch.setenv("SOLOWIRE_SECRET", "hunter2")
    assert "hunter2" not in fault()
    assert "hunter2" not in repr(load(secret="hunter2" * 3))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SOLOWIRE_PROT", "SOLOWIRE_PORT"),
        ("solowire_heartbeat", "SOLOWIRE_HEARTBEAT_S"),
        ("SOLOWIRE_GROUPS__A", "GROUPS"),
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
    assert f"did you mean {meant}" in line or meant in line
    assert (".env" in line) is (place_of == "dotenv")


def test_an_unknown_variable_like_no_other_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing like it the line says where the known ones are listed."""
    monkeypatch.setenv("SOLOWIRE_XYZZY", "")
    line = fault()
    assert "SOLOWIRE_XYZZY" in line
    assert "`solowire config`" in line
    assert "did you mean" not in line


def test_unknown_and_wrong_ones_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever mends one fault should not meet the next only then."""
    monkeypatch.setenv("SOLOWIRE_PROT", "9000")
    monkeypatch.setenv("SOLOWIRE_SHARDS", "many")
    line = fault()
    assert "SOLOWIRE_PROT" in line
    assert "SOLOWIRE_SHARDS" in line


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


@pytest.mark.parametrize(("name", "value"), [("PORT", 8000), ("ROUTER_PORT", None), ("SHARD_API_PORT", None)])
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"telemetry_types_per_s": {"dns_query_lgo": 5}}, ["telemetry_types_per_s", "dns_query_lgo", "dns_query_log"]),
        ({"telemetry_types_per_s": {"zone_created": 5}}, ["telemetry_types_per_s", "zone_created", "durable"]),
        ({"state_intervals_s": {"sytem_metrics": 5}}, ["state_intervals_s", "sytem_metrics", "system_metrics"]),
        ({"state_intervals_s": {"rpz_hit": 5}}, ["state_intervals_s", "rpz_hit", "telemetry"]),
        ({"allowed_origins": ["app.example.com"]}, ["allowed_origins", "app.example.com", "https://"]),
        ({"allowed_origins": ["https://app.example.com/"]}, ["allowed_origins", "https://app.example.com"]),
    ],
)
def test_names_within_settings_are_checked(options: dict[str, Any], words: list[str]) -> None:
    """A setting for a type, a group or a site that doesn't exist would be in force for nothing."""
    line = fault(**options)
    assert all(word in line for word in words), line


def test_without_a_home_only_what_needs_the_data_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user id that nobody knows has no home: who has a token or a secret needs none."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert load_secret(load(secret="a secret of its own, long enough"), create=False)[0].startswith("a secret")
    for needs in (
        make_directories,
        lambda settings: load_secret(settings, create=False),
        lambda s: s.backplane_address,
    ):
        with pytest.raises(ConfigError, match=r"home directory.*--data-dir"):
            needs(load())
    assert load(data_dir=Path("data")).run_dir == Path("data/run")


def test_ports_of_shards_follow_the_gateways() -> None:
    """Shard i listens on port + 1 + i, on its own port if it has one, and 0 stays 0."""
    assert [load(port=9000).find_shard_port(i) for i in (0, 1, 5)] == [9001, 9002, 9006]
    assert load(shard_port=7000).find_shard_port(3) == 7000
    assert load(port=0).find_shard_port(3) == 0


def test_the_sockets_address_is_in_the_data_directory(place: Path) -> None:
    """Two systems with two data directories never meet."""
    assert load(data_dir=place / "a").backplane_address == f"ipc://{place}/a/run/router"
    assert load(data_dir=Path("b")).backplane_address == f"ipc://{place}/b/run/router"
    assert load(backplane="ipc:///run/solowire/router").backplane_address == "ipc:///run/solowire/router"


def test_a_path_too_long_for_a_unix_socket_is_one_line(place: Path) -> None:
    """The kernel's limit of 107 bytes is told as what it is, with the way out."""
    settings = load(data_dir=place / ("x" * 100))
    with pytest.raises(ConfigError, match=r"too long for a unix socket.*shorter"):
        _ = settings.backplane_address


def test_the_sockets_directory_is_closed_to_others(place: Path) -> None:
    """Whoever could open the sockets could publish: mode 0700, also where it was open before."""
    settings = load(data_dir=place / "data")
    settings.run_dir.mkdir(parents=True)
    settings.run_dir.chmod(0o755)
    make_directories(settings)
    assert stat.S_IMODE(settings.run_dir.stat().st_mode) == 0o700


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


def test_every_setting_says_what_it_means() -> None:
    """`solowire config` is where settings are looked up: none of them stands there by its name alone."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("token", ["é", "a b", "a\nb", "\udcff", "", " "])
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    """A token that was copied wrongly is one line, and not shown."""
    line = fault(token=token)
    assert "token" in line
    assert not token.strip() or token not in line


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8,2001:db8::/32", " 10.0.0.0/8 , 2001:db8::/32 ", '["10.0.0.0/8", "2001:db8::/32"]']
)
def test_proxies_are_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Networks in the environment need no brackets and quotes, and may have them."""
    monkeypatch.setenv("SOLOWIRE_TRUSTED_PROXIES", text)
    assert load().trusted_proxies == ["10.0.0.0/8", "2001:db8::/32"]


def test_proxies_in_a_file(place: Path) -> None:
    """In TOML they are a list."""
    assert load(toml(place, 'trusted_proxies = ["10.1.2.3"]\n')).trusted_proxies == ["10.1.2.3"]
    assert load(toml(place, "trusted_proxies = []\n")).trusted_proxies == []


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "10.0.0.0/8, everyone", "10.0.0.0/33"])
def test_a_proxy_that_is_no_network(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is no network stops the start with one line that names the setting and shows how it is written."""
    monkeypatch.setenv("SOLOWIRE_TRUSTED_PROXIES", text)
    line = fault()
    assert "trusted_proxies" in line
    assert "10.0.0.0/8" in line


@pytest.mark.parametrize(
    "text", ["*", "null", "https://app.example", "http://dev.example:3000,https://[::1]:8443", "app+x://localhost"]
)
def test_origins_are_written_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """One or more, all, or pages that have none."""
    monkeypatch.setenv("SOLOWIRE_ALLOWED_ORIGINS", text)
    assert load().allowed_origins == text.split(",")


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example/",
        "https://App.example",
        "HTTPS://app.example",
        "app.example",
        "https://*.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://user@app.example",
        "https://app.example,other",
        "https://",
    ],
)
def test_an_origin_that_would_never_match(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It stops the start with one line that names the setting and shows how it is written, and is no riddle later."""
    monkeypatch.setenv("SOLOWIRE_ALLOWED_ORIGINS", text)
    line = fault()
    assert "allowed_origins" in line
    assert "https://app.example.com" in line


def test_every_setting_says_its_unit() -> None:
    """A number of seconds, milliseconds or bytes has its unit in its name; a rate is per second, a burst a count."""
    units = ("_s", "_ms", "_bytes", "_per_s", "_rate", "_burst", "_per_address", "_per_user")
    for name, field in Settings.model_fields.items():
        if field.annotation is float:
            assert name.endswith(units), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": {"admin": {"reserved": 11}}}, ["groups", "reserve", "max_connections"]),
        ({"groups": {"a": {"reserved": 6}, "b": {"reserved": 5}}}, ["11 slots", "max_connections"]),
        ({"groups": {"a": {"reserved": 3, "limit": 2}}}, ["'a'", "reserved", "limit"]),
        ({"groups": {"a": {"limit": 11}}}, ["'a'", "11", "max_connections"]),
        ({"max_connections_per_shard": 11}, ["max_connections_per_shard", "max_connections"]),
        ({"max_connections_per_user": 11}, ["max_connections_per_user", "max_connections"]),
        ({"max_connections_per_address": 11}, ["max_connections_per_address", "max_connections"]),
        ({"groups": {"a": {"weight": 0}}}, ["GROUPS", "WEIGHT"]),
        ({"groups": {"a": {"wieght": 2}}}, ["GROUPS", "WIEGHT"]),
    ],
)
def test_limits_that_contradict_each_other_are_one_line(options: dict[str, Any], words: list[str]) -> None:
    """A reserve above a limit, or any limit above the global one, stops the start, and says what to change."""
    line = fault(max_connections=10, **options)
    assert all(word in line for word in words), line


def test_what_was_promised_is_the_default() -> None:
    """One connection of a user, 4413 after 30 s of a socket that takes nothing, and a state every 30 s."""
    settings = load()
    assert (settings.max_connections_per_user, settings.stalled_s, settings.state_interval_s) == (1, 30, 30)
    assert settings.state_intervals_s == {}


def test_administrators_have_a_reserve_unless_something_else_is_said() -> None:
    """By default a few slots are administrators' own: a tenth or less, one at least, what the other reserves leave."""

    def reserved(**options: Any) -> int:
        return load(**options).groups_in_force["admin"].reserved

    assert reserved() == 16
    assert reserved(max_connections=50) == 5
    assert reserved(max_connections=2) == 1
    assert reserved(max_connections=50, groups={"operator": {"reserved": 48}}) == 2
    assert reserved(group_by="tenant") == 16
    assert reserved(groups={"admin": {"limit": 3}}) == 3
    assert reserved(groups={"admin": {"reserved": 0}}) == 0
    heavy = load(groups={"admin": {"weight": 2}}).groups_in_force["admin"]
    assert (heavy.weight, heavy.reserved) == (2.0, 16)
    assert load(max_connections=1).groups_in_force == {}
