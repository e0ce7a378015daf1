"""The publisher for programs without an event loop: threads, forks and the end of the process, with a small gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from solowire.errors import BufferFull, PublishRefused
from solowire.sdk.sync_publisher import SyncPublisher
from tests.support.publish_gateway import Gateway, problem

DEADLINE_S = 60.0


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway().running_in_thread() as gateway:
        yield gateway


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "solowire publisher"]


def types(gateway: Gateway) -> list[str]:
    return [event["type"] for event in gateway.log]


# ---------------------------------------------------------------------------------------------- in one process


def test_publishes_in_order_and_in_batches(gateway: Gateway) -> None:
    """Events arrive in the order in which they were published, under the ids that were returned."""
    with SyncPublisher(gateway.url, "tok", batch=10, linger=0.05) as publisher:
        ids = [publisher.publish("custom.n", {"n": n}) for n in range(35)]
    assert gateway.values == list(range(35))
    assert [id for request in gateway.requests for id in request] == ids
    assert max(map(len, gateway.requests)) == 10
    assert (publisher.stats.accepted, publisher.unsent) == (35, [])


def test_there_is_no_thread_before_the_first_use(gateway: Gateway) -> None:
    """Neither making a publisher nor entering it starts a thread, and closing one ends it."""
    publisher = SyncPublisher(gateway.url, "tok")
    with publisher:
        assert threads() == []
        publisher.publish("custom.n", {"n": 1})
        assert len(threads()) == 1
        publisher.drain()
        assert gateway.values == [1]
    assert threads() == []
    SyncPublisher(gateway.url, "tok").close()


def test_publishes_from_many_threads(gateway: Gateway) -> None:
    """Several threads publish through one publisher; each one's events are complete and in its own order."""
    with SyncPublisher(gateway.url, "tok") as publisher:

        def work(who: int) -> None:
            for n in range(200):
                publisher.publish("custom.n", {"n": n, "who": who})

        workers = [threading.Thread(target=work, args=(who,)) for who in range(5)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for who in range(5):
        assert [e["data"]["n"] for e in gateway.log if e["data"]["who"] == who] == list(range(200))
    assert threads() == []


def test_full_buffer_is_told_at_once(gateway: Gateway) -> None:
    """At its bound the buffer takes nothing, from whatever thread, and takes more when the gateway has."""
    gateway.open.clear()
    with SyncPublisher(gateway.url, "tok", buffer_events=5) as publisher:
        for n in range(5):
            publisher.publish("custom.n", {"n": n})
        for _ in range(3):
            with pytest.raises(BufferFull):
                publisher.publish("custom.n", {"n": 5})
        with pytest.raises(TimeoutError, match="5 events"):
            publisher.drain(0.01)
        gateway.set_open()
        publisher.drain(DEADLINE_S)
        publisher.publish("custom.n", {"n": 6})
    assert gateway.values == [0, 1, 2, 3, 4, 6]


def test_what_was_lost_is_sent_again_and_logged_once(gateway: Gateway) -> None:
    """An answer that was lost, or that asks to wait, makes the same events come again under the same ids."""
    gateway.script.extend([None, problem(503, retry_after="0")])
    with SyncPublisher(gateway.url, "tok") as publisher:
        publisher.publish("custom.n", {"n": 1})
        publisher.drain(DEADLINE_S)
        assert (publisher.stats.retries, publisher.stats.duplicates) == (2, 1)
    assert gateway.values == [1]


def test_refused_events_are_handed_back(gateway: Gateway) -> None:
    """on_refused is told of an event that the gateway names, and may publish another in its place, but not wait."""
    gateway.judge = lambda events: next(
        (
            problem(400, errors=[{"index": i, "path": "$.data", "message": "no"}])
            for i, event in enumerate(events)
            if event["data"]["n"] < 0
        ),
        None,
    )
    faults: list[Exception] = []

    def replace(event: dict[str, Any], problem: dict[str, Any]) -> None:
        publisher.publish("custom.n", {"n": -event["data"]["n"]})
        try:
            publisher.drain()
        except RuntimeError as error:
            faults.append(error)

    publisher = SyncPublisher(gateway.url, "tok", on_refused=replace)
    with publisher:
        for n in (1, -2, 3):
            publisher.publish("custom.n", {"n": n})
        publisher.drain(DEADLINE_S)
        publisher.publish("custom.n", {"n": -4})  # is handed back while it is closed
    assert sorted(gateway.values) == [1, 2, 3, 4]
    assert "must not wait" in str(faults[0])


def test_publishes_and_waits(gateway: Gateway) -> None:
    """`publish_and_wait` returns what the gateway says, or raises it."""
    with SyncPublisher(gateway.url, "tok") as publisher:
        done = publisher.publish_and_wait({"type": "custom.n", "data": {"n": n}} for n in range(3))
        assert (done.accepted, done.last_offset) == (3, 3)
        gateway.script.append(problem(403))
        with pytest.raises(PublishRefused):
            publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}})
        with pytest.raises(TypeError):
            publisher.publish_and_wait("no")  # type: ignore[arg-type]


