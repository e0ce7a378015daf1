"""From an error of the network, or of the token function, to the fault that the retry policy knows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ssl import SSLCertVerificationError, SSLError
from typing import Any

import httpx

from solowire.sdk.retry_policy import Fault, FaultKind

_PASSING_STATUS = frozenset({408, 425, 429, *range(500, 600)})


def read_network_error(error: BaseException) -> Fault:
    """The fault that an error of the network is."""
    chain = list(_causes(error))
    words = next((str(cause) for cause in reversed(chain) if str(cause)), "")
    if not words:  # then the name of an error's type is all that there is, and means nothing to most
        if any(isinstance(cause, (TimeoutError, httpx.TimeoutException)) for cause in chain):
            return Fault(FaultKind.unreachable, "gave no answer in time")
        words = f"the connection failed ({type(error).__name__})"
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            if cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return Fault(FaultKind.no_host, f"can't be reached: no such host: {words}", "is the URL spelt right?")
            return Fault(FaultKind.unreachable, f"can't be reached: its name can't be looked up: {words}")
        if isinstance(cause, SSLError):
            reason = getattr(cause, "reason", None)  # one that was raised by hand has none
            reason_text = f"can't be reached: TLS: {reason or type(cause).__name__}: {words}"
            return Fault(FaultKind.no_tls, reason_text, _find_way_out(cause))
    return Fault(FaultKind.unreachable, f"can't be reached: {words}")


def read_token_error(error: BaseException) -> Fault:
    """The fault that an error of the token function is."""
    words = str(error)
    name = type(error).__name__
    reason = f"gets no request: the token function failed: {name}: {words}" if words else f"gets no request: {name}"
    passing = isinstance(error, (OSError, httpx.TransportError)) or _status_of(error) in _PASSING_STATUS
    return Fault(FaultKind.no_token if passing else FaultKind.token_fault, reason)


def _find_way_out(error: SSLError) -> str:
    """What to do about an error of TLS; "" if its words are all there is. Numbers: X509_V_ERR_… of OpenSSL."""
    if getattr(error, "reason", None) in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return "is it http:// that is spoken there?"
    if not isinstance(error, SSLCertVerificationError):
        return ""
    match getattr(error, "verify_code", 0):  # one that was raised by hand has none
        case 9 | 10:
            return "renew the certificate there, or set the clock here right"
        case 62 | 64:
            return "use a name that the certificate is made for"
        case _:
            return (
                "name a file with the certificate of its CA in SSL_CERT_FILE; commands take it by --ca-file or "
                "SOLOWIRE_CA_FILE, too, and programs by `ssl`, a context"
            )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, groups taken apart; bounded, as chains may be circles."""
    unsearched, seen = [error], 0
    while unsearched and seen < 32:
        cause = unsearched.pop(0)
        seen += 1
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            unsearched += cause.exceptions
        if (before := cause.__cause__ or cause.__context__) is not None:
            unsearched.append(before)


def _status_of(error: BaseException) -> int:
    """The HTTP status that an error of httpx, aiohttp or the like carries; 0 if it carries none."""
    place: Any = error
    for path in (("response", "status_code"), ("status",), ("code",)):
        place = error
        for name in path:
            place = getattr(place, name, None)
        if isinstance(place, int):
            return place
    return 0
