"""What the old frontend gets of our events: golden files for each shape, and nothing that crashes the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.domains.dns.legacy.event_names import DEFAULTS, EventNames
from solowire.domains.dns.legacy.frame_data import MAX_FRAME_BYTES
from solowire.domains.dns.legacy.known_states import KnownStates
from solowire.domains.dns.legacy.translator import LegacyTranslator
from solowire.model.catalog import FAMILY
from solowire.model.events import Event, Priority
from tests.domains.dns.legacy.page import FIELDS, STATUS_FIELDS, read_frame
from tests.support.factories import event

NAMES = EventNames(CATALOG)
ALL = frozenset(NAMES.supported)
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
TYPES = [name for name in CATALOG.names if name != FAMILY] + ["custom.anything"]


def frames_of(translator: LegacyTranslator, *events: Event) -> list[dict[str, Any]]:
    """What a page reads of these, sent in one go."""
    fragments = [translator.translate_event(e, json.loads(e.data), at) for at, e in enumerate(events, 1)]
    joined = translator.join_fragments([f for f in fragments if f is not None])
    return [read_frame(text.decode()) for text in joined.split(b"\n") if text]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_frame_is_what_its_golden_file_says(path: Path) -> None:
    """Each shape that the page knows, to the last field; a change of one is seen here."""
    golden = json.loads(path.read_text())
    published = [event(e["type"], e["data"], id=f"event-{n}") for n, e in enumerate(golden["events"])]
    assert frames_of(LegacyTranslator(frozenset(golden["subscribed"]), NAMES), *published) == golden["frames"]


def test_each_row_of_the_contract_has_a_golden_file() -> None:
    """What the page reads is written down for each type, and for each of the three that it calls system_status."""
    frames = [frame for path in GOLDEN for frame in json.loads(path.read_text())["frames"]]
    assert set(FIELDS) <= {frame["type"] for frame in frames}
    assert {f["data"].get("type") for f in frames if f["type"] == "system_status"} == set(STATUS_FIELDS)


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
words = st.sampled_from(
    ["healthy", "down", "critical", "info", "query_update", "system_metrics", "2026-01-01T00:00:00Z"]
)
values = st.recursive(
    plain | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    """One of any type, with whatever in its fields, also what no schema would let in, and whatever left out."""
    name = draw(st.sampled_from(TYPES))
    fields = sorted({*CATALOG[name].field_names, "type", "cpu_usage", "level", "severity", "message"})
    data = draw(st.dictionaries(st.sampled_from(fields), values))
    return Event(
        id="id",
        type=name,
        data=json.dumps(data).encode(),
        priority=draw(st.sampled_from(Priority)),
        delivery=CATALOG[name].delivery,
        timestamp="2026-01-01T00:00:00Z",
        user=draw(st.sampled_from([None, "alice"])),
    )


@given(st.lists(any_event(), min_size=1, max_size=6))
def test_no_frame_crashes_the_page(events: list[Event]) -> None:
    """Whatever is published, and whatever of it a reader may see: the page goes on."""
    frames_of(LegacyTranslator(ALL, NAMES), *events)


@given(st.lists(any_event(), max_size=6), st.sampled_from(sorted(DEFAULTS)))
def test_only_names_that_are_subscribed_are_sent(events: list[Event], kind: str) -> None:
    """A socket of one kind hears nothing of another's."""
    frames = frames_of(LegacyTranslator(frozenset(DEFAULTS[kind]), NAMES), *events)
    assert {frame["type"] for frame in frames} <= set(DEFAULTS[kind])


def health(id: object, status: str, **more: Any) -> Event:
    return event("forwarder_health", {"forwarder_id": id, "status": status, **more}, user=more.pop("user", None))


