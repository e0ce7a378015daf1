"""Revocations: what they cover, for how long, and how those who hear of them agree."""

from __future__ import annotations

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.auth.revocations import RevocationTable
from solowire.backplane.messages import Revocation, RevocationUpdate
from solowire.model.access import Identity, Proof

NOW = 1000.0
ids = (f"r{n}" for n in count())


def revocation(
    user: str | None = None, token_id: str | None = None, issued_before: float | None = None, until: float = 2000.0
) -> Revocation:
    return Revocation(next(ids), user, token_id, issued_before, NOW, until, "admin")


def identity(user: str = "ann", token_id: str = "", issued_at: float | None = None) -> Identity:
    return Identity(user, "viewer", (), proof=Proof(token_id, issued_at))


def table_of(*revocations: Revocation) -> RevocationTable:
    table = RevocationTable()
    table.add(revocations)
    return table


def test_what_a_revocation_covers() -> None:
    """A user's all, one by its id, or those issued before; a token without a time counts as older than any."""
    assert table_of(revocation("ann")).covers(identity(issued_at=9e9))
    assert not table_of(revocation("ann")).covers(identity("ann2"))
    assert table_of(revocation(token_id="x")).covers(identity("ben", "x"))
    assert not table_of(revocation(token_id="x")).covers(identity("ben", ""))
    of_ann, of_all = table_of(revocation("ann", issued_before=500)), table_of(revocation(issued_before=500))
    for table in (of_ann, of_all):
        assert table.covers(identity(issued_at=499.9))
        assert table.covers(identity(issued_at=None))
        assert table.covers(identity(issued_at=float("nan")))
        assert not table.covers(identity(issued_at=500))
    assert not of_ann.covers(identity("ben"))
    assert of_all.covers(identity("ben"))
    both = table_of(revocation("ann", issued_before=100), revocation(issued_before=500))
    assert both.covers(identity(issued_at=300))


def test_a_revocation_ends() -> None:
    """When all that it covers has expired it is forgotten; one that is taken back as well."""
    table = table_of(revocation("ann", until=1500), revocation("ben", until=1600))
    assert table.expire(1499) == []
    assert len(table.expire(1500)) == 1
    assert not table.covers(identity("ann"))
    assert table.covers(identity("ben"))
    table.remove([next(iter(table)).id, "nosuch"])
    assert not table.covers(identity("ben"))
    assert len(table) == 0


revocations = st.builds(
    lambda kind, user, time: {
        "user": revocation(user),
        "jti": revocation(token_id=user),
        "before": revocation(issued_before=time),
        "user before": revocation(user, issued_before=time),
    }[kind],
    st.sampled_from(["user", "jti", "before", "user before"]),
    st.sampled_from(["ann", "ben"]),
    st.sampled_from([100.0, 200.0, 300.0]),
)


@given(st.lists(revocations, max_size=8), st.data())
@settings(deadline=None)
def test_a_table_covers_what_one_of_its_revocations_does(made: list[Revocation], data: st.DataObject) -> None:
    """Looking up says the same as asking each, after any of them were taken back."""
    table = table_of(*made)
    gone = data.draw(st.lists(st.sampled_from(made), unique_by=id) if made else st.just([]))
    table.remove([r.id for r in gone])
    left = [r for r in made if r not in gone]
    for user in ("ann", "ben", "cy"):
        for token_id in ("", "ann", "ben"):
            for issued_at in (None, 50.0, 100.0, 250.0, 400.0):
                someone = identity(user, token_id, issued_at)
                assert table.covers(someone) == any(covers(r, someone) for r in left)


def covers(made: Revocation, someone: Identity) -> bool:
    if made.token_id is not None:
        return someone.proof.token_id == made.token_id
    if made.user not in (None, someone.user):
        return False
    return made.issued_before is None or (someone.proof.issued_at or 0.0) < made.issued_before


def test_changes_are_taken_in_order_or_not_at_all() -> None:
    """One to another version than is here waits for all to be told; all take the place of what was here."""
    table, first, second = RevocationTable(), revocation("ann"), revocation("ben")
    assert table.apply_update(RevocationUpdate("e", 5, -1, [first])) == ([first], None)
    assert table.apply_update(RevocationUpdate("e", 7, 6, [second])) == ([], None)
    assert table.version == 5
    assert table.apply_update(RevocationUpdate("e", 7, None, [second])) == ([second], None)
    assert [r.user for r in table] == ["ben"]
    assert table.apply_update(RevocationUpdate("e", 8, 7, [], [second.id])) == ([], None)
    assert (len(table), table.version) == (0, 8)
    assert table.apply_update(RevocationUpdate("other", 9, 8, [first])) == ([], None)


def test_a_router_that_has_forgotten_is_told() -> None:
    """What is known of another journal stays in force here, and is what the router hears."""
    table, old, new = RevocationTable(), revocation("ann"), revocation("ben")
    table.apply_update(RevocationUpdate("e", 5, None, [old]))
    fresh, known = table.apply_update(RevocationUpdate("e2", 9, None, [new]))
    assert fresh == [new]
    assert known is not None
    assert known.revocations == [old]
    assert table.covers(identity("ann"))
    assert table.covers(identity("ben"))
    assert (table.epoch, table.version) == ("e2", 9)
