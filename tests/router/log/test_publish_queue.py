"""The order of publish requests: fair between publishers, and that of arrival for each."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solowire.backplane.messages import PublishRequest
from solowire.router.log.publish_queue import FORGET_ABOVE, PublishQueue, QueuedRequest


def put(queue: PublishQueue, publisher: str, number: int, size: int = 100) -> None:
    queue.add(QueuedRequest(b"gateway", PublishRequest(number, [], publisher), False), size)


def take(queue: PublishQueue) -> tuple[str, int]:
    message = queue.take_next().message
    return message.publisher, message.request


def test_who_sends_little_does_not_wait_for_who_sends_much() -> None:
    """Behind a thousand requests of one publisher another's is the next but one."""
    queue = PublishQueue()
    for number in range(1000):
        put(queue, "eve", number)
    assert take(queue) == ("eve", 0)
    put(queue, "ann", 0)
    put(queue, "ann", 1)
    assert [take(queue) for _ in range(4)] == [("ann", 0), ("eve", 1), ("ann", 1), ("eve", 2)]


def test_turns_are_by_bytes() -> None:
    """Whoever sends few and large requests gets no more than whoever sends many small ones."""
    queue = PublishQueue()
    for number in range(100):
        put(queue, "large", number, 1000)
        put(queue, "small", number, 100)
    taken = [take(queue)[0] for _ in range(44)]
    assert taken.count("small") == 40


def test_who_was_quiet_has_saved_nothing() -> None:
    """One who has not sent for long has one turn like the others, and not all that it let pass."""
    queue = PublishQueue()
    for number in range(50):
        put(queue, "eve", number)
    for _ in range(20):
        take(queue)
    for number in range(20):
        put(queue, "ann", number)
    assert [take(queue)[0] for _ in range(20)].count("eve") >= 9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5000), st.booleans()), max_size=80))
def test_each_is_taken_once_and_those_of_a_publisher_in_their_order(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever comes when: nothing is lost, and no publisher's order changes."""
    queue, sent, taken = PublishQueue(), [], []
    for number, (publisher, size, takes) in enumerate(steps):
        put(queue, publisher, number, size)
        sent.append((publisher, number))
        if takes:
            taken.append(take(queue))
    while queue:
        taken.append(take(queue))
    assert sorted(taken) == sorted(sent)
    for name in "abc":
        assert [number for publisher, number in taken if publisher == name] == [
            number for publisher, number in sent if publisher == name
        ]


def test_publishers_are_forgotten() -> None:
    """Names that come once cost nothing for long, though the queue is never empty."""
    queue = PublishQueue()
    put(queue, "eve", 0, 10**9)
    put(queue, "eve", 1)
    for number in range(3 * FORGET_ABOVE):
        put(queue, f"user-{number}", number, 1)
        take(queue)
    assert len(queue._ends) <= FORGET_ABOVE + 2
