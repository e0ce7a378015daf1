"""Users and publishers for locust: `locust -f bench/locustfile.py --host http://127.0.0.1:8000`; docs/load-testing.md.

What a user keeps true: every publisher numbers its events, so a gap or a duplicate can't hide, across reconnects too;
each is a failure in locust's statistics. The latency of an event is the time from its own timestamp, which the
publisher set, to its arrival: with workers on several machines it is as good as their clocks.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-call"
from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import gevent
import jwt
import msgspec
import websocket
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

SUBPROTOCOL = "solowire.v1.json"
EVENT_TYPE = "custom.load"
TERMINAL = frozenset({4400, 4401, 4403, 4409, 4410})
"""Close codes after which coming back is of no use (docs/protocol.md)."""
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.2, 5.0
SILENCE_S = 90.0
"""The server pings every 25 s: who hears nothing for so long is not connected."""
CONNECT, RECEIVE, RESUME = "open and welcome", "publish → receive", "away → resumed"
LATE, HELLO_ID = "hello came too late", 1
DATA_DIR = str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "solowire")


class _Refused(Exception):
    """Not now, or not so: come again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"refused for {seconds:g} s")
        self.seconds = seconds


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    add, loads = parser.add_argument, ["steady", "ramp", "spike", "storm"]
    data_dir = "of the system under test: its secret signs the users' tokens"
    add("--data-dir", env_var="SOLOWIRE_DATA_DIR", default=DATA_DIR, help=data_dir)
    add("--secret", env_var="SOLOWIRE_SECRET", default="", is_secret=True, help="instead of the data directory's")
    add("--publishers", type=int, default=1, help="how many, whatever the number of users")
    add("--rate", type=float, default=100.0, help="events per second of each publisher")
    add("--batch", type=int, default=10, help="events in one request")
    add("--load", choices=loads, default="steady", help="how users come and go")
    add("--storm-every", type=float, default=10.0, help="seconds from one cut of `storm` to the next")


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    PublisherUser.fixed_count = _options(environment).publishers
    if environment.runner is not None:
        environment.runner.register_message("storm", lambda **_: SolowireUser.cut_all())


def _options(environment: Environment) -> Any:
    return environment.parsed_options


def _token(environment: Environment, user: str) -> str:
    chosen = _options(environment)
    # A worker's options are the master's, which may be empty there: its own environment is asked then.
    secret = chosen.secret or os.environ.get("SOLOWIRE_SECRET")
    secret = secret or (Path(chosen.data_dir) / "secret").read_text().strip()
    now = int(time.time())
    return jwt.encode({"sub": user, "role": "admin", "iat": now, "exp": now + 24 * 3600}, secret, "HS256")


def _retry_after(response: Any) -> float:
    try:
        return float(response.headers.get("Retry-After") or BACKOFF_MIN_S)
    except (TypeError, ValueError, AttributeError):
        return BACKOFF_MIN_S


