"""Centrifugo, built from the Go module proxy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence

from bench.peers.go import build, place
from bench.publisher import HttpWire, Refused, Wire
from bench.receiver import Plan, Style
from bench.server import Server
from bench.ws_client import client_frame, format_upgrade

VERSION = "v6.9.1"
GREETING = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"%s"}}'


class _Commands(HttpWire):
    """A batch is one request of many `publish` commands. channel: which one an event goes to."""

    def __init__(self, port: int, channel: Callable[[bytes], bytes]) -> None:
        super().__init__(port, "/api/batch", "X-API-Key: bench\r\n")
        self.channel = channel

    def body(self, events: Sequence[bytes]) -> bytes:
        commands = b",".join(b'{"publish":{"channel":"%s","data":%s}}' % (self.channel(e), e) for e in events)
        return b'{"commands":[' + commands + b"]}"

    def check(self, body: bytes) -> None:
        if b'"error"' in body:
            raise Refused(repr(body[:200]))


class Centrifugo(Server):
    """Its JSON protocol: `{}` is a ping and its answer; replies are joined by line ends."""

    name = "Centrifugo"
    about = "Centrifugo on its memory engine, JSON protocol, no history; batches through its HTTP API"
    style = Style(ready=b'"id":2,"subscribe"', ping=b"{}", pong=client_frame(b"{}"), between=b"\n{}\n")

    @classmethod
    def prepare(cls) -> None:
        build("centrifugo", "github.com/centrifugal/centrifugo/v6", VERSION)

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"Centrifugo": VERSION.removeprefix("v")}

    def environment(self) -> Mapping[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("CENTRIFUGO_")}

    def command(self) -> Sequence[str]:
        configuration = {
            "http_server": {"address": "127.0.0.1", "port": str(self.port)},
            "http_api": {"key": "bench"},
            "client": {"allow_anonymous_connect_without_token": True, "allowed_origins": ["*"]},
            "channel": {
                "without_namespace": {
                    "allow_subscribe_for_client": True,
                    "allow_subscribe_for_anonymous": True,
                }
            },
            "log": {"level": "warn"},
        }
        (self.data / "config.json").write_text(json.dumps(configuration))
        return [str(place("centrifugo", VERSION)), "-c", str(self.data / "config.json")]

    def plan(self, user: int) -> list[Plan]:
        return [
            Plan(
                self.port,
                format_upgrade(self.port, "/connection/websocket"),
                client_frame(GREETING % self.channel(user)),
            )
        ]

    def wires(self, count: int) -> list[Wire]:
        return [_Commands(self.port, self.channel_of) for _ in range(count)]
