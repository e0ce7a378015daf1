"""NOTIFY messages (RFC 1996), and the answers to them.

Pure. A NOTIFY is a hint to look, and nothing of what it says is believed: so who may send one matters for load alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.tsig
import msgspec


class NotifyVerdict(msgspec.Struct, frozen=True):
    """What to do with a message. answer: to be sent, None if it is not worth one. zone: to be looked at, if any.

    fault: what is to be said in the log, with the way out, if anything.
    """

    answer: bytes | None = None
    zone: str | None = None
    fault: tuple[str, str] | None = None


def judge_message(
    wire: bytes, *, is_allowed: bool, keys: Mapping[str, dns.tsig.Key], is_known: Callable[[str], bool]
) -> NotifyVerdict:
    """The verdict on what came to the port. is_allowed: whether its sender may notify. keys: by name, in lower case.

    is_known: whether a zone, in lower case and without the last dot, is watched, or may be a new one.
    """
    keyring = {key.name: key for key in keys.values()}
    try:
        message = dns.message.from_wire(wire, keyring=keyring)
    except (dns.message.UnknownTSIGKey, dns.exception.DNSException, ValueError, struct.error, ArithmeticError) as error:
        return _refuse_unreadable(wire, error, is_allowed)
    if message.flags & dns.flags.QR:
        return NotifyVerdict()
    if not is_allowed:
        return _answer(
            message, dns.rcode.REFUSED, fault=("its sender may not notify", "allow it with source.zones.notify_from")
        )
    if message.opcode() != dns.opcode.NOTIFY:
        return _answer(message, dns.rcode.NOTIMP)
    if len(message.question) != 1 or message.question[0].rdtype != dns.rdatatype.SOA:
        return _answer(message, dns.rcode.FORMERR)
    zone = message.question[0].name.canonicalize().to_text(omit_final_dot=True)
    if not is_known(zone):
        fault = (f"the zone {zone} is not watched", "add it to source.zones.names, or have zones found")
        return _answer(message, dns.rcode.NOTAUTH, fault=fault)
    return _answer(message, dns.rcode.NOERROR, zone=zone)


def _refuse_unreadable(wire: bytes, error: Exception, is_allowed: bool) -> NotifyVerdict:
    """The verdict on a message that can't be read, or whose signature can't be accepted."""
    if len(wire) < 12 or wire[2] & 0x80:
        return NotifyVerdict()
    is_signature = isinstance(error, dns.message.UnknownTSIGKey) or type(error).__module__ == "dns.tsig"
    code = dns.rcode.NOTAUTH if is_signature else dns.rcode.FORMERR
    if not is_allowed:
        code = dns.rcode.REFUSED
    flags = 0x8000 | (wire[2] & 0x78) << 8 | int(code)
    signature = ("its key is not known, or its signature is wrong", "put the key into source.zones.key_file")
    fault = signature if is_signature else None
    return NotifyVerdict(wire[:2] + struct.pack("!HHHHH", flags, 0, 0, 0, 0), None, fault)


def _answer(
    message: dns.message.Message,
    code: dns.rcode.Rcode,
    *,
    zone: str | None = None,
    fault: tuple[str, str] | None = None,
) -> NotifyVerdict:
    try:
        answer = dns.message.make_response(message)
        answer.flags |= dns.flags.AA
        answer.set_rcode(code)
        return NotifyVerdict(answer.to_wire(), zone, fault)
    except (dns.exception.DNSException, ValueError, NotImplementedError):
        return NotifyVerdict(None, zone, fault)