def test_forwarders_are_counted_together() -> None:
    """Each event tells of one; the page wants to know of all, once for each batch."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES)
    [update] = frames_of(translator, health(1, "healthy"), health(2, "degraded"), health(3, "odd"))
    data = update["data"]
    counts = [data[f"{name}_forwarders"] for name in ("total", "active", "healthy", "degraded", "unknown", "unhealthy")]
    assert counts == [3, 2, 1, 1, 1, 0]
    assert [row["id"] for row in data["forwarder_details"]] == [1, 2, 3]


def test_a_summary_is_written_once_for_each_batch() -> None:
    """What events leave for it doesn't grow with the number of forwarders: a thousand of them tell of a thousand."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES)
    events = [health(n, "healthy") for n in range(100, 1_000)]
    fragments = [translator.translate_event(e, json.loads(e.data), at) or b"" for at, e in enumerate(events, 1)]
    assert {len(f) for f in fragments} == {len(fragments[0])}
    [update] = [read_frame(text.decode()) for text in translator.join_fragments(fragments).split(b"\n")]
    assert update["data"]["total_forwarders"] == 900
    assert update["id"] == events[-1].id


def test_a_replay_tells_of_the_forwarders_as_they_were() -> None:
    """A page of it is written in advance, and sent as its time comes."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES, ["replay"], is_replay=True)
    events = [health(1, "healthy"), health(1, "unhealthy")]
    fragments = [translator.translate_event(e, json.loads(e.data), at) or b"" for at, e in enumerate(events, 1)]
    assert [translator.read_timestamp(fragment) for fragment in fragments] == [e.timestamp for e in events]
    frames = [read_frame(translator.join_fragments([fragment]).decode()) for fragment in fragments]
    assert [f["data"]["forwarder_details"][0]["status"] for f in frames] == ["healthy", "unhealthy"]


def test_a_page_of_a_replay_does_not_grow_with_the_number_of_forwarders() -> None:
    """A thousand forwarders took a page's bytes with one event; now each leaves its own row, and they are told once."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES, ["replay"], is_replay=True)
    events = [health(n, "healthy") for n in range(100, 1_000)]
    fragments = [translator.translate_event(e, json.loads(e.data), at) or b"" for at, e in enumerate(events, 1)]
    assert {len(f) for f in fragments} == {len(fragments[0])}
    [early] = [read_frame(text.decode()) for text in translator.join_fragments(fragments[:300]).split(b"\n")]
    [late] = [read_frame(text.decode()) for text in translator.join_fragments(fragments[300:]).split(b"\n")]
    assert (early["data"]["total_forwarders"], late["data"]["total_forwarders"]) == (300, 900)
    assert late["id"] == events[-1].id


def test_a_change_of_status_is_an_event_of_its_own() -> None:
    """The page gets forwarder_status_change where our log only has measurements; not for the first one."""
    translator = LegacyTranslator(frozenset({"forwarder_status_change"}), NAMES)
    assert frames_of(translator, health(1, "healthy")) == []
    fragment = translator.translate_event(health(1, "unhealthy"), json.loads(health(1, "unhealthy").data), 9)
    assert fragment is not None
    change = read_frame(fragment.decode())
    assert (change["data"]["old_status"], change["data"]["new_status"]) == ("healthy", "unhealthy")


def test_older_events_change_nothing_that_is_known() -> None:
    """A page that asks for recent events, or is slow, has older ones written again: others see no change of status."""
    translator = LegacyTranslator(frozenset({"health_update", "forwarder_status_change"}), NAMES)
    old, new = health(1, "healthy"), health(1, "unhealthy")
    translator.translate_event(old, json.loads(old.data), 1)
    translator.translate_event(new, json.loads(new.data), 2)
    again = translator.translate_event(old, json.loads(old.data), 1)
    assert again is not None
    [frame] = [read_frame(text.decode()) for text in translator.join_fragments([again]).split(b"\n")]
    assert frame["type"] == "health_update"
    assert [row["status"] for row in frame["data"]["forwarder_details"]] == ["unhealthy"]