def test_bulk_operations(gateway: Gateway) -> None:
    """A bulk operation is told as it is by the other publisher, counted in many threads, and its fault is raised on."""

    def work() -> None:
        for _ in range(100):
            operation.add_succeeded()

    with SyncPublisher(gateway.url, "tok") as publisher:
        with publisher.bulk("import", total=400, zone="example.com.") as operation:
            workers = [threading.Thread(target=work) for _ in range(4)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        with pytest.raises(ZeroDivisionError), publisher.bulk("export"):
            _ = 1 / 0
    assert types(gateway) == ["bulk_started", "bulk_completed", "bulk_started", "bulk_failed"]
    assert gateway.log[1]["data"]["processed"] == 400
    assert gateway.log[3]["data"]["error"] == "ZeroDivisionError: division by zero"


def test_a_bulk_operation_outlives_its_publisher(gateway: Gateway) -> None:
    """Counting never raises for a publisher that was closed meanwhile; the end says that it can't be published."""
    publisher = SyncPublisher(gateway.url, "tok")
    bulk = publisher.bulk("import")
    operation = bulk.__enter__()
    publisher.close()
    operation.add_succeeded()
    with pytest.raises(RuntimeError):
        bulk.__exit__(None, None, None)


async def test_works_beside_an_event_loop(gateway: Gateway) -> None:
    """In a program that has an event loop of its own, it works as it does elsewhere, and has another loop."""
    with SyncPublisher(gateway.url, "tok") as publisher:
        publisher.publish("custom.n", {"n": 1})
        await asyncio.to_thread(publisher.drain)
        assert gateway.values == [1]


def test_refuses_wrong_arguments_and_data_at_once(gateway: Gateway) -> None:
    """What is wrong is raised where it was written, with no thread started for it."""
    with pytest.raises(ValueError, match="url"):
        SyncPublisher("gateway:8000", "tok")
    with pytest.raises(TypeError, match="batch"):
        SyncPublisher(gateway.url, "tok", batch="9")  # type: ignore[arg-type]
    with SyncPublisher(gateway.url, "tok") as publisher:
        with pytest.raises(TypeError, match=r"\$\.data\.a"):
            publisher.publish("custom.n", {"a": {1}})
        with pytest.raises(TypeError, match="total"):
            publisher.bulk("import", total="9").__enter__()  # type: ignore[arg-type]
        assert threads() == []


def test_a_closed_publisher_says_so(gateway: Gateway) -> None:
    """After close() nothing is taken; closing again does nothing."""
    publisher = SyncPublisher(gateway.url, "tok")
    publisher.publish("custom.n", {"n": 1})
    publisher.close()
    publisher.close()
    for use in (lambda: publisher.publish("custom.n", {}), publisher.drain, lambda: publisher.publish_and_wait([])):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert gateway.values == [1]


def test_what_is_left_over_is_said(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """Closing says what was not accepted in time, as an exception, or in the log if another one is on its way."""
    gateway.open.clear()
    publisher = SyncPublisher(gateway.url, "tok", timeout=0.05)
    publisher.publish("custom.n", {"n": 1})
    with pytest.raises(PublishRefused, match="1 events"):
        publisher.close()
    assert [event["data"] for event in publisher.unsent] == [{"n": 1}]
    publisher = SyncPublisher(gateway.url, "tok", timeout=0.05)
    publisher.publish("custom.n", {"n": 2})
    with pytest.raises(ZeroDivisionError), publisher:
        _ = 1 / 0
    assert "1 events are left over" in caplog.text


def test_a_stopped_publisher_keeps_its_events(gateway: Gateway) -> None:
    """When nothing can succeed any more, the next call raises why, and the events are there to be kept."""
    gateway.script.append(problem(403, "no right"))
    publisher = SyncPublisher(gateway.url, "tok")
    publisher.publish("custom.n", {"n": 1})
    with pytest.raises(PublishRefused, match="no right"):
        publisher.drain(DEADLINE_S)
    with pytest.raises(PublishRefused):
        publisher.publish("custom.n", {"n": 2})
    assert [event["data"] for event in publisher.unsent] == [{"n": 1}]
    with pytest.raises(PublishRefused):
        publisher.close()


def test_a_token_function_that_waits_holds_up_no_one(gateway: Gateway) -> None:
    """While the token function blocks, publish() returns, and closing is bounded."""
    released = threading.Event()

    def wait() -> str:
        released.wait(DEADLINE_S)
        return "tok"

    publisher = SyncPublisher(gateway.url, wait, timeout=0.05)
    publisher.publish("custom.n", {"n": 1})
    publisher.publish("custom.n", {"n": 2})
    with pytest.raises(PublishRefused, match="2 events are left over"):
        publisher.close()
    released.set()
    until(lambda: threads() == [])


# ---------------------------------------------------------------------------------------------- whole programs


def run(gateway: Gateway, script: str, *, status: int = 0) -> str:
    """Runs a program that has `url`, and returns what it wrote to its standard error."""
    head = f"""
        import multiprocessing, os, sys, threading
        from solowire import SyncPublisher
        url = {gateway.url!r}

        def end_of(pid):
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-W", "ignore:This process:DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def test_a_script_that_ends_loses_nothing(gateway: Gateway) -> None:
    """At the interpreter's end what is buffered is sent, by name of the host too, whose lookup has no threads then."""
    gateway.url = gateway.url.replace("127.0.0.1", "localhost")
    said = run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok")
        for n in range(500):
            publisher.publish("custom.n", {"n": n})
        """,
    )
    assert gateway.values == list(range(500))
    assert said == ""


def test_a_script_that_ends_says_what_was_left(gateway: Gateway) -> None:
    """At the interpreter's end the wait is bounded, and what is left over is said."""
    gateway.open.clear()
    said = run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok", timeout=0.1)
        for n in range(3):
            publisher.publish("custom.n", {"n": n})
        """,
    )
    assert "3 events are left over at the end of the process" in said


def test_a_script_that_fails_keeps_its_fault(gateway: Gateway) -> None:
    """An exception that ends the program is shown as it is, and the events before it are sent."""
    said = run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok")
        publisher.publish("custom.n", {"n": 1})
        raise SystemError("mine")
        """,
        status=1,
    )
    assert said.strip().endswith("SystemError: mine")
    assert gateway.values == [1]


def test_forks_share_nothing(gateway: Gateway) -> None:
    """A server that published before it forked, and its children, each send what they published, once."""
    said = run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok", linger=0.2)
        publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}})  # a connection is open
        publisher.publish("custom.n", {"n": 2})  # and something is in the buffer
        children = []
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                assert publisher.unsent == [] and publisher.stats.accepted == 0
                for n in range(20):
                    publisher.publish("custom.n", {"n": 100 * (child + 1) + n})
                sys.exit()
            children.append(pid)
        assert [end_of(pid) for pid in children] == [0, 0, 0]
        publisher.publish("custom.n", {"n": 3})
        publisher.drain()
        assert publisher.stats.accepted == 3
        """,
    )
    assert said == ""
    values = gateway.values
    assert sorted(values) == sorted([1, 2, 3, *(100 * c + n for c in (1, 2, 3) for n in range(20))])
    for c in (1, 2, 3):
        assert [n for n in values if n // 100 == c] == [100 * c + n for n in range(20)]


def test_a_child_does_not_hold_its_parents_connection(gateway: Gateway) -> None:
    """What the parent closes is closed, while a child lives that was forked when it was open."""
    run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok")
        publisher.publish_and_wait({"type": "custom.n", "data": {"n": 1}})
        def sockets():
            links = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    links.append(os.readlink(f"/proc/self/fd/{fd}"))
                except OSError:  # of the listing itself
                    pass
            return [link for link in links if link.startswith(("socket:", "anon_inode:[eventpoll]"))]
        assert len(sockets()) == 4, sockets()  # the loop's own, two with which it is woken, and the connection
        pid = os.fork()
        if pid == 0:
            os._exit(len(sockets()))
        assert end_of(pid) == 1  # with which the parent's loop could be woken, and is not
        publisher.publish_and_wait({"type": "custom.n", "data": {"n": 2}})
        """,
    )
    assert gateway.values == [1, 2]


