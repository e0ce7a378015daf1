# ruff: noqa: E501 - log lines are kept as they were written
from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.sources.bind9.queries.query_log import (
    LINE_CHARACTERS,
    Query,
    find_zone,
    make_payload,
    normalize_zones,
    parse_query,
)

REAL = [  # written by Debian's BIND 9.18, but for the last two: without the client's address in memory, and older
    r"23-Nov-2026 03:59:33.373 client @0x7fbb86a32098 127.0.0.1#39576 (www.z.example): query: www.z.example IN A +E(0)K (127.0.0.1)",
    r"23-Nov-2026 11:33:34.116 client @0x7f1b8ccd5098 127.0.0.1#55286/key test-key (WwW.z.example): query: WwW.z.example IN TXT +SE(0)K (127.0.0.1)",
    r"23-Nov-2026 11:33:34.140 client @0x7f1b8ccd5098 127.0.0.1#57989 (.): query: . IN NS +E(0)K (127.0.0.1)",
    r"2026-11-23T11:33:34.500Z queries: info: client @0x7f80468d5098 127.0.0.1#56031 (a\.b\032c\(d\)\"\;\@\$\200.z.example): view inner view: query: a\.b\032c\(d\)\"\;\@\$\200.z.example IN HTTPS +E(0)K (127.0.0.1)",
    r"2026-11-23T11:33:34.576Z queries: info: client @0x7f80468d6c98 ::1#53954 (v6.z.example): view inner view: query: v6.z.example IN A +E(0)K (::1)",
    r"2026-11-23T11:33:34.884 client @0x7fce7f4d8898 127.0.0.1#33101 (x.z.example): query: x.z.example IN ANY +E(0)TDCK (127.0.0.1) [ECS 192.0.2.0/24/0]",
    r"client @0x7f05b26d5098 127.0.0.1#47609 (version.bind): query: version.bind CH A +E(0)K (127.0.0.1)",
    r"23-Nov-2026 03:59:33.373 client 192.0.2.7#1035 (a.example): view external: query: a.example IN AAAA - (192.0.2.53)",
    r"23-Nov-2026 03:59:33.373 client 192.0.2.7#1035: query: a.example IN AAAA + (192.0.2.53)",
]

ANSWERED = r"2026-11-23T11:33:34.500Z responses: info: client @0x7f80468d5098 127.0.0.1#56031/key k (www.z.example): view inner: response: www.z.example IN A NXDOMAIN 0 1 2 +E(0)TK (127.0.0.1) [ECS 192.0.2.0/24/0]"
"""As `log_response()` of BIND 9.20 writes it, with `responselog yes`."""

OTHER = [
    "",
    "\n",
    "all zones loaded",
    r"23-Nov-2026 11:33:34.140 client @0x7f1b8ccd5098 127.0.0.1#57989 (.): query failed (REFUSED) for ./IN/NS at query.c:5708",
    r"23-Nov-2026 11:33:34.140 client @0x7f1b 127.0.0.1#57989 (x.example): query (cache) 'x.example/A/IN' denied",
    r"23-Nov-2026 11:33:34.140 client @0x7f1b 127.0.0.1#39419 (evil.example): rpz QNAME NXDOMAIN rewrite evil.example/A/IN via evil.example.rpz.malware",
]

DAMAGED = [
    REAL[0][1:],
    REAL[0][:-1],
    REAL[0] + REAL[0],
    REAL[0].replace("Nov", "Nop"),
    REAL[0].replace("23-Nov", "31-Nov"),
    REAL[0].replace("03:59", "24:59"),
    REAL[0].replace("#39576", "#65536"),
    REAL[0].replace("query: www.z.example", "query: www z.example"),
    REAL[0].replace("query: www.z.example", "query: www\ufffd.z.example"),
    "\0\0\0" + REAL[0],
    ANSWERED.replace("NXDOMAIN 0 1 2 ", ""),
    ANSWERED.replace("response:", "query:"),
    ANSWERED.replace(" 0 1 2", " 0 1"),
]


def query(line: str, tz: tzinfo | None = UTC) -> Query:
    found = parse_query(line, tz)
    assert found is not None
    return found


@pytest.mark.parametrize("line", REAL)
def test_every_real_form_is_a_query(line: str) -> None:
    """Each form that BIND writes is understood, with or without the newline at its end."""
    assert query(line) == query(line + "\n") == query(line + "\r\n")


@pytest.mark.parametrize("line", OTHER + DAMAGED)
def test_what_is_no_whole_query_is_none(line: str) -> None:
    """Other lines of the same log, and lines that are cut, joined or damaged, give None."""
    assert parse_query(line, UTC) is None


