"""What the lines of named's logs become, in all forms in which BIND 9.11 to 9.20 write them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.sources.bind9.log_line import LogLine, parse_client_message, parse_log_line
from solowire.sources.bind9.security.refusal_message import Refusal, parse_control_refusal, parse_refusal
from solowire.sources.bind9.security.rpz_message import PolicyHit, parse_rpz_message
from solowire.sources.bind9.server.bind_state import BindState
from solowire.sources.bind9.server.reload_log import ERROR_CHARACTERS, ERRORS, ReloadLog
from solowire.sources.bind9.server.server_lines import ServerLines
from solowire.sources.bind9.zones.update_authors import UpdateAuthors
from solowire.sources.bind9.zones.update_message import LoggedUpdate, parse_update
from solowire.sources.files.line_meaning import LineEvent

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
CLIENT = "client @0x7f7f92ae2098 192.0.2.7#52229"

HEADS = {
    "none": "",
    "local": "01-Dec-2026 11:29:25.685 ",
    "utc": "2026-12-01T11:29:25.685Z ",
    "offset": "2026-12-01T12:29:25.685+01:00 ",
    "rsyslog": "Dec  1 11:29:25 ns1 named[712]: ",
    "rfc5424": "<30>1 2026-12-01T11:29:25.685Z ns1 named 712 - - ",
}


class Told:
    """What observers were told."""

    def __init__(self) -> None:
        self.hits: list[PolicyHit] = []
        self.refusals: list[Refusal] = []
        self.times: list[float] = []
        self.outcomes: list[tuple[bool, list[str]]] = []

    def observe_hit(self, hit: PolicyHit, at: float) -> None:
        self.hits.append(hit)
        self.times.append(at)

    def observe_refusal(self, refusal: Refusal, at: float) -> None:
        self.refusals.append(refusal)

    def observe_outcome(self, success: bool, errors: Sequence[str]) -> None:
        self.outcomes.append((success, list(errors)))


def make_lines(told: Told | None = None) -> ServerLines:
    told = told or Told()
    return ServerLines(ReloadLog(), BindState("ns1"), security=[told], outcomes=[told])


def read(lines: ServerLines, *texts: str) -> list[LineEvent]:
    """The events of some lines; each of them fits the catalogue."""
    events = [lines.interpret_line(text, NOW).event for text in texts]
    found = [event for event in events if event is not None]
    for event in found:
        CATALOG.validate_data(CATALOG[event.type], event.data)
    return found


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("category", ["", "rpz: ", "rpz: info: ", "info: "])
def test_a_policy_hit_in_all_forms_of_a_channel(head: str, category: str) -> None:
    """Whatever the channel prints before it, the hit and its time are understood."""
    told = Told()
    message = "(evil.example): view inner: rpz QNAME NXDOMAIN rewrite evil.example/A/IN via evil.example.rpz.malware"
    [event] = read(make_lines(told), f"{head}{category}{CLIENT} {message}")
    assert (event.type, event.data) == (
        "rpz_hit",
        {
            "client_ip": "192.0.2.7",
            "client_port": 52229,
            "query_domain": "evil.example",
            "query_type": "A",
            "query_class": "IN",
            "action": "NXDOMAIN",
            "trigger": "QNAME",
            "rule": "evil.example",
            "zone": "rpz.malware",
            "view": "inner",
        },
    )
    assert len(told.hits) == 1
    if head in (HEADS["utc"], HEADS["offset"], HEADS["rfc5424"]):
        assert event.timestamp == "2026-12-01T11:29:25.685Z"
    assert (event.timestamp is None) == (head == "")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("rpz QNAME NODATA rewrite x.example/AAAA/IN via x.example.rpz", ("NODATA", "QNAME", "x.example", "rpz")),
        ("rpz QNAME DROP rewrite a.w.example/A/IN via *.w.example.rpz.z", ("DROP", "QNAME", "*.w.example", "rpz.z")),
        ("rpz QNAME TCP-ONLY rewrite X.example/A/IN via x.EXAMPLE.rpz", ("TCP-ONLY", "QNAME", "x.EXAMPLE", "rpz")),
        ("rpz QNAME PASSTHRU rewrite x.example/A/IN via other.rpz", ("PASSTHRU", "QNAME", "other.rpz", None)),
        ("rpz QNAME Local-Data rewrite x.example via x.example.rpz", ("Local-Data", "QNAME", "x.example", "rpz")),
        (
            "rpz IP NXDOMAIN rewrite b.example/A/IN via 32.66.2.0.192.rpz-ip.rpz.malware",
            ("NXDOMAIN", "IP", "32.66.2.0.192.rpz-ip", "rpz.malware"),
        ),
        (
            "rpz NSDNAME CNAME rewrite b.example/A/IN via ns.evil.rpz-nsdname.rpz (CNAME to: walled.example)",
            ("CNAME", "NSDNAME", "ns.evil.rpz-nsdname", "rpz"),
        ),
        (
            "rpz CLIENT-IP DROP rewrite ./NS/IN via 24.0.2.0.192.rpz-client-ip.rpz",
            ("DROP", "CLIENT-IP", "24.0.2.0.192.rpz-client-ip", "rpz"),
        ),
        (
            "disabled rpz QNAME NXDOMAIN rewrite 0/25.2.0.192.in-addr.arpa/PTR/IN via 0/25.2.0.192.in-addr.arpa.rpz",
            ("NXDOMAIN", "QNAME", "0/25.2.0.192.in-addr.arpa", "rpz"),
        ),
    ],
)
def test_policy_hits(message: str, expected: tuple[str, str, str, str | None]) -> None:
    """Action, trigger, rule and policy zone of each kind of policy."""
    client = parse_client_message(f"{CLIENT} (n.example): {message}")
    assert client is not None
    hit = parse_rpz_message(client)
    assert hit is not None
    assert (hit.action, hit.trigger, hit.rule, hit.policy_zone) == expected
    assert hit.is_disabled == message.startswith("disabled")


@pytest.mark.parametrize(
    ("message", "what", "name"),
    [
        ("zone transfer 'z.example/AXFR/IN' denied", "transfer", "z.example/AXFR"),
        ("zone transfer 'z.example/IN' denied", "transfer", "z.example"),
        ("bad zone transfer request: 'o.example/IN': non-authoritative zone (NOTAUTH)", "transfer", "o.example"),
        ("update 'z.example/IN' denied", "update", "z.example"),
        ("update 'z.example/IN' denied due to allow-query", "update", "z.example"),
        ("update forwarding 'z.example/IN' denied", "update", "z.example"),
        ("query (cache) 'x.example/A/IN' denied (allow-query-cache did not match)", "query", "x.example"),
        ("query 'x.example/A/IN' denied", "query", "x.example"),
        ("request has invalid signature: TSIG k: tsig verify failure (BADSIG)", "signature", None),
    ],
)
def test_refusals(message: str, what: str, name: str | None) -> None:
    """What was refused, and of which zone or name."""
    client = parse_client_message(f"{CLIENT}/key deploy: {message}")
    assert client is not None
    refusal = parse_refusal(client)
    assert refusal is not None
    assert (refusal.what, refusal.client_ip, refusal.text) == (what, "192.0.2.7", message)
    assert refusal.name == (name.removesuffix("/AXFR") if name else None)


def test_refused_control_commands() -> None:
    """A command for the control channel with a wrong key has an address too."""
    refusal = parse_control_refusal("invalid command from 192.0.2.9#33611: bad auth")
    assert refusal is not None
    assert (refusal.what, refusal.client_ip) == ("control", "192.0.2.9")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'adding an RR at \'new.z.example\' TXT "a b \\"x\\""',
            LoggedUpdate(zone="z.example", name="new.z.example", action="add", type="TXT", value='"a b \\"x\\""'),
        ),
        (
            "adding an RR at 'n.z.example' TXT \"aaa[TRUNCATED]",
            LoggedUpdate(zone="z.example", name="n.z.example", action="add", type="TXT"),
        ),
        (
            "deleting rrset at 'www.z.example' A",
            LoggedUpdate(zone="z.example", name="www.z.example", action="delete", type="A"),
        ),
        (
            "deleting an RR at www.z.example A",
            LoggedUpdate(zone="z.example", name="www.z.example", action="delete", type="A"),
        ),
        (
            "delete all rrsets from name 'www.z.example'",
            LoggedUpdate(zone="z.example", name="www.z.example", action="delete"),
        ),
        ("update unsuccessful: x/A: 'RRset exists' prerequisite not satisfied (NXRRSET)", None),
    ],
)
def test_updates(text: str, expected: LoggedUpdate | None) -> None:
    """Each change of a dynamic update."""
    client = parse_client_message(f"{CLIENT}/key deploy: updating zone 'z.example/IN': {text}")
    assert client is not None
    assert client.key == "deploy"
    assert parse_update(client) == expected


def test_updates_are_told_to_the_authors() -> None:
    """Those who look for a change's author are told of each line."""

    class Noted(UpdateAuthors):
        def __init__(self) -> None:
            super().__init__()
            self.noted: list[dict[str, Any]] = []

        def note(self, **given: Any) -> None:
            self.noted.append(given)

    authors = Noted()
    lines = ServerLines(ReloadLog(), BindState("ns1"), authors=authors)
    text = f"{CLIENT}/key deploy: view inner: updating zone 'z.example/IN': deleting rrset at 'www.z.example' A"
    assert lines.interpret_line(text, NOW).is_known
    [noted] = authors.noted
    assert noted.pop("now") > 0
    assert noted == {
        "zone": "z.example",
        "name": "www.z.example",
        "action": "delete",
        "type": "A",
        "value": None,
        "client": "192.0.2.7",
        "port": 52229,
        "tsig_key": "deploy",
        "view": "inner",
    }


