"""`python -m bench.dnstap_load SOCKET PER_SECOND SECONDS`: a name server's end of dnstap, busy by the clock.

Prepared queries and answers, each pair with the moment at which it is sent, to the ms that it was due. A name server
would drop what is not read in time; this one waits, and what it prints at its end says so: pairs sent, and by how many
ms the last of all was late.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from pathlib import Path

from bench.dnstap_frames import TYPES, DnstapSender, add_length, make_frame, make_query, make_response

PAIRS = 5_000
TICK_S = 0.005
_SECONDS, _NANOSECONDS = 1_234_567_890, 500_000_000
_NSEC = struct.pack("<I", _NANOSECONDS)


def make_pairs(count: int = PAIRS, seed: int = 4) -> list[bytes]:
    """Queries of a resolver's clients, each with its answer, as they go over the connection; names by Zipf's law."""
    chance = random.Random(seed)
    names = [f"host{n}.zone{n % 100}.example" for n in range(5_000)]
    at = _SECONDS + _NANOSECONDS / 1e9
    pairs = []
    for number, name in enumerate(chance.choices(names, [1 / (n + 1) for n in range(len(names))], k=count)):
        cookie = struct.pack("!2H", 10, 8) + chance.randbytes(8)
        query = make_query(name, TYPES[chance.choice(("A", "A", "A", "AAAA", "HTTPS", "MX"))], number, edns=cookie)
        response = make_response(query, chance.choice((0, 0, 0, 3)))
        client, port = f"10.0.{chance.randrange(4)}.{chance.randrange(250)}", chance.randrange(1024, 65536)
        asked = make_frame("CLIENT_QUERY", query, client=client, port=port, at=at)
        answered = make_frame("CLIENT_RESPONSE", response, client=client, port=port, answered_at=at)
        pairs.append(add_length(asked) + add_length(answered))
    return pairs


class PreparedPairs:
    """Prepared pairs, with the times put in. A time of the year 2026 has as many bytes as the one in its place."""

    def __init__(self, pairs: list[bytes]) -> None:
        old = _pack_varint(_SECONDS)
        self._pairs = [bytearray(pair) for pair in pairs]
        self._places = [
            (pair.index(old), pair.rindex(old), pair.index(_NSEC), pair.rindex(_NSEC)) for pair in self._pairs
        ]

    def make(self, first: int, count: int, at: float) -> bytes:
        """`count` pairs in turn from the `first`th on, as of the moment `at`."""
        seconds, nanoseconds = _pack_varint(int(at)), struct.pack("<I", int(at % 1 * 1e9))
        made = []
        for number in range(first, first + count):
            index = number % len(self._pairs)
            pair = self._pairs[index]
            one, two, three, four = self._places[index]
            pair[one : one + 5] = pair[two : two + 5] = seconds
            pair[three : three + 4] = pair[four : four + 4] = nanoseconds
            made.append(pair)
        return b"".join(made)


def _pack_varint(number: int) -> bytes:
    packed = bytearray()
    while number > 127:
        packed.append(number & 127 | 128)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def main() -> None:
    path, per_second, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    prepared = PreparedPairs(make_pairs())
    sender = DnstapSender(path)
    total, sent = int(per_second * seconds), 0
    start = time.monotonic()
    late = 0.0
    while sent < total:
        due = min(total, int((time.monotonic() - start) * per_second))
        if due > sent:
            sender.sock.sendall(prepared.make(sent, due - sent, time.time()))
            sent = due
        late = time.monotonic() - start - sent / per_second
        time.sleep(TICK_S)
    sender.finish()
    sys.stdout.write(f"{sent} {late * 1e3:.1f}\n")


if __name__ == "__main__":
    main()
