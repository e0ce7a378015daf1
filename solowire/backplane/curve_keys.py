"""The keys of the backplane over TCP: CURVE (ZeroMQ RFC 26), Curve25519 pairs written as 40 characters of Z85 (RFC 32).

The router has a pair, and members (shards and gateways) have one or more. A member is given the router's public key, so
that it talks to no other; the router is given the members' public keys, and lets nobody else in. All of them may come
from one seed instead:

    secret key of the router  = BLAKE2b(seed, 32 bytes, person "solowire-router")
    secret key of the members = BLAKE2b(seed, 32 bytes, person "solowire-member")

where the seed is its text in UTF-8 (BLAKE2: RFC 7693; the personalisation keeps the two apart). Whoever has the seed
has both pairs: it is worth as much as the secret that signs tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

SEED_CHARACTERS = 32
"""A seed of fewer could be guessed, away from us and at any pace, by who has seen one handshake."""

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_ROUTER, _MEMBER = b"solowire-router", b"solowire-member"
_AWKWARD = re.compile(r"\$|^[^0-9a-zA-Z]")


@dataclass(frozen=True)
class RouterKeys:
    """What the router needs. secret: its own secret key. members: the public keys that it lets in. All in Z85."""

    secret: str = field(repr=False)
    members: frozenset[str]


@dataclass(frozen=True)
class MemberKeys:
    """What a shard or a gateway needs. secret: its own. routers: the router's public key, or several to try in turn."""

    secret: str = field(repr=False)
    routers: tuple[str, ...]


def is_key(text: str) -> bool:
    """Whether it is written as a key is."""
    return _KEY.fullmatch(text) is not None


def make_pair() -> tuple[str, str]:
    """A new public key and its secret one.

    Both begin with a letter or a digit and hold no `$`, so that shells, `.env` files and YAML take them as they are.
    """
    import zmq

    while True:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        if not _AWKWARD.search(public) and not _AWKWARD.search(secret):
            return public, secret


def find_public_key(secret: str) -> str:
    """The public key that belongs to a secret one. Raises ValueError if the text is no key."""
    import zmq  # where it is needed: settings are read by commands that send nothing

    if not is_key(secret):
        raise ValueError("it is no key: 40 characters, as `solowire keys` makes them")
    try:
        return zmq.curve_public(secret.encode()).decode()
    except zmq.ZMQError:
        raise ValueError("it is no key: its characters stand for no number") from None


def derive_router_keys(seeds: Sequence[str]) -> RouterKeys:
    """The router's keys by seeds: the first one's own pair, and the members of all."""
    return RouterKeys(_derive(seeds[0], _ROUTER), frozenset(find_public_key(_derive(seed, _MEMBER)) for seed in seeds))


def derive_member_keys(seeds: Sequence[str]) -> MemberKeys:
    """A member's keys by seeds: the first one's own pair, and the routers of all."""
    return MemberKeys(_derive(seeds[0], _MEMBER), tuple(find_public_key(_derive(seed, _ROUTER)) for seed in seeds))


def _derive(seed: str, person: bytes) -> str:
    from zmq.utils import z85

    return z85.encode(hashlib.blake2b(seed.encode(), digest_size=32, person=person).digest()).decode()