def test_all_fields() -> None:
    """A plain line gives every field, and None for the view and the key that it doesn't name."""
    assert query(REAL[0]) == Query(
        timestamp="2026-11-23T03:59:33.373Z",
        client_ip="127.0.0.1",
        client_port=39576,
        query_domain="www.z.example",
        query_class="IN",
        query_type="A",
        flags="+E(0)K",
        server_ip="127.0.0.1",
        view=None,
        key=None,
    )


def test_key_view_and_addresses() -> None:
    """TSIG keys, view names with blanks, IPv6 and link-local addresses are read from where BIND puts them."""
    assert query(REAL[1]).key == "test-key"
    assert query(REAL[1]).query_domain == "WwW.z.example"
    assert query(REAL[3]).view == "inner view"
    assert (query(REAL[4]).client_ip, query(REAL[4]).server_ip) == ("::1", "::1")
    link_local = query(REAL[4].replace("::1#", "fe80::1%eth0#").replace("(::1)", "(fe80::2%eth0)"))
    assert (link_local.client_ip, link_local.server_ip) == ("fe80::1%eth0", "fe80::2%eth0")
    both = query(REAL[3].replace("#56031", "#56031/key a.key"))
    assert (both.key, both.view) == ("a.key", "inner view")
    assert query(REAL[8]).query_type == "AAAA"


@pytest.mark.parametrize("prefix", ["queries: info: ", "queries: ", "info: ", "debug 1: ", "queries: debug 3: ", ""])
def test_category_and_severity_may_be_there(prefix: str) -> None:
    """print-category and print-severity change nothing in what is understood."""
    assert query(REAL[0].replace("client", prefix + "client", 1)) == query(REAL[0])


def test_an_answer_tells_its_response_code() -> None:
    """A line of `responselog` is a query with what became of it."""
    found = query(ANSWERED)
    assert (found.query_domain, found.query_type, found.rcode, found.flags) == (
        *("www.z.example", "A", "NXDOMAIN", "+E(0)TK"),
    )
    payload = make_payload(found, frozenset())
    assert (payload["rcode"], payload["protocol"], payload["tsig_key"]) == ("NXDOMAIN", "TCP", "k")


def test_the_server_s_port_may_be_there() -> None:
    """BIND 9.21 writes it."""
    assert query(REAL[0].replace("(127.0.0.1)", "(127.0.0.1#53)")) == query(REAL[0])


def test_odd_names() -> None:
    """The root stays "." and escapes stay as BIND writes them."""
    assert query(REAL[2]).query_domain == "."
    assert query(REAL[3]).query_domain == r"a\.b\032c\(d\)\"\;\@\$\200.z.example"


@pytest.mark.parametrize(
    ("written", "tz", "utc"),
    [
        ("23-Nov-2026 03:59:33.373", UTC, "2026-11-23T03:59:33.373Z"),
        ("23-Nov-2026 03:59:33.373", timezone(timedelta(hours=5, minutes=30)), "2026-11-22T22:29:33.373Z"),
        ("2026-11-23T03:59:33.373", ZoneInfo("Europe/Berlin"), "2026-11-23T02:59:33.373Z"),
        ("23-Jul-2026 03:59:33.000", ZoneInfo("Europe/Berlin"), "2026-07-23T01:59:33.000Z"),
        ("25-Oct-2026 02:30:00.000", ZoneInfo("Europe/Berlin"), "2026-10-25T00:30:00.000Z"),
        ("2026-11-23T03:59:33.373Z", ZoneInfo("Europe/Berlin"), "2026-11-23T03:59:33.373Z"),
        ("2026-11-23T03:59:33.373+02:00", ZoneInfo("Europe/Berlin"), "2026-11-23T01:59:33.373Z"),
        ("2026-11-23T03:59:33.373-0130", None, "2026-11-23T05:29:33.373Z"),
    ],
)
def test_times_become_utc(written: str, tz: tzinfo | None, utc: str) -> None:
    """A local time is moved by the given zone (in a repeated hour: the first one), one with its own zone by that."""
    assert query(REAL[0].replace("23-Nov-2026 03:59:33.373", written), tz).timestamp == utc


def test_without_a_zone_the_machines_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tz=None a local time is read as the machine's own."""
    try:
        monkeypatch.setenv("TZ", "XYZ-3")
        time.tzset()
        assert query(REAL[0], None).timestamp == "2026-11-23T00:59:33.373Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_time() -> None:
    """`print-time no` gives a query whose timestamp is None."""
    assert query(REAL[6]).timestamp is None


