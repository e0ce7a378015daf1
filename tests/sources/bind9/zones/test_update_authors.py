from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from solowire.sources.bind9.zones.update_authors import (
    KEEP_S,
    NOTES,
    NOTES_PER_ZONE,
    UpdateAuthor,
    UpdateAuthors,
    digest_value,
)


def add(
    authors: UpdateAuthors, name: str, value: str, port: int = 1000, key: str | None = None, **more: object
) -> None:
    given = {"zone": "z.example", "action": "add", "type": "A", "client": "192.0.2.9", "now": 0.0, **more}
    authors.note(name=name, value=value, port=port, tsig_key=key, **given)  # type: ignore[arg-type]


def step(*records: tuple[str, str]) -> dict[tuple[str, str], frozenset[bytes]]:
    found: dict[tuple[str, str], frozenset[bytes]] = {}
    for name, value in records:
        digest = digest_value("A", value)
        assert digest is not None
        found[name, "A"] = found.get((name, "A"), frozenset()) | {digest}
    return found


def test_each_of_many_updates_of_one_record_has_its_own_author() -> None:
    """Steps are joined to lines by what was added, in order."""
    authors = UpdateAuthors()
    for number in range(1, 5):
        add(authors, "A.z.example.", f"192.0.2.{number}", key=f"key{number % 2}")
    for number in range(1, 5):
        found = authors.take_author("Z.Example.", None, step(("a.z.example", f"192.0.2.{number}")))
        assert found == UpdateAuthor(client="192.0.2.9", tsig_key=f"key{number % 2}")
    assert authors.take_author("z.example", None, step(("a.z.example", "192.0.2.4"))) is None


def test_all_lines_of_one_update_are_used_up() -> None:
    """What one message changed is not left behind for the next step of the same record."""
    authors = UpdateAuthors({"k": "deploy"})
    authors.note(
        zone="z.example",
        name="a.z.example",
        action="delete",
        type="A",
        value=None,
        client="192.0.2.1",
        now=0,
        tsig_key="k",
    )
    add(authors, "a.z.example", "192.0.2.1", client="192.0.2.1", port=None, key="k")  # type: ignore[arg-type]
    add(authors, "a.z.example", "192.0.2.2", client="192.0.2.7")
    changed = step(("a.z.example", "192.0.2.1"))
    assert authors.take_author("z.example", None, changed) == UpdateAuthor(
        client="192.0.2.1", tsig_key="k", actor="deploy"
    )
    second = authors.take_author("z.example", None, step(("a.z.example", "192.0.2.2")))
    assert second is not None
    assert second.client == "192.0.2.7"


def test_a_views_lines_are_its_own() -> None:
    """The same change in two views has two authors, in whatever order they are asked for."""
    authors = UpdateAuthors()
    add(authors, "a.z.example", "192.0.2.1", client="192.0.2.1", view="inside")
    add(authors, "a.z.example", "192.0.2.1", client="192.0.2.2", view="outside")
    changed = step(("a.z.example", "192.0.2.1"))
    for view, client in (("outside", "192.0.2.2"), ("inside", "192.0.2.1")):
        found = authors.take_author("z.example", view, changed)
        assert found is not None
        assert found.client == client


async def test_a_step_waits_for_its_line_but_not_longer_than_it_may() -> None:
    """A line that comes in time is found; without a feed nobody waits."""
    authors = UpdateAuthors()
    clock = asyncio.get_running_loop().time
    changed = step(("a.z.example", "192.0.2.1"))
    assert await authors.find_author("z.example", None, changed, until=clock() + 3600) is None
    authors.has_feed = True
    assert await authors.find_author("z.example", None, changed, until=clock() + 0.02) is None
    finding = asyncio.create_task(authors.find_author("z.example", None, changed, until=clock() + 3600))
    await asyncio.sleep(0)
    add(authors, "b.z.example", "192.0.2.1")
    await asyncio.sleep(0)
    add(authors, "a.z.example", "192.0.2.1")
    found = await finding
    assert found is not None
    assert found.client == "192.0.2.9"


def test_what_an_update_deleted_is_not_taken_for_what_another_added() -> None:
    """The log doesn't tell deleted records: where records were added, these decide."""
    authors = UpdateAuthors()
    for number, client in ((1, "192.0.2.1"), (2, "192.0.2.2"), (3, "192.0.2.3")):
        for action, value in (("delete", None), ("add", f"192.0.2.{number}")):
            add(authors, "a.z.example", value, client=client, action=action)  # type: ignore[arg-type]
    for number in (2, 3):
        found = authors.take_author("z.example", None, step(("a.z.example", f"192.0.2.{number}")))
        assert found is not None
        assert found.client == f"192.0.2.{number}"
    add(authors, "a.z.example", None, client="192.0.2.4", action="delete")  # type: ignore[arg-type]
    assert authors.take_author("z.example", None, step(("a.z.example", "192.0.2.9"))) is None
    gone = authors.take_author("z.example", None, {("a.z.example", "A"): frozenset()})
    assert gone is not None
    assert gone.client == "192.0.2.4"


def test_memory_is_bounded() -> None:
    """Lines that nobody asks for are forgotten: by number, in all and of each zone, and by age."""
    authors = UpdateAuthors()
    for number in range(NOTES_PER_ZONE + 10):
        add(authors, f"n{number}.z.example", "192.0.2.1")
    assert authors.take_author("z.example", None, step(("n9.z.example", "192.0.2.1"))) is None
    for number in range(NOTES):
        add(authors, "a.example", "192.0.2.1", zone=f"z{number % 100}.example")
    assert authors.take_author("z.example", None, step(("n99.z.example", "192.0.2.1"))) is None
    add(authors, "b.example", "192.0.2.1", zone="z7.example", now=KEEP_S + 1)
    assert authors.take_author("z7.example", None, step(("a.example", "192.0.2.1"))) is None
    assert authors.take_author("z7.example", None, step(("b.example", "192.0.2.1"))) is not None


def test_lines_that_wait_outlive_the_process() -> None:
    """They are older than those that have been read since."""
    authors = UpdateAuthors()
    add(authors, "a.z.example", "192.0.2.1", client="192.0.2.1")
    later = UpdateAuthors()
    add(later, "a.z.example", "192.0.2.1", client="192.0.2.2")
    later.load_notes(authors.dump_notes(), 5.0)
    for client in ("192.0.2.1", "192.0.2.2"):
        found = later.take_author("z.example", None, step(("a.z.example", "192.0.2.1")))
        assert found is not None
        assert found.client == client


@given(st.text(), st.text(), st.sampled_from(["A", "TXT", "TYPE65400", "nonsense", ""]), st.text())
def test_no_line_breaks_it(zone: str, name: str, type: str, value: str) -> None:
    """Whatever stands in a line is kept or ignored."""
    authors = UpdateAuthors()
    authors.note(zone=zone, name=name, action="add", type=type, value=value, client=None, now=0)
    authors.take_author(zone, None, {(name, type): frozenset()})
