"""The catalogue: what it declares hangs together, and what it is asked to check is checked."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.model.access import View, redact
from solowire.model.catalog import FAMILY, Attribute, Catalog, EventType
from solowire.model.domain_names import canonical_name
from solowire.model.events import Delivery

DECLARED = [t for t in CATALOG.types if t.payload.struct is not None]
ADDRESSES = {"client", "client_ip", "tsig_key", "session_id", "user_agent", "path", "diff"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def named(name: str) -> EventType:
    found = CATALOG.get(name)
    assert found is not None
    return found


each_type = pytest.mark.parametrize("event_type", CATALOG.types, ids=lambda t: t.name)


@each_type
def test_says_what_it_is(event_type: EventType) -> None:
    """Every type has a category, a permission and a summary of one sentence, and its payload a docstring."""
    assert event_type.category in CATALOG.categories
    assert event_type.name in CATALOG.categories[event_type.category]
    assert event_type.permission.endswith(".read")
    assert event_type.summary.endswith(".")
    assert event_type.payload.struct is None or event_type.payload.struct.__doc__


@pytest.mark.parametrize("event_type", DECLARED, ids=lambda t: t.name)
def test_names_only_declared_fields(event_type: EventType) -> None:
    """What is sensitive, an attribute or part of a key is a field that the payload declares."""
    fields = event_type.field_names
    assert set(event_type.sensitive) <= fields
    assert {field for a in event_type.attributes for field in a.fields} <= fields
    assert set(event_type.key_fields) <= fields
    assert len({a.name for a in event_type.attributes}) == len(event_type.attributes)


@pytest.mark.parametrize("event_type", DECLARED, ids=lambda t: t.name)
def test_details_are_private_where_anything_is(event_type: EventType) -> None:
    """`details` is any object: a type that hides fields hides it too, or a publisher tells there what is hidden."""
    if event_type.sensitive and "details" in event_type.field_names:
        assert event_type.sensitive["details"] == "sensitive.details"


@each_type
def test_guards_what_is_private(event_type: EventType) -> None:
    """A field that tells who or where someone is never is without a permission of its own."""
    assert event_type.field_names & ADDRESSES <= set(event_type.sensitive)
    assert all(permission.startswith("sensitive.") for permission in event_type.sensitive.values())


@each_type
def test_only_state_has_keys(event_type: EventType) -> None:
    """Key fields are declared for state types only."""
    assert not event_type.key_fields or event_type.delivery is Delivery.state


@each_type
def test_schema_stands_alone(event_type: EventType) -> None:
    """Each schema is plain JSON, refers to nothing outside itself, and requires what the struct requires."""
    schema = event_type.make_schema()
    text = json.dumps(schema)
    for reference in text.split('"$ref": "')[1:]:
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/").split('"')[0] in schema["$defs"]
    if event_type.payload.struct is not None:
        definition = schema["$defs"][event_type.payload.struct.__name__]
        required = {f.encode_name for f in msgspec.structs.fields(event_type.payload.struct) if f.required}
        assert set(definition.get("required", ())) == required
        assert set(definition["properties"]) == event_type.field_names


def test_describe_is_plain_json() -> None:
    """The description lists every type, in order, as plain JSON."""
    described = json.loads(json.dumps(CATALOG.describe()))
    assert tuple(d["name"] for d in described) == (*CATALOG.names, FAMILY)
    zone = next(a for d in described if d["name"] == "dns_query_log" for a in d["attributes"])
    assert zone == {"name": "zone", "fields": ["zone", "query_domain"], "hierarchical": True, "indexed": True}


@pytest.mark.parametrize(
    ("name", "data", "path"),
    [
        ("zone_created", {"zone": 7}, "$.zone"),
        ("zone_created", {"zone": ""}, "$.zone"),
        ("record_updated", {"zone": "a.b", "name": "n", "type": "A", "before": {"ttl": -1}}, "$.before.ttl"),
        ("system_metrics", {"cpu_usage": 101}, "$.cpu_usage"),
        ("system_metrics", {"cpu_usage": "12"}, "$.cpu_usage"),
        ("health_alert", {"level": "loud", "message": "m"}, "$.level"),
        (
            "health_update",
            {"total_forwarders": 1, "forwarder_details": [{"id": 1, "status": None}]},
            "$.forwarder_details[0].status",
        ),
        (
            "dns_query_log",
            {"client_ip": "::1", "query_domain": "a", "query_type": "A", "client_port": 65536},
            "$.client_port",
        ),
        ("dns_query_stats", {"queries_per_second": 1, "rcodes": {"NOERROR": -1}}, "$.rcodes[...]"),
    ],
)
def test_a_wrong_field_names_its_path(name: str, data: dict[str, Any], path: str) -> None:
    """A value that doesn't fit is refused with its path, however deep it is."""
    with pytest.raises(msgspec.ValidationError) as caught:
        CATALOG.validate_data(named(name), data)
    assert str(caught.value).endswith(f"- at `{path}`")