GOOD = [
    "received control channel command 'reconfig'",
    "loading configuration from '/etc/bind/named.conf'",
    "reading built-in trust anchors from file '/etc/bind/bind.keys'",
    "none:100: 'max-cache-size 90%' - setting to 21694MB (out of 24105MB)",
    "reloading configuration succeeded",
    "scheduled loading new zones",
    "any newly configured zones are now loaded",
    "running",
]
BAD = [
    "received SIGHUP signal to reload zones",
    "loading configuration from '/etc/bind/named.conf'",
    "/etc/bind/named.conf:3: unknown option 'nonsense'",
    "/etc/bind/named.conf:9: missing ';' before '}'",
    "reloading configuration failed: failure",
]


def test_a_reload_that_succeeds_is_one_event() -> None:
    """And the `running` after it is no start; what a line of our own says is not its error."""
    told = Told()
    [event] = read(make_lines(told), *GOOD)
    assert event.type == "bind_reload"
    assert event.data == {"success": True, "message": "configuration loaded", "actor": "rndc reconfig"}
    assert told.outcomes == [(True, [])]


def test_a_reload_that_fails_has_the_error_lines() -> None:
    """All of them since named began to read, and none of an earlier reload."""
    told = Told()
    lines = make_lines(told)
    [first] = read(lines, *BAD)
    read(lines, *GOOD)
    [second] = read(lines, *BAD[:2], *BAD[3:])
    errors = ["/etc/bind/named.conf:3: unknown option 'nonsense'", "/etc/bind/named.conf:9: missing ';' before '}'"]
    assert first.data == {
        "success": False,
        "message": "configuration refused",
        "actor": "SIGHUP",
        "error": "\n".join(errors),
    }
    assert second.data["error"] == errors[1]
    assert told.outcomes == [(False, errors), (True, []), (False, errors[1:])]


