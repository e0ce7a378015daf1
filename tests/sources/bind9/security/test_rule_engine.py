"""Rules: what is found, how often it is told, and what memory it takes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import ConfigError
from solowire.sources.bind9.queries.query_observer import ObservedQuery
from solowire.sources.bind9.security.client_counts import CLIENTS, ClientCounts
from solowire.sources.bind9.security.finding_payload import make_finding_payload
from solowire.sources.bind9.security.refusal_message import Refusal
from solowire.sources.bind9.security.rpz_message import PolicyHit
from solowire.sources.bind9.security.rule_engine import RULE_EPISODES, Finding, RuleEngine
from solowire.sources.bind9.security.security_rule import DEFAULT_RULES, SecurityRule, parse_rules

AT = 1_796_000_000.0

FLOOD = SecurityRule(name="flood", kind="query_flood", threshold=10, window_s=10, quiet_s=60)


class Bench:
    """An engine with a clock that only the test moves."""

    def __init__(self, *rules: SecurityRule) -> None:
        self.now = 0.0
        self.engine = RuleEngine(rules, lambda: self.now)

    def ask(
        self,
        client: str = "192.0.2.1",
        count: int = 1,
        name: str = "www.example",
        type: str = "A",
        rcode: str | None = None,
        *,
        every_s: float = 0.0,
    ) -> None:
        """Queries, each so long after the one before."""
        for _ in range(count):
            self.engine.observe_query(ObservedQuery(AT + self.now, client, name, type, rcode))
            self.now += every_s

    def take(self) -> list[Finding]:
        """What is told; each of it fits the catalogue."""
        found = self.engine.take_findings()
        for finding in found:
            data = make_finding_payload(finding)
            CATALOG.validate_data(CATALOG[finding.rule.event], data)
            msgspec.json.encode(data)
        return found


def test_one_flood_gives_one_finding_and_one_at_its_end() -> None:
    """However long it goes on; the second tells how much it was in all. Another client has its own."""
    bench = Bench(FLOOD)
    bench.ask(count=9)
    assert bench.take() == []
    bench.ask()
    [began] = bench.take()
    assert (began.phase, began.client_ip, began.count, began.samples) == ("began", "192.0.2.1", 10, ["www.example"])
    bench.ask(count=1000, every_s=0.1)
    bench.ask("192.0.2.2", count=10)
    assert [finding.client_ip for finding in bench.take()] == ["192.0.2.2"]
    bench.now += FLOOD.quiet_s + 1
    ended = {finding.client_ip: finding for finding in bench.take()}
    assert {client: finding.phase for client, finding in ended.items()} == {"192.0.2.1": "ended", "192.0.2.2": "ended"}
    assert ended["192.0.2.1"].count == 1010
    assert ended["192.0.2.1"].number == began.number
    assert ended["192.0.2.1"].last_at - ended["192.0.2.1"].first_at == pytest.approx(99.9)
    bench.ask(count=10)
    assert [finding.phase for finding in bench.take()] == ["began"]


def test_a_slow_client_is_none() -> None:
    """Just below the threshold in each window, for hours: also where two windows meet."""
    bench = Bench(FLOOD)
    bench.ask(count=5_000, every_s=1.2)
    assert bench.take() == []


def test_a_burst_where_two_windows_meet_is_found() -> None:
    """What comes within one window's length counts, though not in one window."""
    bench = Bench(FLOOD)
    bench.ask()
    bench.now = 9.9
    bench.ask(count=6)
    bench.now = 10.1
    bench.ask(count=6)
    assert len(bench.take()) == 1


def test_the_share_of_names_that_dont_exist() -> None:
    """Above the ratio it is found, below it is not, and queries without a known answer don't count."""
    rule = SecurityRule(name="dga", kind="nxdomain_ratio", threshold=20, ratio=0.8, window_s=60)
    bench = Bench(rule)
    for _ in range(50):
        bench.ask("192.0.2.1", rcode="NXDOMAIN", count=3)
        bench.ask("192.0.2.1", rcode="NOERROR")
        bench.ask("192.0.2.2", rcode=None)
        bench.ask("192.0.2.3", rcode="NXDOMAIN", count=9)
        bench.ask("192.0.2.3", rcode="NOERROR")
    [found] = bench.take()
    assert found.client_ip == "192.0.2.3"
    assert found.ratio is not None
    assert 0.85 < found.ratio < 0.95