def test_a_missing_field_is_named() -> None:
    """A required field that is missing is refused by name."""
    with pytest.raises(msgspec.ValidationError, match="missing required field `client_ip`"):
        CATALOG.validate_data(named("dns_query_log"), {"query_domain": "example.com", "query_type": "A"})


def test_no_key_shows_what_is_hidden() -> None:
    """The key of a state stands in its envelope, which is not redacted."""
    for event_type in CATALOG.types:
        assert not set(event_type.key_fields) & set(event_type.sensitive)


def test_attributes_come_from_the_payload() -> None:
    """Names become lower case without the last dot, other values text, and what is absent no attribute."""
    data = {"zone": "Example.COM.", "name": "WWW.example.com.", "type": "AAAA", "actor": "", "unheard": "of"}
    expected = {"zone": "example.com", "name": "www.example.com", "record_type": "AAAA"}
    assert CATALOG.validate_data(named("record_created"), data) == expected
    reload = {"success": True, "zone": None}
    assert CATALOG.validate_data(named("bind_reload"), reload) == {"success": "true"}
    assert CATALOG.validate_data(named("bulk_started"), {"operation_id": 12}) == {"operation_id": "12"}


def test_a_query_belongs_to_its_zone_or_else_its_domain() -> None:
    """The zone of a query is the one that the publisher gives, or else the name that was asked for."""
    query = {"client_ip": "192.0.2.1", "query_domain": "www.Example.com.", "query_type": "A"}
    log = named("dns_query_log")
    assert CATALOG.validate_data(log, query)["zone"] == "www.example.com"
    assert CATALOG.validate_data(log, {**query, "zone": "example.com"})["zone"] == "example.com"


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        (".", "."),
        ("COM.", "com"),
        (r"a\.example.com", r"a\046example.com"),
        (r"a\\.example.com", r"a\\.example.com"),
        (r"a\.", r"a\046"),
        ("a\\", "a\\"),
    ],
)
def test_a_dot_within_a_label_separates_nothing(given_name: str, expected: str) -> None:
    """A name with an escaped dot can't be taken for a name beneath the zone after that dot."""
    assert canonical_name(given_name) == expected


def test_custom_types_are_made_on_the_fly() -> None:
    """Any custom name is a type of its own, takes any object, and isn't kept."""
    custom = named("custom.shop.order-1_x")
    assert (custom.name, custom.permission, custom.delivery) == (
        "custom.shop.order-1_x",
        "custom.read",
        Delivery.durable,
    )
    assert CATALOG.validate_data(custom, {"zone": "A.B.", "topic": 5, "x": [1]}) == {"zone": "a.b", "topic": "5"}
    assert CATALOG.validate_data(custom, {"topic": 10**5000}) == {}
    assert custom.name not in CATALOG.names


@pytest.mark.parametrize(
    "name",
    ["", "nothing", "custom", "custom.", "custom.A", "custom.a b", "custom.a\n", "custom." + "a" * 101],
)
def test_unknown_names_are_unknown(name: str) -> None:
    """A name that is neither declared nor a well-formed custom one has no type."""
    assert CATALOG.get(name) is None