def test_an_event_for_one_user_is_not_remembered_for_others() -> None:
    """Readers with equal views share a translator: what is for one alone changes nothing for the rest."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES)
    own = event("forwarder_health", {"forwarder_id": 9, "status": "healthy"}, user="alice")
    [first] = frames_of(translator, own)
    assert first["data"]["total_forwarders"] == 1
    [second] = frames_of(translator, health(1, "healthy"))
    assert second["data"]["total_forwarders"] == 1


def test_a_host_keeps_what_an_event_does_not_repeat() -> None:
    """An event about one part of a host says neither that BIND has stopped nor that nothing is used."""
    translator = LegacyTranslator(frozenset({"system_status"}), NAMES)
    frames = frames_of(
        translator,
        event("system_status", {"host": "a", "cpu_usage": 7, "bind9_running": False}),
        event("system_status", {"host": "a", "component": "backup", "status": "failed"}),
        event("system_status", {"host": "b", "component": "backup", "status": "failed"}),
    )
    assert [(f["data"]["cpu_usage"], f["data"]["bind9_running"]) for f in frames] == [(7, False), (7, False), (0, True)]


def test_a_summary_is_no_larger_than_a_frame_may_be() -> None:
    """Each tiny event made a frame of 30 MB: all counts are told, of the rows those that are not healthy come first."""
    translator = LegacyTranslator(frozenset({"health_update"}), NAMES)
    events = [health(n, "healthy", forwarder_name="n" * 30_000) for n in range(900)]
    [update] = frames_of(translator, *events, health("late", "unhealthy"))
    data = update["data"]
    assert (data["total_forwarders"], data["healthy_forwarders"], data["unhealthy_forwarders"]) == (901, 900, 1)
    assert data["forwarder_details"][0]["id"] == "late"
    assert 100 < len(data["forwarder_details"]) == 901 - data["omitted_forwarders"]
    assert len(json.dumps(update, separators=(",", ":"))) < MAX_FRAME_BYTES


def test_a_published_summary_is_no_larger_either() -> None:
    """A row of 22 bytes becomes one of a hundred and fifty."""
    rows = event("health_update", {"total_forwarders": 9_000, "forwarder_details": [{"id": 1, "status": "up"}] * 1_300})
    [update] = frames_of(LegacyTranslator(frozenset({"health_update"}), NAMES), rows)
    assert update["data"]["total_forwarders"] == 9_000
    assert len(json.dumps(update, separators=(",", ":"))) < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("record_created", {"zone": "z", "name": "n", "type": "TXT", "after": {"value": "x" * 30_000}}),
        ("forwarder_status_change", {"forwarder_id": 1, "new_status": "up", "forwarder_name": "x" * 60_000}),
        ("system_status", {"host": "h", "blob": [[]] * 10_000, "text": "\1" * 5_000}),
    ],
)
def test_what_a_frame_says_twice_does_not_make_it_too_large(name: str, data: dict[str, Any]) -> None:
    """A name or value is given in both spellings."""
    [frame] = frames_of(LegacyTranslator(ALL, NAMES), event(name, data))
    assert len(json.dumps(frame, separators=(",", ":"))) < MAX_FRAME_BYTES


def test_undeclared_fields_of_a_host_go_along_and_are_forgotten() -> None:
    """They were repeated with each later event of the host, and kept for ever."""
    known = KnownStates()
    translator = LegacyTranslator(frozenset({"system_status"}), NAMES, known=known)
    frames = frames_of(translator, *(event("system_status", {"host": "a", f"f{n}": n}) for n in range(3)))
    assert [[name for name in frame["data"] if name.startswith("f")] for frame in frames] == [["f0"], ["f1"], ["f2"]]
    assert known.find_host("a") == {}


def test_those_of_one_view_know_the_same_and_are_each_told_of_a_change() -> None:
    """Ten old connections with ten wishes kept ten memories."""
    known = KnownStates()
    names = frozenset({"health_update", "forwarder_status_change"})
    translators = [LegacyTranslator(names | {more}, NAMES, known=known) for more in ("zone_created", "zone_deleted")]
    for at, e in enumerate((health(1, "healthy"), health(1, "unhealthy"), health(2, "healthy")), 1):
        written = [translator.translate_event(e, json.loads(e.data), at) or b"" for translator in translators]
        assert [b"forwarder_status_change" in fragment for fragment in written] == [at == 2] * 2
    for translator, fragment in zip(translators, written, strict=True):
        [update] = [read_frame(text.decode()) for text in translator.join_fragments([fragment]).split(b"\n")]
        assert update["data"]["total_forwarders"] == 2
