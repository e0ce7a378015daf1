"""The faults that a name server tells when it is asked for a zone, each with the way out."""

from __future__ import annotations

import dns.message
import dns.rcode
import dns.tsig

from solowire.errors import TransferError


def explain_rcode(rcode: int, *, is_incremental: bool) -> TransferError:
    """The fault that an answer's code tells."""
    match rcode:
        case dns.rcode.REFUSED:
            return TransferError(
                "refused",
                "the server refuses to give the zone",
                'allow this agent with `allow-transfer { key "…"; };`, or by its address, and give the key as '
                "source.zones.key_file",
            )
        case dns.rcode.NOTAUTH:
            return TransferError(
                "refused",
                "the server says that it has no such zone, or not for this key",
                "see the zone's name, the view and its match-clients, and allow-transfer in named.conf",
            )
        case dns.rcode.SERVFAIL:
            return TransferError(
                "failed",
                "the server can't answer for the zone (SERVFAIL): it has not loaded it, or it has expired",
                "see named's log, and `rndc zonestatus`",
            )
        case dns.rcode.NOTIMP | dns.rcode.FORMERR if is_incremental:
            return TransferError("not_incremental", "the server can't send single steps")
        case _:
            name = dns.rcode.to_text(dns.rcode.Rcode.make(rcode))
            return TransferError("failed", f"the server answers {name}", "see named's log")


def explain_signature(error: Exception) -> TransferError:
    """The fault of an answer whose signature, or its question's, is not accepted."""
    match error:
        case dns.tsig.PeerBadKey() | dns.message.UnknownTSIGKey() | dns.tsig.BadKey() | dns.tsig.BadAlgorithm():
            return TransferError(
                "refused",
                "the server doesn't know the key, or knows it with another algorithm",
                "the key's name, algorithm and secret must be the same in named.conf and in the key file",
            )
        case dns.tsig.PeerBadSignature() | dns.tsig.BadSignature():
            return TransferError(
                "refused", "the key's secret is not the server's", "put named's secret into the key file"
            )
        case dns.tsig.PeerBadTime() | dns.tsig.BadTime():
            return TransferError(
                "refused", "the server's clock and this machine's are too far apart", "synchronise both clocks"
            )
        case _:
            return TransferError("refused", f"the answer's signature is wrong: {error}", "see the key file")