def test_types_and_long_names() -> None:
    """Only what is named counts."""
    bench = Bench(
        SecurityRule(name="any", kind="query_types", types=["ANY", "NULL"], threshold=5, window_s=60),
        SecurityRule(name="long", kind="long_names", length=50, threshold=5, window_s=60),
    )
    bench.ask("192.0.2.1", 3, type="ANY")
    bench.ask("192.0.2.1", 2, type="NULL")
    bench.ask("192.0.2.2", 50, type="TXT")
    bench.ask("192.0.2.3", 5, name="a" * 50)
    bench.ask("192.0.2.4", 50, name="a" * 49)
    found = bench.take()
    assert [(finding.rule.name, finding.client_ip, finding.query_type) for finding in found] == [
        ("any", "192.0.2.1", "NULL"),
        ("long", "192.0.2.3", "A"),
    ]


def test_policy_hits_and_refusals() -> None:
    """Hits count, but not what is let through on purpose; of refusals those that the rule names."""
    bench = Bench(
        SecurityRule(name="malware", kind="policy_hits", threshold=2, window_s=60, event="threat_detected"),
        SecurityRule(name="axfr", kind="refusals", refused=["transfer"], threshold=1, window_s=60),
    )
    for client, action in (("192.0.2.1", "PASSTHRU"), ("192.0.2.2", "NXDOMAIN")):
        hit = PolicyHit(
            client_ip=client, client_port=1, query_domain="evil.example", action=action, trigger="QNAME", rule="x"
        )
        for _ in range(3):
            bench.engine.observe_hit(hit, AT)
    for what in ("query", "transfer"):
        bench.engine.observe_refusal(Refusal(what=what, client_ip="192.0.2.3", text="x", name="z.example"), AT)
    found = bench.take()
    assert [(finding.rule.name, finding.client_ip, finding.samples) for finding in found] == [
        ("malware", "192.0.2.2", ["evil.example"]),
        ("axfr", "192.0.2.3", ["z.example"]),
    ]


def test_exempt_clients() -> None:
    """Networks and single addresses of both families."""
    rule = msgspec.structs.replace(FLOOD, exempt=["192.0.2.0/28", "2001:db8::7"])
    bench = Bench(rule)
    for client in ("192.0.2.1", "192.0.2.99", "2001:db8::7", "2001:db8:1::7"):
        bench.ask(client, 50)
    assert [finding.client_ip for finding in bench.take()] == ["192.0.2.99", "2001:db8:1::7"]


def test_addresses_of_one_ipv6_network_are_one_client() -> None:
    """Whoever has a network of 64 bits can send each query from another address."""
    bench = Bench(FLOOD)
    for number in range(20):
        bench.ask(f"2001:db8:0:1::{number:x}")
        bench.ask(f"2001:db8:{number:x}:2::1")
    [found] = bench.take()
    assert found.client_ip is not None
    assert found.client_ip.startswith("2001:db8:0:1::")


def test_a_flood_of_many_clients_is_one_finding_beside_the_first_ones() -> None:
    """However many invented addresses exceed a rule."""
    bench = Bench(FLOOD)
    for number in range(2_000):
        bench.ask(f"10.1.{number // 250}.{number % 250}", 12)
    found = bench.take()
    assert len(found) == RULE_EPISODES + 1
    assert found[-1].client_ip is None
    bench.now += FLOOD.quiet_s + 1
    ended = [finding for finding in bench.take() if finding.client_ip is None]
    assert [finding.client_count for finding in ended] == [1_000]


