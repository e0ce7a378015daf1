"""What a user would take instead, each with its usual production settings, under the same load as Solowire.

An adapter says how a server is started, joined and published to; nothing else differs. One that can't be installed is
left out with the reason, never guessed.
"""

from __future__ import annotations

from bench.machine import LeftOut
from bench.peers.centrifugo import Centrifugo
from bench.peers.nats import Nats
from bench.peers.nchan import Nchan
from bench.peers.replaced import Replaced
from bench.peers.socketio import SocketIo
from bench.server import Server

PEERS: tuple[type[Server], ...] = (Replaced, SocketIo, Nchan, Nats, Centrifugo)


def available() -> tuple[list[type[Server]], list[str]]:
    """Those that are to be had here, installed, and why the others are not."""
    found, left_out = [], []
    for peer in PEERS:
        try:
            peer.prepare()
        except LeftOut as reason:
            left_out.append(f"{peer.name}: left out: {reason}.")
        else:
            found.append(peer)
    return found, left_out


def versions() -> dict[str, str]:
    """Of those that are to be had here."""
    found: dict[str, str] = {}
    for peer in available()[0]:
        found |= peer.versions()
    return found
