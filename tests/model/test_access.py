"""Who sees what: views only ever take away, and roles come from files that are right or refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.fanout.recent_log import Entry
from solowire.model.access import PUBLISH, ROLES, Identity, View, find_group, is_granted, make_view, parse_roles, redact
from solowire.model.catalog import EventType
from solowire.model.events import Event, Priority
from solowire.protocol.messages import Codec
from tests.support.examples import examples

DECLARED = [t for t in CATALOG.types if t.payload.struct is not None]
PERMISSIONS = sorted(
    {t.permission for t in CATALOG.types}
    | {p for t in CATALOG.types for p in t.sensitive.values()}
    | {"*", "sensitive.*", "dns.*", "admin", PUBLISH}
)

views = st.frozensets(st.sampled_from(PERMISSIONS), max_size=6).map(View)


@st.composite
def payloads(draw: st.DrawFn) -> tuple[EventType, dict[str, Any]]:
    """A declared type, and an object that has some of its fields and some that it does not declare."""
    event_type = draw(st.sampled_from(DECLARED))
    fields = draw(st.lists(st.sampled_from(sorted(event_type.field_names)), max_size=6, unique=True))
    others = draw(st.lists(st.text(min_size=1, max_size=8), max_size=3, unique=True))
    return event_type, {name: f"value of {name}" for name in (*fields, *others)}


def shows(view: View, permission: str) -> bool:
    """The rule of permissions in other words than the code's, to judge it by."""
    kind = permission.split(".", maxsplit=1)[0]
    return bool(view.permissions & {"*", permission, f"{kind}.*"})


@given(payloads(), views)
@settings(deadline=None, max_examples=examples(200))
def test_redaction_never_leaks(payload: tuple[EventType, dict[str, Any]], view: View) -> None:
    """No field that a view may not see, and none that nobody has declared, survives redaction."""
    event_type, data = payload
    kept = redact(data, event_type, view.hidden_fields(event_type))
    allowed = {
        f
        for f in event_type.field_names
        if shows(view, event_type.sensitive.get(f, "")) or f not in event_type.sensitive
    }
    expected = {name: value for name, value in data.items() if name in allowed}
    assert kept == (expected or None)


@given(payloads(), views, st.sampled_from(Codec))
@settings(deadline=None, max_examples=examples(100))
def test_no_frame_holds_what_is_hidden(payload: tuple[EventType, dict[str, Any]], view: View, codec: Codec) -> None:
    """The bytes that go to a client hold no trace of a hidden value, in either codec."""
    event_type, data = payload
    hidden = view.hidden_fields(event_type)
    secret = {name: f"{value} SECRET" if name in hidden else value for name, value in data.items()}
    event = Event("id", event_type.name, json.dumps(secret).encode(), Priority.normal, event_type.delivery, "now")
    fragment = Entry(1, event, event_type).get_fragment(codec, hidden)
    assert fragment is None or b"SECRET" not in fragment


def test_a_redaction_that_leaves_nothing_sends_nothing() -> None:
    """An event of which a user may see no field is not sent to them as an empty object."""
    event_type = CATALOG["dns_query_log"]
    hidden = View(frozenset({"dns.read"})).hidden_fields(event_type)
    assert redact({"client_ip": "10.0.0.1", "undeclared": 1}, event_type, hidden) is None
    assert redact({}, event_type, hidden) is None


def test_redaction_leaves_the_original_alone() -> None:
    """Redacting for one user takes nothing away from the next."""
    event_type = CATALOG["dns_query_log"]
    data = {"client_ip": "10.0.0.1", "query_domain": "example.com"}
    assert redact(data, event_type, frozenset({"client_ip"})) == {"query_domain": "example.com"}
    assert data == {"client_ip": "10.0.0.1", "query_domain": "example.com"}


@pytest.mark.parametrize(
    ("permissions", "wanted", "granted"),
    [
        (("*",), "admin.read", True),
        (("dns.read",), "dns.read", True),
        (("dns.*",), "dns.read", True),
        (("dns.*",), "dns.*", True),
        (("sensitive.*",), "sensitive.client_ip", True),
        (("dns.*",), "dnssec.read", False),
        (("dns.*",), "dns", False),
        (("dns.read",), "dns.*", False),
        (("dns.read",), "dns.read.more", False),
        (("dns.*",), "*", False),
        (("d*",), "dns.read", False),
        (("",), "dns.read", False),
        ((), "dns.read", False),
    ],
)
def test_wildcards_grant_what_they_say(permissions: tuple[str, ...], wanted: str, granted: bool) -> None:
    """`dns.*` grants everything of DNS and nothing beside it, and nothing but `*` grants all."""
    assert is_granted(permissions, wanted) is granted
    assert Identity("alice", "viewer", permissions).has_permission(wanted) is granted
    assert make_view(Identity("alice", "viewer", permissions)).has_permission(wanted) is granted


def test_a_viewer_sees_no_admin_types_and_no_sensitive_field() -> None:
    """Someone who may only look sees no type for administrators, and no address, key, path or session."""
    viewer = make_view(Identity("alice", "viewer", ROLES["viewer"].permissions))
    seen = [t for t in CATALOG.types if viewer.has_permission(t.permission)]
    assert {"gateway_stats", "system_alert", "user_login", "audit_log"}.isdisjoint(t.name for t in seen)
    assert {"record_created", "system_metrics", "custom.*"} <= {t.name for t in seen}
    assert all(viewer.hidden_fields(t) == set(t.sensitive) for t in seen)
    assert not viewer.has_permission(PUBLISH)


