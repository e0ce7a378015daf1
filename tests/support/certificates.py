"""Certificates for tests, which nobody trusts who is not given them."""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from solowire.runtime.server_certificate import ServerCertificate, load_certificate
from solowire.runtime.tls_port import TlsPort


def make_certificate(directory: Path, name: str, days: int = 1) -> Path:
    """A certificate that only those trust who are given it, with its key: PEM. name: of the host, or its address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the gateway")])
    san: x509.GeneralName = x509.DNSName(name)
    if name[0].isdigit():
        san = x509.IPAddress(ip_address(name))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([san]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path = directory / f"{name}.{days}.pem"
    path.write_bytes(
        certificate.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none)
    )
    return path


def renew_certificate(path: Path, days: int = 1) -> str:
    """Puts another one in its place, as `certbot` does: at once. Its fingerprint."""
    fresh = make_certificate(path.parent, "127.0.0.1", days)
    fresh.rename(path)
    return read_fingerprint(path)


def read_fingerprint(path: Path) -> str:
    return load_certificate(path, path, time.time()).fingerprint


def make_server_context(directory: Path) -> ssl.SSLContext:
    """As a port has it."""
    path = make_certificate(directory, "127.0.0.1")
    return load_certificate(path, path, time.time()).context


def make_tls_port(directory: Path) -> TlsPort:
    """A port of the running loop, with a certificate of its own."""
    path = make_certificate(directory, "127.0.0.1", 90)
    return TlsPort(ServerCertificate(path, path, time.time()))


def _trust_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


TRUSTING = _trust_anybody()
"""For a client that is to speak TLS, whoever it is with."""