def test_the_family_has_no_events_of_its_own() -> None:
    """`custom.*` can be looked up and listed, but an event of that type is refused."""
    assert FAMILY not in CATALOG.names
    assert CATALOG.categories["custom"] == (FAMILY,)
    with pytest.raises(msgspec.ValidationError):
        CATALOG.validate_data(named(FAMILY), {})


@pytest.mark.parametrize("data", [None, [], "x", 1, True])
def test_data_is_an_object(data: object) -> None:
    """Whatever isn't an object is refused, for custom types too."""
    for name in ("custom.x", "system_status"):
        with pytest.raises(msgspec.ValidationError, match="Expected `object`"):
            CATALOG.validate_data(named(name), data)


def test_two_types_of_one_name_are_a_mistake() -> None:
    """A catalogue with a name twice is refused."""
    with pytest.raises(ValueError, match="same name"):
        Catalog((CATALOG.types[0], CATALOG.types[0]))


def test_an_attribute_means_the_same_everywhere() -> None:
    """Filter values are normalized as events' values are, and types that disagree on how are refused."""
    assert CATALOG.attributes["zone"].normalize("Example.COM.") == "example.com"
    assert CATALOG.attributes["query_type"].normalize("AAAA.") == "AAAA."
    assert named("zone_created").find_attribute("zone") == CATALOG.attributes["zone"]
    assert named("zone_created").find_attribute("client_ip") is None
    odd = msgspec.structs.replace(named("custom.x"), attributes=(Attribute("zone", ("zone",)),))
    with pytest.raises(ValueError, match="zone"):
        Catalog((named("zone_created"), odd))


def test_administrators_types_need_more() -> None:
    """What only administrators may see doesn't come with a category's ordinary permission."""
    permissions = {name: named(name).permission for name in ("system_alert", "gateway_stats", "audit_log")}
    assert permissions == {
        "system_alert": "admin.read",
        "gateway_stats": "admin.read",
        "audit_log": "audit.read",
    }


def test_redaction_knows_the_declared_fields() -> None:
    """A view without the permission sees neither the sensitive field nor fields that nobody declared."""
    log = named("dns_query_log")
    hidden = View(frozenset({"dns.read"})).hidden_fields(log)
    query = {"client_ip": "::1", "query_domain": "a", "query_type": "A", "client_mac": "00:00"}
    assert redact(query, log, hidden) == {"query_domain": "a", "query_type": "A"}


@given(st.data())
def test_any_object_is_taken_or_refused(data: st.DataObject) -> None:
    """Arbitrary JSON either fits, and gives text attributes, or raises ValidationError: nothing else."""
    event_type = data.draw(st.sampled_from((*CATALOG.types, named("custom.x"))))
    fields = st.sampled_from(sorted(event_type.field_names) or ["zone", "topic"])
    payload = data.draw(st.dictionaries(fields | st.text(max_size=10), json_values, max_size=8) | json_values)
    try:
        attributes = CATALOG.validate_data(event_type, payload)
    except msgspec.ValidationError:
        return
    assert set(attributes) <= {a.name for a in event_type.attributes}
    assert all(isinstance(value, str) and value for value in attributes.values())


def test_what_sources_tell_can_be_filtered_by_server() -> None:
    """A filter lets a type pass that has no such attribute: each that tells of a server has to have this one."""
    told = [
        *("dns_query_log", "dns_query_stats", "record_created", "record_changes", "zone_updated", "bind_status"),
        *("config_change", "bind_reload", "rpz_hit", "threat_detected", "security_alert", "forwarder_health"),
        *("forwarder_status_change", "health_update", "health_alert", "system_metrics", "source_status"),
        *("bulk_started", "bulk_progress", "bulk_completed", "bulk_failed"),
    ]
    lacking = [name for name in told if "server" not in {attribute.name for attribute in named(name).attributes}]
    assert lacking == []