def test_a_reload_tells_how_long_it_took() -> None:
    """Where the channel prints times."""
    lines = [f"2026-12-01T11:29:25.{100 + 10 * n}Z {text}" for n, text in enumerate(GOOD)]
    [event] = read(make_lines(), *lines)
    assert event.data["duration_ms"] == 30.0


def test_error_lines_are_bounded() -> None:
    """A configuration with thousands of faults makes no event of megabytes."""
    many = [f"/etc/bind/named.conf:{n}: unknown option '{'x' * 4000}'" for n in range(10 * ERRORS)]
    [event] = read(make_lines(), BAD[1], *many, BAD[-1])
    assert len(event.data["error"]) < (ERRORS + 1) * (ERROR_CHARACTERS + 1)
    assert event.data["error"].endswith(f"… and {9 * ERRORS} more")


def test_a_zone_that_could_not_be_loaded_is_told() -> None:
    """Though named says of the reload that it succeeded."""
    events = read(
        make_lines(),
        *GOOD[:5],
        "zone z.example/IN/inner: loading from master file missing.zone failed: file not found",
        "zone z.example/IN/inner: not loaded due to errors.",
        "running",
    )
    assert events[1].data == {
        "success": False,
        "zone": "z.example",
        "view": "inner",
        "message": "zone not loaded",
        "error": "loading from master file missing.zone failed: file not found",
    }


def test_a_fault_in_a_zone_file_is_told_with_its_line() -> None:
    """Named tells the place in a line of its own; signed zones have two names."""
    events = read(
        make_lines(),
        "dns_rdata_fromtext: z.zone:5: near '192.0.2': bad dotted quad",
        "zone z.example/IN (unsigned): loading from master file z.zone failed: bad dotted quad",
        "zone z.example/IN (unsigned): not loaded due to errors.",
    )
    assert events[0].data["zone"] == "z.example"
    assert events[0].data["error"].split("\n") == [
        "dns_rdata_fromtext: z.zone:5: near '192.0.2': bad dotted quad",
        "loading from master file z.zone failed: bad dotted quad",
    ]