def test_an_operator_sees_the_sensitive_but_not_the_admins() -> None:
    """Someone who operates DNS sees addresses, and still nothing that is for administrators or auditors."""
    operator = make_view(Identity("olga", "operator", ROLES["operator"].permissions))
    assert all(not operator.hidden_fields(t) for t in CATALOG.types)
    assert not operator.has_permission("admin.read")
    assert not operator.has_permission("audit.read")


def test_an_admin_sees_everything() -> None:
    """Nothing is kept from an administrator."""
    admin = make_view(Identity("root", "admin", ROLES["admin"].permissions))
    assert all(admin.has_permission(t.permission) and not admin.hidden_fields(t) for t in CATALOG.types)


def test_equal_rights_make_equal_views() -> None:
    """Users with the same rights share a view, in whatever order their tokens name them, and so share frames."""
    one = Identity("a", "viewer", ("dns.read", "bulk.read"), {"zone": ("b.org", "a.org"), "host": ("x",)})
    two = Identity("b", "other", ("bulk.read", "dns.read"), {"host": ("x", "x"), "zone": ("a.org", "b.org")})
    assert make_view(one) == make_view(two)
    assert hash(make_view(one)) == hash(make_view(two))
    narrower = msgspec.structs.replace(two, scopes={"zone": ("a.org",)})
    assert make_view(narrower) != make_view(two)


def test_roles_come_from_a_file() -> None:
    """An operator's own roles replace the built-in ones."""
    roles = parse_roles(
        '[roles.noc]\npermissions = ["dns.*"]\ndefaults = ["dns.*"]\n'
        "[roles.bot]\npermissions = []\nmay_connect = false\n",
        "roles.toml",
    )
    assert set(roles) == {"noc", "bot"}
    assert roles["noc"].permissions == ("dns.*",)
    assert roles["noc"].defaults == ("dns.*",)
    assert roles["noc"].may_connect
    assert not roles["bot"].may_connect


@pytest.mark.parametrize(
    "text",
    [
        "",
        "roles = 3",
        "[roles]",
        "[roles.noc]",
        "[roles.noc]\npermissions = 'dns.*'",
        "[roles.noc]\npermissions = [1]",
        "[roles.noc]\npermissions = []\nmay_connect = 'yes'",
        "[roles.noc]\npermissions = []\nmay_conect = false",
        "[role.noc]\npermissions = []",
        "[roles.noc]\npermissions = []\n[roles.noc]\npermissions = []",
        "[roles.noc\n",
        "[roles.noc]\npermissions = ['']",
        "[roles.noc]\npermissions = ['dns.read', ' ']",
        "[roles.noc]\npermissions = ['dns.read ']",
        "[roles.noc]\npermissions = ['.*']",
        "[roles.noc]\npermissions = ['dns*']",
        "[roles.noc]\npermissions = ['*.read']",
        "[roles.noc]\npermissions = ['dns.*.read']",
        "[roles.noc]\npermissions = ['**']",
        "[roles.noc]\npermissions = ['dns.read', 'dns.']",
        "[roles.'']\npermissions = ['dns.read']",
        "[roles.' ']\npermissions = ['dns.read']",
        "[roles.noc]\npermissions = ['dns.read']\nscopes = {zones = ['']}",
        "roles = \x00",
        "[roles.noc]\npermissions = [\n'dns.*'\n'x'\n",
    ],
)
def test_a_wrong_roles_file_is_one_line(text: str) -> None:
    """A mistake in the file of roles stops the start with one line that names the file, and grants nothing."""
    with pytest.raises(ConfigError) as caught:
        parse_roles(text, "roles.toml")
    assert "roles.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_permission_that_is_none_is_named() -> None:
    """The line says of which role it is, how it is written, and that scopes belong into tokens."""
    with pytest.raises(ConfigError, match=r"roles\.toml: the role 'noc' has the permission 'dns\*'.*category\.\*"):
        parse_roles("[roles.noc]\npermissions = ['dns*']", "roles.toml")
    with pytest.raises(ConfigError, match=r"unknown key 'scopes' in \[roles\.noc\]; scopes stand in tokens"):
        parse_roles("[roles.noc]\npermissions = []\nscopes = {zones = ['a.org']}", "roles.toml")


@pytest.mark.parametrize("group_by", ["role", "tenant"])
@pytest.mark.parametrize("permission", ["admin", "*"])
def test_who_may_administer_is_in_the_group_of_administrators(group_by: str, permission: str) -> None:
    """Their slots are kept for whoever may administer, however the role is called and whosever user it is."""
    assert find_group(Identity("ann", "root", ("dns.read", permission), tenant="acme"), group_by) == "admin"


def test_nobody_else_is_in_the_group_of_administrators() -> None:
    """Others are in the group of their role or tenant; one that is called as the administrators' is nobody's."""
    user = Identity("bob", "viewer", ("dns.read", "admin.*", "dns.*"), tenant="acme")
    assert [find_group(user, by) for by in ("role", "tenant")] == ["viewer", "acme"]
    namesake = Identity("eve", "admin", ("dns.read",), tenant="admin")
    assert [find_group(namesake, by) for by in ("role", "tenant")] == ["", ""]
