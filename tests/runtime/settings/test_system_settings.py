"""All settings together: where data is kept, and which ports and sockets there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_directories
from solowire.runtime.settings import Settings, load
from solowire.runtime.settings.setting_paths import find_section, list_paths
from solowire.runtime.signing_secrets import load_secret


def test_the_data_directory_follows_xdg(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data goes where the desktop's rules say, below the home directory otherwise."""
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "xdg"))
    assert load().data_dir == place / "xdg" / "solowire"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(place))
    assert load().data_dir == place / ".local/share/solowire"


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
    assert load(shard={"port": 7000}).find_shard_port(3) == 7000
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


def settings_of(model: type[BaseModel] = Settings) -> Iterator[tuple[str, FieldInfo]]:
    """All of them, in all sections, by their own names."""
    for name, field in model.model_fields.items():
        section = find_section(field)
        if section is None:
            yield name, field
        else:
            yield from settings_of(section)


def test_every_setting_says_what_it_means() -> None:
    """`solowire config` is where settings are looked up: none of them stands there by its name alone."""
    assert [name for name, field in settings_of() if not field.description] == []


def test_every_setting_says_its_unit() -> None:
    """A number of seconds, milliseconds or bytes has its unit in its name; a rate is per second, a burst a count."""
    units = ("_s", "_ms", "_bytes", "_percent", "_per_s", "_per_core", "rate", "burst", "_per_address", "_per_user")
    named = [name for name, field in settings_of() if field.annotation is float and not name.endswith(units)]
    assert named == ["legacy_expiry_grace"]  # operators of old frontends were given that name


def test_every_section_says_what_it_is_for() -> None:
    """Its title on the page of settings is the first line of its docstring."""
    sections = [find_section(field) for field in Settings.model_fields.values()]
    assert [section for section in sections if section is not None and not (section.__doc__ or "").strip()] == []


def test_what_a_newcomer_sets_first_stands_alone() -> None:
    """These have no section, and their names stay."""
    flat = {path[0] for path in list_paths() if len(path) == 1}
    assert flat >= {
        *("data_dir", "host", "port", "shards", "secret", "accepted_secrets"),
        *("url", "token", "backplane", "roles_file"),
    }


def test_what_was_promised_is_the_default() -> None:
    """One connection of a user, 4413 after 30 s of a socket that takes nothing, and a state every 30 s."""
    settings = load()
    assert settings.limits.max_connections_per_user == 1
    assert settings.listen.write_timeout_s == 30
    assert settings.shard.conflation.interval_s == 30
    assert settings.shard.conflation.type_interval_s == {}
