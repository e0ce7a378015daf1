"""The order in which zones are looked at; the zones that a server lists; the keys of a file."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.errors import ConfigError, StatisticsError
from solowire.sources.bind9.zone_listing import parse_listing
from solowire.sources.bind9.zones.tsig_keys import choose_key, load_keys, parse_keys
from solowire.sources.bind9.zones.zone_identity import ZoneName
from solowire.sources.bind9.zones.zone_queue import SPREAD, ZoneQueue
from tests.support.examples import examples

A, B = ZoneName("a"), ZoneName("b")


def test_announced_zones_come_first_and_none_twice_at_once() -> None:
    """A zone that is announced while it is looked at is looked at again afterwards."""
    queue = ZoneQueue(10.0, lambda: 0.0)
    queue.add_zone(A, 0.0)
    queue.add_zone(B, 0.0)
    queue.announce_zone(B)
    assert queue.find_next_at() == 0.0
    assert queue.take_due(0.0) == (B, True)
    queue.announce_zone(B)
    assert queue.take_due(0.0) == (A, False)
    assert queue.take_due(0.0) is None
    queue.finish_zone(B, 1.0)
    assert queue.take_due(1.0) == (B, True)
    queue.finish_zone(A, 1.0, wait_s=3.0)
    assert queue.take_due(3.9) is None
    assert queue.take_due(4.0) == (A, False)


def test_polls_are_spread() -> None:
    """By a part of the interval, and never later than it."""
    queue = ZoneQueue(10.0, lambda: 1.0)
    queue.add_zone(A, 0.0)
    assert queue.take_due(0.0) == (A, False)
    queue.finish_zone(A, 0.0)
    assert queue.find_next_at() == 10.0 * (1 - SPREAD)


@given(st.lists(st.tuples(st.sampled_from("adrtf"), st.sampled_from([A, B])), max_size=60))
@settings(max_examples=examples(300))
def test_whatever_happens_no_zone_is_lost_or_taken_twice(steps: list[tuple[str, ZoneName]]) -> None:
    """Added, announced, removed, taken and finished in any order."""
    queue = ZoneQueue(10.0, lambda: 0.5)
    known: set[ZoneName] = set()
    busy: set[ZoneName] = set()
    for number, (step, zone) in enumerate(steps):
        now = float(number)
        if step == "a" and zone not in known | busy:
            queue.add_zone(zone, now)
            known.add(zone)
        elif step == "d":
            queue.announce_zone(zone)
        elif step == "r":
            queue.remove_zone(zone)
            known.discard(zone)
        elif step == "t" and (taken := queue.take_due(now)) is not None:
            assert taken[0] in known - busy
            busy.add(taken[0])
        elif step == "f" and zone in busy:
            queue.finish_zone(zone, now)
            busy.discard(zone)
    for zone in busy:
        queue.finish_zone(zone, 100.0)
    found = set()
    while (taken := queue.take_due(1000.0)) is not None:
        found.add(taken[0])
    assert found == known


def test_the_zones_that_can_be_watched_are_found_in_a_listing() -> None:
    """Primaries and secondaries of class IN, in all views."""
    zones = [
        {"name": "Z.example", "class": "IN", "serial": 7, "type": "primary"},
        {"name": "s.example", "class": "IN", "type": "slave"},
        {"name": "hint", "class": "IN", "type": "hint"},
        {"name": "c.example", "class": "CH", "type": "primary"},
        {"name": "bad..name", "class": "IN", "type": "primary"},
        {"name": ".", "class": "IN", "type": "mirror", "serial": 9},
    ]
    found = parse_listing(msgspec.json.encode({"views": {"_default": {"zones": zones}, "_bind": {}}, "more": 1}))
    assert [(zone.zone, zone.serial) for zone in found] == [("z.example", 7), ("s.example", None), (".", 9)]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.text() | st.integers(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from(["views", "zones", "name", "_default"]), inner)
            ),
        ).map(msgspec.json.encode),
    )
)
@settings(max_examples=examples(300))
def test_any_listing_is_a_list_or_a_statistics_error(body: bytes) -> None:
    """Whatever the statistics channel answers."""
    try:
        parse_listing(body)
    except StatisticsError:
        return


def test_keys_are_read_in_both_forms(tmp_path: Path, logged: Callable[[], set[str]]) -> None:
    """As named.conf has them, with comments, and one a line; a file that everyone can read is said."""
    path = tmp_path / "keys"
    path.write_text(
        '// key "no" { secret "eA=="; };\n/* */ key "One." {\n algorithm HMAC-SHA512; # here\n secret "b25l"; };\n'
        "hmac-sha256:two:dHdv\nthree:dGhyZWU=\n"
    )
    path.chmod(0o600)
    load_keys(path)
    assert "key_file_open" not in logged()
    path.chmod(0o644)
    keys = load_keys(path)
    assert "key_file_open" in logged()
    assert [(name, key.algorithm.to_text(), key.secret) for name, key in keys.items()] == [
        ("one", "hmac-sha512.", b"one"),
        ("two", "hmac-sha256.", b"two"),
        ("three", "hmac-sha256.", b"three"),
    ]
    assert choose_key(keys, "TWO.", "x") == keys["two"]
    with pytest.raises(ConfigError, match=r"several keys \(one, three, two\); name one with x"):
        choose_key(keys, None, "x")
    with pytest.raises(ConfigError, match="there is no key 'four'"):
        choose_key(keys, "four", "x")


@pytest.mark.parametrize("form", ['key "k" {{ algorithm hmac-sha256; secret "{}"; }};', "hmac-sha256:k:{}"])
@pytest.mark.parametrize("secret", ["ab//cd==", "//+a/b//"])
def test_a_secret_may_look_like_a_comment(form: str, secret: str) -> None:
    """Base64 has slashes: one key of a hundred has two side by side."""
    [key] = parse_keys(f"// hmac-sha256:old:b25l\n# older:b25l\n{form.format(secret)}\n").values()
    assert key.secret == base64.b64decode(secret)


def test_other_statements_about_keys_are_none() -> None:
    """The file may be all of named.conf."""
    text = 'options { allow-transfer { key "k"; }; };\nkey k { secret "b25l"; algorithm hmac-sha512; };\nkey'
    assert [(name, key.secret) for name, key in parse_keys(text).items()] == [("k", b"one")]


@given(st.text(st.sampled_from('key {};"/*#\n:=ab secret algorithm'), max_size=200))
@settings(max_examples=examples(300))
def test_any_text_is_keys_or_a_documented_error(text: str) -> None:
    try:
        parse_keys(text)
    except ConfigError:
        return


@pytest.mark.parametrize(
    "text", ['key k { algorithm nonsense; secret "eA=="; };', 'key k { secret "%"; };', "md6:k:eA=="]
)
def test_a_key_that_is_none_is_said_so_without_its_secret(text: str) -> None:
    """One line, and nothing that should not be in a log."""
    with pytest.raises(ConfigError) as refused:
        parse_keys(text)
    assert "eA==" not in str(refused.value)


def test_a_key_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """Missing, or empty."""
    with pytest.raises(ConfigError, match=r"source\.zones\.key_file"):
        load_keys(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="tsig-keygen"):
        load_keys(tmp_path / "empty")