@pytest.mark.parametrize("year", ["0001", "9999", "0000"])
def test_times_at_the_edge_of_the_calendar_are_no_error(year: str) -> None:
    """A time that leaves the calendar when it becomes UTC makes the line a damaged one."""
    line = REAL[0].replace("23-Nov-2026 03:59", f"{'31-Dec' if year == '9999' else '01-Jan'}-{year} 12:00")
    assert parse_query(line, timezone(timedelta(hours=-23 if year == "9999" else 23))) is None
    parse_query(line, None)


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MESSAGE = REAL[6]
AT = "2026-11-23T03:59:33.000Z"


@pytest.mark.parametrize(
    ("prefix", "timestamp"),
    [
        ("<30>Nov 23 03:59:33 host named[123]: ", AT),
        ("Nov 23 03:59:33 host named[123]: ", AT),
        ("Nov 23 03:59:33 host named[123]: queries: info: ", AT),
        ("Nov 23 03:59:33 2001:db8::1 named[123]: ", AT),
        ("Nov 23 03:59:33 named[123]: ", AT),
        ("Nov 23 03:59:33 host named: ", AT),
        ("Nov 23 2026 03:59:33 host named[123]: ", AT),
        ("Nov  3 03:59:33 host named[123]: ", "2026-11-03T03:59:33.000Z"),
        ("Nov 03 03:59:33 host named[123]: ", "2026-11-03T03:59:33.000Z"),
        ("Nov 23 03:59:33.373445 host named[123]: ", "2026-11-23T03:59:33.373Z"),
        ("<30>1 2026-11-23T03:59:33.123Z host named 123 - - ", "2026-11-23T03:59:33.123Z"),
        ("<30>1 2026-11-23T03:59:33.123456+02:00 host named 123 - - ", "2026-11-23T01:59:33.123Z"),
        ("<30>1 2026-11-23T03:59:33Z host named 123 queries - \ufeff", AT),
        (r'<30>1 2026-11-23T03:59:33Z - named - - [a@1 k="x] \" y"][b@2] ', AT),
        ("1 2026-11-23T03:59:33Z host named 123 - - ", AT),
        ("<30>1 - - named - - - ", None),
        ("2026-11-23T03:59:33.373445+00:00 host named[123]: ", "2026-11-23T03:59:33.373Z"),
        ("2026-11-23T03:59:33+0000 host named[123]: ", AT),
        ("2026-11-23 03:59:33,373 host named[123]: ", "2026-11-23T03:59:33.373Z"),
        ("<30>2026-11-23T03:59:33+01:00 host named[123]: ", "2026-11-23T02:59:33.000Z"),
        ("<30>named[123]: ", None),
        # journalctl -o short-unix, short-full, with-unit, short-monotonic, short-delta
        ("1795406373.373445 host named[123]: ", "2026-11-23T03:59:33.373Z"),
        ("Mon 2026-11-23 03:59:33 UTC host named[123]: ", AT),
        ("Mon 2026-11-23 03:59:33 CET host named[123]: ", AT),  # the zone that the test calls the server's
        ("Mon 2026-11-23 03:59:33 -03 host named[123]: ", "2026-11-23T06:59:33.000Z"),
        ("Mon 2026-11-23 03:59:33 UTC host named.service[123]: ", AT),
        ("[12345.678901] host named[123]: ", None),
        ("[    5.678901] host named[123]: ", None),
        ("[12345.678901 <    0.000123 >] host named[123]: ", None),
        # BusyBox's syslogd
        ("Nov 23 03:59:33 host daemon.info named[123]: ", AT),
        ("Nov 23 03:59:33 host local0.notice named[123]: ", AT),
        ("Nov 23 03:59:33 daemon.info named[123]: ", AT),
        # /var/log/containers
        ("2026-11-23T03:59:33.373445123Z stdout F ", "2026-11-23T03:59:33.373Z"),
        ("2026-11-23T03:59:33.373445123+01:00 stderr F queries: info: ", "2026-11-23T02:59:33.373Z"),
    ],
)
def test_a_syslog_prefix_is_understood(prefix: str, timestamp: str | None) -> None:
    """RFC 3164 and 5424 and what rsyslog and journald make of them: the same query, with the prefix's time."""
    found = parse_query(prefix + MESSAGE, UTC, NOW)
    assert found is not None
    assert found.timestamp == timestamp
    assert msgspec.structs.replace(found, timestamp=None) == query(MESSAGE)