def test_a_fork_while_other_threads_publish(gateway: Gateway) -> None:
    """A fork at any moment, with locks held by threads that the child does not have, leaves a publisher that works."""
    said = run(
        gateway,
        """
        import time
        from solowire import BufferFull
        publisher = SyncPublisher(url, "tok", buffer_events=1000)
        ended = False
        def work(who):
            n = 0
            while not ended:
                try:
                    publisher.publish("custom.n", {"n": n, "who": who})
                    n += 1
                except BufferFull:
                    pass
                time.sleep(0.0005)
        threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for i in range(8):
            pid = os.fork()
            if pid == 0:
                publisher.publish("custom.n", {"n": i, "who": "child"})
                sys.exit()
            assert end_of(pid) == 0
        ended = True
        for thread in threads:
            thread.join()
        publisher.drain()
        """,
    )
    assert said == ""
    numbers: dict[str, list[int]] = {}
    for event in gateway.log:
        numbers.setdefault(event["data"]["who"], []).append(event["data"]["n"])
    assert numbers.pop("child") == list(range(8))
    assert all(each == list(range(len(each))) for each in numbers.values())
    assert len(numbers) == 3


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_lose_nothing(gateway: Gateway, method: str, tmp_path: Any) -> None:
    """The processes of `multiprocessing` end without the interpreter's own end, and send what they published."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing
            from solowire import SyncPublisher

            publisher = SyncPublisher({gateway.url!r}, "tok")

            def work(n):
                publisher.publish("custom.n", {{"n": n}})

            if __name__ == "__main__":
                publisher.publish("custom.n", {{"n": 0}})
                processes = multiprocessing.get_context({method!r})
                children = [processes.Process(target=work, args=(n,)) for n in (1, 2, 3)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
            """
        )
    )
    ignored = ["-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run([sys.executable, *ignored, path], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(gateway.values) == [0, 1, 2, 3]


def test_a_fork_within_a_bulk_operation(gateway: Gateway) -> None:
    """A child that was forked within an operation can't count in it, and ends nothing when it leaves the block."""
    said = run(
        gateway,
        """
        publisher = SyncPublisher(url, "tok")
        with publisher.bulk("import") as operation:
            pid = os.fork()
            if pid == 0:
                try:
                    operation.add_succeeded()
                except RuntimeError as error:
                    assert str(os.getppid()) in str(error)
                else:
                    os._exit(9)
            else:
                assert end_of(pid) == 0
                operation.add_succeeded()
        """,
    )
    assert said == ""
    assert [type for type in types(gateway) if type != "bulk_progress"] == ["bulk_started", "bulk_completed"]


def test_an_interrupted_wait_ends(gateway: Gateway) -> None:
    """Ctrl-C ends a wait for the gateway, and the bounded wait at the end of the process says what is left."""
    gateway.open.clear()
    said = run(
        gateway,
        """
        import signal, time
        publisher = SyncPublisher(url, "tok", timeout=0.1)
        publisher.publish("custom.n", {"n": 1})
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            publisher.drain()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        """,
    )
    assert "interrupted\n" in said
    assert "1 events are left over" in said
