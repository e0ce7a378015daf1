"""DNS names: how long they may be, and which names stand above them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.model.domain_names import (
    MAX_LABELS,
    MAX_OCTETS,
    canonical_name,
    count_labels,
    describe_name_fault,
    names_above,
)

LONGEST = ".".join(["x" * 63] * 3 + ["x" * 61])
MOST = ".".join("a" * MAX_LABELS)


@pytest.mark.parametrize(
    "name", [".", "a", "a.b", LONGEST, MOST, r"\046" * 253, "é" * 126, "x" * 253, ".." * 20, r"\.".join("a" * 100)]
)
def test_what_dns_allows_is_a_name(name: str) -> None:
    """The longest that it allows included, whether in characters of several octets or in escapes of one."""
    assert describe_name_fault(canonical_name(name)) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (LONGEST + "x", "255 octets at most, this one 256"),
        ("x" * 254, "255 octets at most, this one 256"),
        (MOST + ".a", "127 labels at most, this one has 128"),
        (r"\046" * 254, "octets"),
        ("é" * 127, "octets"),
        ("." * 200, "labels"),
        ("\\" * 508, "octets"),
        (".".join("a" * 14_000), "labels"),
    ],
)
def test_what_it_does_not_is_none(name: str, reason: str) -> None:
    """A name with one octet or label too many is refused, and the reason says how many there are."""
    fault = describe_name_fault(canonical_name(name))
    assert fault is not None
    assert reason in fault


def octets(name: str) -> int:
    """As the wire has it: each label with its length, and the root."""
    plain, at = 0, 0
    while at < len(name):
        if (
            name[at] == "\\"
            and name[at + 1 : at + 4].isascii()
            and name[at + 1 : at + 4].isdecimal()
            and at + 4 <= len(name)
        ):
            plain, at = plain + 1, at + 4
        elif name[at] == "\\" and at + 1 < len(name):
            plain, at = plain + 1, at + 2
        else:
            plain, at = plain + len(name[at].encode()), at + 1
    return plain + 2


@given(st.text(st.sampled_from("ab.\\04é"), max_size=400))
def test_a_name_is_refused_exactly_when_it_is_too_long(text: str) -> None:
    """However it is spelt: the short way to say that a name is short enough never says so of one that isn't."""
    name = canonical_name(text)
    allowed = name.count(".") + 1 <= MAX_LABELS and octets(name) <= MAX_OCTETS
    assert (describe_name_fault(name) is None) == allowed


@given(st.text(st.sampled_from("ab."), max_size=60), st.integers(0, 70))
def test_the_names_above_a_name(text: str, deepest: int) -> None:
    """The root, then the last label, and so on up to the name itself; of those with too many labels none is made."""
    name = canonical_name(text)
    labels = name.split(".")
    expected = (*(".".join(labels[n:]) for n in range(len(labels))), ".") if name != "." else (".",)
    assert names_above(name) == expected[::-1]
    assert names_above(name, deepest) == tuple(n for n in expected[::-1] if n == "." or count_labels(n) <= deepest)
