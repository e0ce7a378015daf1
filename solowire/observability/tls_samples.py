"""The metrics of a port that speaks TLS, the same at gateways and shards."""

from __future__ import annotations

from collections.abc import Iterator

from solowire.observability.metrics import LabelledSample, Sample
from solowire.runtime.tls_port import TlsPort


def read_tls_samples(port: TlsPort | None) -> Iterator[Sample]:
    """Nothing for a port that speaks no TLS."""
    if port is None:
        return
    yield (
        "solowire_certificate_expiry_timestamp_seconds",
        "When the certificate in force expires, unix time.",
        port.certificate.expires_at,
    )
    yield "tls_handshakes_total", "TLS handshakes done.", port.handshake_count
    yield LabelledSample(
        "tls_handshakes_failed_total", "TLS handshakes that failed, by OpenSSL's reason.", "reason", port.faults
    )
