"""The keys of a process, out of settings and files; what is missing or wrong is one line that names the setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from solowire.backplane.curve_keys import derive_member_keys, derive_router_keys, make_pair
from solowire.errors import ConfigError
from solowire.runtime.backplane_keys import load_member_keys, load_router_keys
from solowire.runtime.settings import Settings, load

TCP = "tcp://router.example:7400"
SEED, OTHER = "s" * 32, "o" * 32


def settings(place: Path, **curve: Any) -> Settings:
    """With these settings of the section; those of a file with the text that it is to have."""
    for name, text in curve.items():
        if name.endswith("_file") and isinstance(text, str):
            curve[name] = place / name
            (place / name).write_text(text)
    return load(backplane=TCP, curve=curve)


def test_ipc_needs_no_keys() -> None:
    """The directory keeps others out, as for `up` on one machine."""
    for loaded in (load(), load(backplane="ipc:///run/x"), load(curve={"seed": SEED})):
        assert load_router_keys(loaded) is None
        assert load_member_keys(loaded) is None


def test_pairs_of_keys_from_settings_and_from_files(place: Path) -> None:
    """What is in a file is what could stand in the setting; a file may end with a line's end, and have many lines."""
    router, member, other = make_pair(), make_pair(), make_pair()
    for curve in (
        {"secret_key": router[1], "member_keys": f"{member[0]},{other[0]}"},
        {"secret_key": router[1], "member_keys": [member[0], other[0]]},
        {"secret_key_file": f"{router[1]}\n", "member_keys_file": f"{member[0]}\n{other[0]}\n"},
    ):
        keys = load_router_keys(settings(place, **curve))
        assert keys is not None
        assert (keys.secret, keys.members) == (router[1], frozenset([member[0], other[0]]))
    for curve in (
        {"secret_key": member[1], "router_key": router[0]},
        {"secret_key_file": member[1], "router_key_file": f"{router[0]}\n"},
    ):
        found = load_member_keys(settings(place, **curve))
        assert found is not None
        assert (found.secret, found.routers) == (member[1], (router[0],))


def test_seeds_from_settings_and_from_files(place: Path) -> None:
    """One text for all; with two lines the first is in force, and the other is accepted."""
    for curve in ({"seed": f" {SEED}\n"}, {"seed_file": f"{SEED}\n"}):
        assert load_router_keys(settings(place, **curve)) == derive_router_keys([SEED])
        assert load_member_keys(settings(place, **curve)) == derive_member_keys([SEED])
    for curve in ({"seed": f"{SEED}\n{OTHER}"}, {"seed_file": f"{SEED}\n\n{OTHER}\n"}):
        assert load_router_keys(settings(place, **curve)) == derive_router_keys([SEED, OTHER])
        assert load_member_keys(settings(place, **curve)) == derive_member_keys([SEED, OTHER])


KEY = "x" * 40


@pytest.mark.parametrize(
    ("curve", "router_words", "member_words"),
    [
        ({}, ["CURVE__SECRET_KEY and SOLOWIRE_CURVE__MEMBER_KEYS"], ["SECRET_KEY and SOLOWIRE_CURVE__ROUTER_KEY"]),
        ({"secret_key": make_pair()[1]}, ["set SOLOWIRE_CURVE__MEMBER_KEYS "], ["set SOLOWIRE_CURVE__ROUTER_KEY "]),
        (
            {"router_key": KEY, "member_keys": KEY},
            ["set SOLOWIRE_CURVE__SECRET_KEY "],
            ["set SOLOWIRE_CURVE__SECRET_K"],
        ),
    ],
)
def test_what_is_missing_is_named(
    curve: dict[str, Any], router_words: list[str], member_words: list[str], place: Path
) -> None:
    """With `solowire keys` and the seed as the ways out."""
    for load_keys, words in ((load_router_keys, router_words), (load_member_keys, member_words)):
        with pytest.raises(ConfigError) as raised:
            load_keys(settings(place, **curve))
        line = str(raised.value)
        assert all(word in line for word in [*words, "`solowire keys`", "SOLOWIRE_CURVE__SEED"]), line


@pytest.mark.parametrize("index", [0, 1])
def test_the_own_key_in_the_place_of_the_others(index: int, place: Path) -> None:
    """The files of `solowire keys` taken for each other: nobody would ever get in, and each start looks well."""
    own = make_pair()
    for load_keys, name in ((load_router_keys, "member_keys"), (load_member_keys, "router_key")):
        for curve in (
            {"secret_key": own[1], name: [make_pair()[0], own[index]]},
            {"secret_key_file": own[1], f"{name}_file": f"{own[index]}\n"},
        ):
            with pytest.raises(ConfigError) as raised:
                load_keys(settings(place, **curve))
            line = str(raised.value)
            assert line.startswith(f"--{name.replace('_', '-')}")
            assert "this process's own" in line
            assert "member.pub" in line
            assert own[1] not in line


@pytest.mark.parametrize(
    ("curve", "word"),
    [
        ({"seed_file": "short"}, "32 characters"),
        ({"seed_file": ""}, "32 characters"),
        ({"seed_file": Path("/missing")}, "No such file"),
        ({"seed_file": Path("/dev/zero")}, "larger than any file of keys"),
        ({"secret_key_file": "x"}, "40 characters"),
        ({"secret_key_file": Path("/")}, "directory"),
        (
            {"secret_key_file": make_pair()[1], "member_keys_file": f"{KEY} x", "router_key_file": f"{KEY}\nx"},
            "number 2",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named_and_not_shown(curve: dict[str, Any], word: str, place: Path) -> None:
    """The setting, the path and what is wrong; never the text, which may be a secret."""
    loaded = settings(place, **curve)
    for load_keys in (load_router_keys, load_member_keys):
        with pytest.raises(ConfigError) as raised:
            load_keys(loaded)
        line = str(raised.value)
        assert re.match(r"--[a-z-]+-file /", line)
        assert word in line
        assert KEY not in line
