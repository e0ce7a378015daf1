"""The certificate that a process shows its clients: read at start, and again when its files change.

What it keeps true: what is in force is whole, fits its key and had not expired when it was read. Where files that have
changed are none of that, what was in force stays so, and it is said. A change is taken up when the files have been the
same at two looks, since who renews a certificate writes two files, one after the other. Connections that are open keep
what they began with.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog

from solowire.algorithms.rfc3339 import format_unix_time
from solowire.errors import ConfigError
from solowire.runtime.settings import Settings

logger = structlog.get_logger("solowire.certificate")

WARNING_DAYS = 14
DAY_SECONDS = 86400.0
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those with forward secrecy and authenticated encryption. Those of 1.3 all have both."""
CURVE = "prime256v1"
"""The one group that keys are agreed in, which every client knows. Python can name one or leave all of OpenSSL's, and
with ffdhe8192, which a client may ask for alone, one handshake takes a twentieth of a second of the loop."""
_KEPT_HINT = "the certificate before stays in force"

_FileState = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """A certificate with its key. expires_at: unix time. fingerprint: SHA-256 of its DER, in hexadecimal."""

    context: ssl.SSLContext
    expires_at: float
    fingerprint: str


class ServerCertificate:
    """The certificate in force, of two PEM files. now: unix time. Raises ConfigError."""

    def __init__(self, certificate: Path, key: Path, now: float) -> None:
        self._paths = (certificate, key)
        self._state = _read_state(self._paths)
        self._seen = self._state
        self._warned_day: int | None = None
        self._loaded = load_certificate(certificate, key, now)
        self._warn_of_end(now)

    @property
    def context(self) -> ssl.SSLContext:
        """What a new connection is accepted with."""
        return self._loaded.context

    @property
    def expires_at(self) -> float:
        return self._loaded.expires_at

    @property
    def fingerprint(self) -> str:
        return self._loaded.fingerprint

    def check(self, now: float) -> bool:
        """Looks whether the files have changed, and warns of a near end; to be called each second.

        Whether another certificate is in force from now on. now: unix time.
        """
        self._warn_of_end(now)
        state = _read_state(self._paths)
        is_settled, self._seen = state == self._seen, state
        return state != self._state and is_settled and self._reload(now)

    def reload_if_changed(self, now: float) -> bool:
        """Reads files that have changed at once. Whether another certificate is in force from now on."""
        return _read_state(self._paths) != self._state and self._reload(now)

    def _reload(self, now: float) -> bool:
        self._state = self._seen = _read_state(self._paths)
        try:
            loaded = load_certificate(*self._paths, now)
        except ConfigError as error:
            logger.error("certificate_rejected", reason=str(error), hint=_KEPT_HINT)
            return False
        is_new, self._loaded = loaded.fingerprint != self._loaded.fingerprint, loaded
        if is_new:
            self._warned_day = None
            logger.info(
                "certificate_loaded",
                expires=format_unix_time(loaded.expires_at, "seconds"),
                fingerprint=loaded.fingerprint,
            )
            self._warn_of_end(now)
        return is_new

    def _warn_of_end(self, now: float) -> None:
        """Once a day, from WARNING_DAYS before the end on."""
        left = self._loaded.expires_at - now
        day = int(now // DAY_SECONDS)
        if left > WARNING_DAYS * DAY_SECONDS or day == self._warned_day:
            return
        self._warned_day = day
        path, end = str(self._paths[0]), format_unix_time(self._loaded.expires_at, "seconds")
        hint = "put a new one in its place: it is taken up without a restart"
        if left > 0:
            logger.warning("certificate_expires_soon", path=path, expires=end, days=int(left // DAY_SECONDS), hint=hint)
        else:
            logger.error("certificate_expired", path=path, expires=end, hint=hint)


def open_certificate(settings: Settings, now: float) -> ServerCertificate | None:
    """The certificate of the settings; None where clients speak no TLS to this process. Raises ConfigError."""
    certificate, key = settings.listen.tls_certificate_file, settings.listen.tls_key_file
    return ServerCertificate(certificate, key, now) if certificate is not None and key is not None else None


def check_certificate(settings: Settings, now: float) -> None:
    """Raises ConfigError where a process that speaks TLS could not start."""
    if settings.listen.tls_certificate_file is not None and settings.listen.tls_key_file is not None:
        load_certificate(settings.listen.tls_certificate_file, settings.listen.tls_key_file, now)


def load_certificate(certificate: Path, key: Path, now: float) -> LoadedCertificate:
    """Reads a certificate, with the chain that vouches for it, and its key. now: unix time. Raises ConfigError."""
    # Imported here: it takes long, and most processes speak no TLS.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        first = x509.load_pem_x509_certificates(_read_file(certificate, "certificate"))[0]
    except ValueError:
        raise ConfigError(
            f"{certificate}: there is no certificate in it; it must be PEM, with the whole chain"
        ) from None
    begins, ends = first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()
    if now >= ends:
        raise ConfigError(
            f"{certificate}: the certificate has expired, on {format_unix_time(ends, 'seconds')}; renew it"
        )
    if now < begins:
        raise ConfigError(
            f"{certificate}: the certificate is not valid before {format_unix_time(begins, 'seconds')}; is this "
            "machine's clock right?"
        )
    _read_file(key, "key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.set_ecdh_curve(CURVE)
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1
    try:
        context.load_cert_chain(certificate, key, _refuse_password)
    except ssl.SSLError as error:
        raise ConfigError(_describe_fault(certificate, key, error)) from None
    except _KeyEncryptedError:
        raise ConfigError(f"{key}: the key is encrypted; nobody is there to type its password: decrypt it") from None
    return LoadedCertificate(context, ends, compute_fingerprint(first.public_bytes(Encoding.DER)))


def compute_fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate's DER, in hexadecimal."""
    return sha256(certificate).hexdigest()


class _KeyEncryptedError(Exception):
    """OpenSSL asks for a password."""


def _refuse_password() -> str:
    raise _KeyEncryptedError


def _read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the {what} can't be read: {error.strerror}") from None


def _describe_fault(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    match error.reason:
        case "KEY_VALUES_MISMATCH" | "KEY_TYPE_MISMATCH":
            return f"{key}: the key is not that of {certificate}, in which the server's own certificate comes first"
        case "NO_START_LINE" | "PEM_LIB" | None:
            return f"{key}: there is no private key in it; it must be PEM"
        case reason:
            return f"{certificate} and {key} are refused by OpenSSL: {reason.lower().replace('_', ' ')}"


def _read_state(paths: tuple[Path, ...]) -> _FileState:
    """What changes when a file does, or whatever its links lead to; None of one that is not there."""
    found: list[tuple[int, int, int, int] | None] = []
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size))
    return tuple(found)