def test_the_reload_of_one_zone() -> None:
    """By `rndc reload ZONE`; a zone that is loaded by itself is no reload."""
    lines = make_lines()
    assert read(lines, "zone z.example/IN: loaded serial 2") == []
    [event] = read(
        lines,
        "received control channel command 'reload Z.example.'",
        "zone z.example/IN: loaded serial 3 (DNSSEC signed)",
    )
    assert event.data["zone"] == "z.example"
    assert (event.data["success"], event.data["actor"]) == (True, "rndc reload")


def test_start_and_stop() -> None:
    """`running` after a start, with the version; one stop for its two lines, and one for a sudden end."""
    lines = make_lines()
    assert [
        event.data for event in read(lines, "starting BIND 9.18.49-1~deb12u3-Debian (Extended) <id:>", "running")
    ] == [{"server": "ns1", "status": "running", "reason": "started", "version": "9.18.49-1~deb12u3-Debian"}]
    assert read(lines, *GOOD)[0].type == "bind_reload"
    stops = read(lines, "shutting down: flushing changes", "exiting")
    assert [event.data["status"] for event in stops] == ["stopped"]
    assert len(read(lines, "running")) == 1
    [sudden] = read(lines, "exiting (due to assertion failure)")
    assert sudden.data["reason"] == "due to assertion failure"


@pytest.mark.parametrize(
    "text",
    [
        f"{CLIENT} (running): query: running IN A +E(0)K (127.0.0.1)",
        f"{CLIENT} (x): rpz QNAME NXDOMAIN rewrite x/A/IN",
        "client nonsense",
        f"x {CLIENT} (e.example): rpz QNAME NXDOMAIN rewrite e.example/A/IN via e.example.rpz",
        "reloading configuration succeeded, as it were",
        "zone running/IN: sending notifies (serial 1)",
        "99-Foo-2026 11:29:25.685 reloading configuration succeeded",
        "",
    ],
)
def test_other_lines_make_no_event(text: str) -> None:
    """Nothing that a client can ask passes for a line of named's life."""
    assert read(make_lines(), text) == []


def test_an_update_hides_behind_no_query() -> None:
    """Whatever stands in its text."""
    told: list[str] = []

    class Noted(UpdateAuthors):
        def note(self, **given: Any) -> None:
            told.append(given["name"])

    lines = ServerLines(ReloadLog(), BindState("ns1"), authors=Noted())
    lines.interpret_line(f"{CLIENT}: updating zone 'z/IN': adding an RR at 'a.z' TXT \": query: \"", NOW)
    assert told == ["a.z"]
    assert read(lines, f"{CLIENT} (a): query: a IN A +E(0)K (127.0.0.1)") == []


SAMPLES = [f"{CLIENT} (a): rpz QNAME NXDOMAIN rewrite a/A/IN via a.rpz", *GOOD, *BAD, "exiting", "shutting down"]


@given(
    st.lists(
        st.one_of(
            st.text(max_size=200),
            st.sampled_from(SAMPLES),
            st.tuples(st.sampled_from(SAMPLES), st.integers(0, 80), st.text(max_size=5)).map(
                lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] :]
            ),
        ),
        max_size=30,
    )
)
def test_no_line_stops_it(texts: list[str]) -> None:
    """Whatever is in a log: values or nothing, and only events that the catalogue accepts."""
    lines = make_lines()
    for text in texts:
        meaning = lines.interpret_line(text, NOW)
        lines.recognizes_line(text)
        if meaning.event is not None:
            msgspec.json.encode(meaning.event.data)


def test_long_lines_take_no_long_time() -> None:
    """Time is linear in a line's length."""
    for piece in ("a", "/", ": ", " (", "'", "zone a/IN: ", "client @0x1 1#1", ": view x", "/key a"):
        long = piece * (60_000 // len(piece))
        for text in (long, f"{CLIENT}{long}", f"{CLIENT} (x): rpz QNAME X rewrite {long}", f"zone {long}"):
            make_lines().interpret_line(text, NOW)


def test_parts_of_a_line() -> None:
    """Category and severity are taken off; a message's own first word is not."""
    assert parse_log_line("general: notice: running", UTC) == LogLine("running", None, "general", "notice")
    assert parse_log_line("debug 1: x", UTC) == LogLine("x", None, None, "debug 1")
    assert parse_log_line("managed-keys-zone: loaded serial 0", UTC) == LogLine("managed-keys-zone: loaded serial 0")