def test_binds_own_time_counts_where_there_are_two() -> None:
    """`print-time` behind a syslog prefix is the time of the query; the prefix's is that of its writing."""
    for prefix in (
        "Nov 23 04:00:00 host named[1]: ",
        "2026-11-23T04:00:00.123456789Z stderr F ",
        "2026-11-23T04:00:00.123456789Z ",  # kubectl logs --timestamps, docker logs -t
        "host ",
        "host.example.com ",
    ):
        assert parse_query(prefix + REAL[0], UTC, NOW) == query(REAL[0])


@pytest.mark.parametrize(
    ("written", "tz", "now", "utc"),
    [
        ("Dec 31 23:59:59", UTC, datetime(2027, 1, 1, tzinfo=UTC), "2026-12-31T23:59:59.000Z"),
        ("Nov 23 12:00:01", UTC, NOW, "2026-11-23T12:00:01.000Z"),
        ("Nov 24 12:00:01", UTC, NOW, "2025-11-24T12:00:01.000Z"),
        ("Feb 29 00:00:00", UTC, NOW, "2024-02-29T00:00:00.000Z"),
        (
            "Jan  1 01:00:00",
            ZoneInfo("Europe/Berlin"),
            datetime(2026, 12, 31, 23, 59, tzinfo=UTC),
            "2027-01-01T00:00:00.000Z",
        ),
        ("Jan  1 00:00:10", UTC, datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "2027-01-01T00:00:10.000Z"),
        ("Jun 30 23:59:60", UTC, NOW, "2026-06-30T23:59:59.999Z"),
    ],
)
def test_a_time_without_a_year_is_of_the_latest_that_is_not_to_come(
    written: str, tz: tzinfo, now: datetime, utc: str
) -> None:
    """The year is found so that the time is not in the future, but for what clocks and zones may differ."""
    found = parse_query(f"{written} host named[1]: {MESSAGE}", tz, now)
    assert found is not None
    assert found.timestamp == utc


@pytest.mark.parametrize(
    "prefix",
    [
        "Nov 31 03:59:33 host named[123]: ",
        "Nov 23 25:59:33 host named[123]: ",
        "Nov 23 03:59:33 host named[123] ",
        "Nox 23 03:59:33 host named[123]: ",
        "<30>1 2026-13-23T03:59:33Z host named 123 - - ",
        "<30>1 2026-11-23T03:59:33Z host named 123 - ",
        '<30>1 2026-11-23T03:59:33Z host named 123 - [a="x ',
        "<3000>Nov 23 03:59:33 host named[123]: ",
        "Nov 23 03:59:33 host other[1]: he said: ",
        "Mon 2026-11-31 03:59:33 UTC host named[123]: ",
        "Mon 2026-11-23 03:59:33 UTC host named[123] ",
        "99999999999.373445 host named[123]: ",
        "2026-11-23T03:59:33.373445123Z stdout P ",
        "host ",
        "two words ",
    ],
)
def test_a_damaged_prefix_makes_no_query(prefix: str) -> None:
    """A prefix with a time that doesn't exist, or that is cut or of another program's message, gives None."""
    assert parse_query(prefix + MESSAGE, UTC, NOW) is None


def test_an_overlong_line_is_no_query() -> None:
    """What is longer than a query can be is not even looked at."""
    assert parse_query(REAL[0] + " " + "x" * LINE_CHARACTERS, UTC) is None


ZONES = [None, UTC, timezone(timedelta(hours=14)), ZoneInfo("Europe/Berlin")]


@given(st.text(), st.sampled_from(ZONES))
def test_any_text_is_none_or_a_query(line: str, tz: tzinfo | None) -> None:
    """No text raises."""
    assert parse_query(line, tz) is None or "query: " in line


PREFIXES = [
    "",
    "<30>Nov 23 03:59:33 host named[123]: ",
    r'<30>1 2026-11-23T03:59:33.123Z host named 123 - [a@1 k="\"]"] ',
    "2026-11-23T03:59:33.373445+00:00 host named[123]: ",
    "2026-11-23T03:59:33.373445+00:00 stdout F ",
    "1795406373.373445 host named[123]: ",
    "Mon 2026-11-23 03:59:33 -03 host daemon.info named[123]: ",
]
WHOLE = [prefix + line for prefix in PREFIXES for line in REAL]
NOWS = [None, NOW, datetime(1, 1, 2, tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC)]