def test_a_real_flood_is_found_among_invented_addresses() -> None:
    """Memory is bounded, and who does much is kept."""
    bench = Bench(FLOOD)
    for number in range(60_000):
        bench.ask(f"10.{number % 200}.{number // 200 % 200}.{number // 40_000}", every_s=0.0001)
        if number % 300 == 0:
            bench.ask("192.0.2.1")
    assert [finding.client_ip for finding in bench.take()] == ["192.0.2.1"]
    assert max(len(watched.counts) for watched in bench.engine._rules) <= CLIENTS


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e12, 1e12, allow_nan=False),
            st.sampled_from(["192.0.2.1", "::1", "::ffff:192.0.2.1", "fe80::1%eth0", "", "x", "1:2"]),
            st.text(min_size=1, max_size=100),
            st.sampled_from(["A", "ANY", "TXT", "NULL"]),
            st.sampled_from([None, "NOERROR", "NXDOMAIN"]),
        ),
        max_size=200,
    )
)
def test_nothing_stops_it(queries: list[tuple[float, str, str, str, str | None]]) -> None:
    """Whatever the clocks and names: findings that the catalogue accepts, or none."""
    bench = Bench(*(msgspec.structs.replace(rule, threshold=2) for rule in parse_rules(DEFAULT_RULES, "x")))
    for at, client, name, type, rcode in queries:
        bench.engine.observe_query(ObservedQuery(at, client, name, type, rcode))
        bench.now += 1
    bench.take()
    bench.now += 100_000
    bench.take()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from("abc")), max_size=200))
def test_an_estimate_is_never_above_what_two_windows_had(seen: list[tuple[float, str]]) -> None:
    """And the count of a client never above what it did."""
    counts = ClientCounts(10.0)
    done = dict.fromkeys("abc", 0)
    for at, client in sorted(seen):
        count = counts.find_count(client, at)
        count.count += 1
        count.last_at = at
        done[client] += 1
        total, _ = count.estimate(at, 10.0)
        within = sum(1 for other, name in seen if name == client and at - 20 <= other <= at)
        assert 0 < total <= min(done[client], within) + 1e-9


def test_the_built_in_rules_are_rules() -> None:
    """They are printed for users to change, and say all that there is."""
    rules = parse_rules(DEFAULT_RULES, "built in")
    assert {rule.kind for rule in rules} == {
        "policy_hits",
        "query_flood",
        "nxdomain_ratio",
        "query_types",
        "long_names",
        "refusals",
    }
    for field in SecurityRule.__struct_fields__:
        assert field in DEFAULT_RULES


GOOD = '[[rule]]\nname = "a"\nkind = "query_flood"\nthreshold = 1\nwindow_s = 1\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "no valid TOML"),
        ("", "no [[rule]]"),
        ("[other]\n" + GOOD, "line 1: unknown key 'other'"),
        (GOOD + "treshold = 2\n", "line 6: unknown key 'treshold'; known: name, kind, threshold"),
        (GOOD + "\n" + GOOD.replace('"a"', '"b"') + "foo = 2\n", "line 12: unknown key 'foo'"),
        (GOOD.replace("threshold = 1", "threshold = 0"), "line 4: `threshold`"),
        (GOOD.replace("query_flood", "flood"), "line 3: `kind`"),
        (GOOD.replace('name = "a"\n', ""), "line 1: Object missing required field `name`"),
        (GOOD + "ratio = 0.5\n", "line 6, rule 'a': `ratio` belongs to the kind nxdomain_ratio"),
        (GOOD.replace("query_flood", "refusals"), "line 3, rule 'a': the kind refusals needs `refused`"),
        (GOOD + 'exempt = ["192.0.2.0/99"]\n', "line 6, rule 'a': `exempt`"),
        (GOOD + GOOD, "line 7, rule 'a': there are two of this name"),
        ("\n".join(GOOD.replace('"a"', f'"r{n}"') for n in range(101)), "100 are the most"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_by_name_and_line(text: str, message: str) -> None:
    """An operator finds the fault."""
    with pytest.raises(ConfigError) as raised:
        parse_rules(text, "rules.toml")
    assert message in str(raised.value)
    assert "rules.toml" in str(raised.value)


@given(st.one_of(st.text(), st.text("[]rule=\n\"'an1.", max_size=60)))
def test_any_text_is_rules_or_an_error(text: str) -> None:
    """The documented error, and no other."""
    try:
        parse_rules(text, "x")
    except ConfigError:
        return