class SolowireUser(FastHttpUser):
    """One user with one WebSocket, who comes back when it ends and must then have missed nothing."""

    weight = 1
    live: ClassVar[set[SolowireUser]] = set()

    def on_start(self) -> None:
        self.token = _token(self.environment, f"locust-{uuid.uuid4()}")
        self.socket: websocket.WebSocket | None = None
        self.epoch = ""
        self.cursor = 0
        self.offset = 0
        self.numbers: dict[str, int] = {}
        self.left_at: float | None = None
        self.attempt = 0
        SolowireUser.live.add(self)

    def on_stop(self) -> None:
        SolowireUser.live.discard(self)
        self._close()

    @classmethod
    def cut_all(cls) -> None:
        """As if the network had gone: every user's socket ends at once, and no close frame is sent."""
        for user in list(cls.live):
            if user.socket is not None and user.socket.sock is not None:
                with contextlib.suppress(OSError):
                    user.socket.sock.shutdown(2)

    def _close(self) -> None:
        if self.socket is not None:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                self.socket.close(timeout=1)
            self.socket = None

    @task
    def stay(self) -> None:
        """One session, from asking for a ticket to the end of the socket, and the wait before the next."""
        away = None
        try:
            self._open(self._ask_ticket())
            for message in self._messages():
                if message["type"] == "reconnect":
                    away = message["after_ms"] / 1000
                    break
        except _Refused as refused:
            away = refused.seconds
        except (OSError, websocket.WebSocketException):
            pass
        finally:
            self._close()
        self.left_at = self.left_at or time.perf_counter()
        if away is None:
            away = random.uniform(0, min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**self.attempt))
            self.attempt += 1
        gevent.sleep(away)

    def _ask_ticket(self) -> Any:
        # Asked for seldom: a connection kept for that may be closed by the gateway just when it is used again.
        headers = {"Authorization": f"Bearer {self.token}", "Connection": "close"}
        with self.client.post("/v1/connect", headers=headers, catch_response=True) as answer:
            if answer.status_code in (429, 503):
                answer.success()  # told to wait, which is a part of the protocol
                raise _Refused(_retry_after(answer))
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text}")
                raise _Refused(BACKOFF_MAX_S)
            return answer.json()

    def _open(self, ticket: Any) -> None:
        """Raises _Refused, OSError, WebSocketException."""
        start = time.perf_counter()
        hello: dict[str, Any] = {"type": "hello", "id": HELLO_ID, "subscriptions": ["custom.*"]}
        if self.epoch:
            hello["resume"] = {"epoch": self.epoch, "cursor": self.cursor}
        try:
            self.socket = websocket.create_connection(
                ticket["url"], timeout=SILENCE_S, subprotocols=[SUBPROTOCOL], skip_utf8_validation=True
            )
            self.socket.send_text(msgspec.json.encode(hello).decode())
            self._welcomed(self._receive())
        except (OSError, websocket.WebSocketException) as error:
            self._tell(CONNECT, start, error)
            raise
        self._tell(CONNECT, start)

    def _welcomed(self, welcome: dict[str, Any]) -> None:
        if welcome["type"] != "welcome":
            raise websocket.WebSocketException(f"{welcome['type']} where a welcome was due")
        if welcome.get("id") != HELLO_ID:
            self._tell(LATE, time.perf_counter())
            raise _Refused(BACKOFF_MIN_S)  # this session does not go on from the cursor, which stays ours
        self.attempt = 0
        if self.epoch:
            refusal = None if welcome["resumed"] else RuntimeError(f"resumed: false ({welcome.get('reason')})")
            self._tell(RESUME, self.left_at or time.perf_counter(), refusal)
        self.left_at = None
        if not welcome["resumed"]:
            self.numbers.clear()
            self.epoch, self.cursor, self.offset = welcome["epoch"], welcome["cursor"], 0

    def _receive(self) -> dict[str, Any]:
        """Raises OSError, WebSocketException; StopUser after a close code that is final."""
        assert self.socket is not None
        opcode, payload = self.socket.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            if code in TERMINAL:
                self._tell("closed", time.perf_counter(), RuntimeError(f"closed with {code} {payload[2:].decode()}"))
                raise StopUser
            raise websocket.WebSocketConnectionClosedException(f"closed with {code}")
        message: dict[str, Any] = msgspec.json.decode(payload)
        return message

    def _messages(self) -> Iterator[dict[str, Any]]:
        assert self.socket is not None
        while True:
            message = self._receive()
            match message["type"]:
                case "events":
                    self._take(message)
                case "ping":
                    self.cursor = message.get("cursor", self.cursor)
                    self.socket.send_text('{"type":"pong"}')
                case "error" | "notice":
                    self._tell(message["type"], time.perf_counter(), RuntimeError(message["message"]))
            yield message

    def _take(self, message: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        self.cursor = message["cursor"]
        for event in message["events"]:
            fault = self._fault(event)
            took = (now - datetime.fromisoformat(event["timestamp"])).total_seconds()
            self._fire(RECEIVE, max(0.0, took), RuntimeError(fault) if fault else None)

    def _fault(self, event: dict[str, Any]) -> str:
        """What is wrong with an event's place among the others; '' if nothing."""
        if event["offset"] <= self.offset:
            return "duplicate: an offset that was there before"
        self.offset = event["offset"]
        publisher, number = event["data"].get("publisher"), event["data"].get("n")
        if event["type"] != EVENT_TYPE or publisher is None:
            return ""
        last = self.numbers.get(publisher)
        self.numbers[publisher] = number
        if last is None or number == last + 1:
            return ""
        return "gap: events are missing" if number > last else "duplicate: a number that was there before"

    def _tell(self, name: str, start: float, error: Exception | None = None) -> None:
        self._fire(name, time.perf_counter() - start, error)

    def _fire(self, name: str, seconds: float, error: Exception | None) -> None:
        values = {"request_type": "WS", "name": name, "response_time": seconds * 1000, "response_length": 0}
        self.environment.events.request.fire(**values, exception=error, context={})


class PublisherUser(FastHttpUser):
    """Publishes numbered events at a steady rate, and repeats what was not acknowledged under the same ids."""

    fixed_count = 1

    def on_start(self) -> None:
        self.name = f"p-{uuid.uuid4()}"
        self.number = 0
        token = _token(self.environment, self.name)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def wait_time(self) -> float:
        chosen = _options(self.environment)
        return float(constant_throughput(chosen.rate / chosen.batch)(self))

    @task
    def publish(self) -> None:
        first, self.number = self.number, self.number + _options(self.environment).batch
        now = datetime.now(UTC).isoformat()
        data = [{"publisher": self.name, "n": n, "pad": "x" * 60} for n in range(first, self.number)]
        batch = [{"type": EVENT_TYPE, "id": f"{self.name}-{d['n']}", "timestamp": now, "data": d} for d in data]
        body = msgspec.json.encode(batch).decode()
        while (wait := self._send(body)) is not None:
            gevent.sleep(wait)

    def _send(self, body: str) -> float | None:
        """None: it was taken. Else the seconds to wait before it is sent again."""
        with self.client.post("/v1/events", data=body, headers=self.headers, catch_response=True) as answer:
            if answer.status_code in (429, 503):
                answer.success()
                return _retry_after(answer)
            if answer.status_code == 200:
                return None
            answer.failure(f"{answer.status_code}: {answer.text}")
            if answer.status_code:
                raise StopUser  # refused for good: numbers would be missing
            return BACKOFF_MIN_S


class Load(LoadTestShape):
    """How users come and go, by `--load`; -u, -r and -t say how many, how fast and how long.

    steady: all of them. ramp: more each second until the end. spike: a fifth, and all of them in the middle third.
    storm: all of them, and every ten seconds (`--storm-every`) every socket is cut at once.
    """

    use_common_options = True
    _storms = 0  # how many have been due

    def reset_time(self) -> None:
        super().reset_time()
        self._storms = 0  # of a run, and the page starts one after the other

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        chosen = _options(self.runner.environment)
        users, rate = chosen.num_users or 20, chosen.spawn_rate or 10
        now, end = self.get_run_time(), chosen.run_time or 0
        if end and now >= end:
            return None
        match chosen.load:
            case "ramp":
                users = max(1, min(users, int(users * now / (end or 60)) + 1))
            case "spike":
                users = users if (end or 60) / 3 <= now < 2 * (end or 60) / 3 else max(1, users // 5)
                rate = max(rate, chosen.num_users or 20)
            case "storm" if (storms := int(now // chosen.storm_every)) > self._storms:
                self._storms = storms
                self.runner.send_message("storm", {})
        return users + chosen.publishers, rate
