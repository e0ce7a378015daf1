"""How many may wait at a listener: nobody is refused while there is room, and what was counted is given back once."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from solowire.algorithms.accept_limiter import AcceptLimiter, counted_address

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::", "")


class Accepting(RuleBasedStateMachine):
    """Connections of a few addresses come and go in any order, beside a list of those who are here."""

    @initialize(total=st.integers(0, 8), per_address=st.none() | st.integers(0, 5))
    def begin(self, total: int, per_address: int | None) -> None:
        self.total, self.per_address = total, per_address
        self.limiter = AcceptLimiter(total, per_address)
        self.here: list[str] = []
        self.refused = 0

    @rule(address=st.sampled_from(ADDRESSES))
    def come(self, address: str) -> None:
        # Without an address one is counted among all, and by no address.
        is_full = bool(address) and self.per_address is not None and self.here.count(address) >= self.per_address
        has_room = len(self.here) < self.total and not is_full
        assert self.limiter.is_full(address) is is_full
        assert self.limiter.has_room(address) is has_room
        assert self.limiter.acquire(address) is has_room
        if has_room:
            self.here.append(address)
        else:
            self.refused += 1

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.limiter.release(self.here.pop(data.draw(st.integers(0, len(self.here) - 1))))

    @invariant()
    def check_counts(self) -> None:
        assert len(self.limiter) == len(self.here)
        assert self.limiter.rejected_count == self.refused
        # No address is remembered that has nobody here: else a scan of many would fill the memory.
        assert dict(self.limiter._addresses) == {address: self.here.count(address) for address in set(self.here)}


TestAccepting = Accepting.TestCase


def test_one_address_leaves_room_for_the_others() -> None:
    """One that opens as many as it can is refused the next, and nobody else is."""
    limiter = AcceptLimiter(4, 2)
    assert [limiter.acquire("192.0.2.1") for _ in range(10)] == [True, True] + [False] * 8
    assert limiter.acquire("192.0.2.2")
    limiter.release("192.0.2.1")
    assert limiter.acquire("192.0.2.1")
    assert (len(limiter), limiter.rejected_count) == (3, 8)


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("a:b", "a:b"),
        ("unix", "unix"),
    ],
)
def test_an_address_counts_as_what_one_customer_gets(peer: str, counted: str) -> None:
    """IPv4 as it is, however it is spelled, IPv6 by its /64; what is no address is taken as it is."""
    assert counted_address(peer) == counted


@given(st.ip_addresses(v=6), st.ip_addresses(v=4))
def test_all_of_a_network_count_as_one(six: IPv6Address, four: IPv4Address) -> None:
    """And no two networks do."""
    if six.ipv4_mapped is None:
        assert counted_address(str(six)) == counted_address(six.exploded)
        assert counted_address(str(six)) == counted_address(str(IPv6Address(int(six) ^ 0xFFFF)))
        assert counted_address(str(six)) != counted_address(str(IPv6Address(int(six) ^ 1 << 64)))
    assert counted_address(f"::ffff:{four}") == counted_address(str(four)) == str(four)