@given(st.data(), st.sampled_from(WHOLE), st.sampled_from(ZONES), st.sampled_from(NOWS))
def test_mutated_real_lines_never_raise(
    data: st.DataObject, line: str, tz: tzinfo | None, now: datetime | None
) -> None:
    """A real line with any piece replaced gives None or a query whose payload can be sent."""
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(len(line), start + 8)))
    piece = data.draw(st.text(max_size=8) | st.text("0123456789-:.#@()%\\ TZ+", max_size=8))
    found = parse_query(line[:start] + piece + line[end:], tz, now)
    if found is not None:
        assert 0 <= found.client_port <= 65535
        assert found.query_domain.isascii()
        assert " " not in found.query_domain
        assert found.timestamp is None or found.timestamp.endswith("Z")
        assert msgspec.json.decode(msgspec.json.encode(make_payload(found, normalize_zones(["z.example"]))))


@pytest.mark.parametrize(
    "line",
    [
        "client 1.1.1.1#5/key " + "(a)" * 20_000,
        "client 1.1.1.1#5 (" + "):" * 30_000,
        "client 1.1.1.1#5: view " + ": query: " * 7_000,
        "client 1.1.1.1#5: view " + ": query: a IN A +" * 4_000,
        "<30>1 2026-11-23T03:59:33Z h n 1 - [" + '"' * 60_000,
        "<30>1 2026-11-23T03:59:33Z h n 1 - " + "[a]" * 20_000,
        "<30>1 2026-11-23T03:59:33Z h n 1 - [" + "\\" * 60_000,
        "<30>1 2026-11-23T03:59:33Z " + "x" * 60_000,
        "Nov 23 03:59:33 " + "x" * 60_000,
        "Nov 23 03:59:33 " + "x[" * 30_000,
        "Nov 23 03:59:33 h n[1]: " + " " * 60_000,
        "[" + " " * 60_000,
        "[1.2 <" + " " * 60_000,
        "1795406373." + "1" * 60_000,
        "Nov 23 03:59:33 h " + "daemon.info " * 5_000,
        "x 23-Nov-2026 03:59:33.373 " * 2_400,
        "Nov 23 03:59:33 h n[1]: client 1.1.1.1#5: view " + ": query: a IN A +" * 3_000,
        "client 1.1.1.1#5 (" + ")" * 30_000 + ": view " + ": query: a IN A + (::" * 2_000,
    ],
)
def test_long_hostile_lines_take_no_time(line: str) -> None:
    """Lines of 64 KB made to set the pattern back again and again are refused within a fraction of a second."""
    began = time.thread_time()  # what others compute meanwhile doesn't count
    assert parse_query(line, UTC, NOW) is None
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("www.z.example", "z.example"),
        ("WWW.Z.Example", "z.example"),
        ("a.b.sub.z.example", "sub.z.example"),
        ("sub.z.example", "sub.z.example"),
        ("notz.example", None),
        (r"not\.z.example", None),
        (r"not\\.z.example", "z.example"),
        (r"a\.b\032c.z.example", "z.example"),
        ("example", None),
        (".", None),
        ("\\", None),
    ],
)
def test_the_longest_zone_that_covers_a_name(name: str, zone: str | None) -> None:
    """Whole labels count, capitals and escaped dots don't, and the longest zone wins."""
    assert find_zone(name, normalize_zones(["Z.example.", " sub.z.example ", ""])) == zone


def test_the_root_zone_covers_all() -> None:
    """Given ".", every name has a zone, and a longer one still wins."""
    zones = normalize_zones([".", "z.example"])
    assert [find_zone(name, zones) for name in (".", "com", "a.z.example")] == [".", ".", "z.example"]


def test_payload() -> None:
    """The payload has what the line tells, view, zone, key and response code only where there is one."""
    assert make_payload(query(REAL[3]), normalize_zones(["z.example"])) == {
        "client_ip": "127.0.0.1",
        "client_port": 56031,
        "protocol": "UDP",
        "query_domain": r"a\.b\032c\(d\)\"\;\@\$\200.z.example",
        "query_type": "HTTPS",
        "query_class": "IN",
        "flags": "+E(0)K",
        "server_ip": "127.0.0.1",
        "view": "inner view",
        "zone": "z.example",
    }
    assert not {"view", "zone"} & make_payload(query(REAL[0]), normalize_zones([])).keys()


@pytest.mark.parametrize("time", ["30-Jun-2026 23:59:60.123", "2026-06-30T23:59:60.123Z"])
def test_a_leap_second_of_named_is_the_last_millisecond_of_its_minute(time: str) -> None:
    """So that it is behind all of the second before it, as in the timestamps that publishers send."""
    query = parse_query(f"{time} client @0x7f 127.0.0.1#56031 (a): query: a IN A + (127.0.0.1)", UTC)
    assert query is not None
    assert query.timestamp == "2026-06-30T23:59:59.999Z"
