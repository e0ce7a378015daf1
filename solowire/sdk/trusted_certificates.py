"""The certificates by which a gateway's own is trusted, where its user gives no `ssl` context.

What it keeps true: they are those of the file that a command was given or SSL_CERT_FILE names, and no others then; else
those of the system, which SSL_CERT_DIR says the place of; else also those of certifi, as a container may have none.
They are the same for requests and WebSockets. A file that can't be read is said, not passed over as OpenSSL does.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from solowire.errors import ConfigError

FILE_VARIABLE, DIRECTORY_VARIABLE = "SSL_CERT_FILE", "SSL_CERT_DIR"

_ca_file: tuple[Path, str] | None = None


def set_ca_file(path: Path, said_by: str) -> None:
    """Has this whole process trust the certificates of this file alone, as SSL_CERT_FILE does.

    said_by: the option or setting that names it.
    """
    global _ca_file
    _ca_file = (path, said_by)


def make_context(url: str) -> ssl.SSLContext:
    """What trusts the certificate of the gateway at `url`. Raises ConfigError for a file that can't be used."""
    if not url.lower().startswith("https:"):  # it needs none, and to read them takes some 30 ms
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    named = _ca_file
    if named is None and (variable := os.environ.get(FILE_VARIABLE)):
        named = (Path(variable), FILE_VARIABLE)
    if named is not None:
        return _read_file(*named)
    context = ssl.create_default_context()
    if not os.environ.get(DIRECTORY_VARIABLE):
        context.load_verify_locations(certifi.where())
    return context


def _read_file(path: Path, said_by: str) -> ssl.SSLContext:
    way_out = "it must be a file with the certificates of CAs, in PEM"
    try:
        return ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise ConfigError(f"{said_by}={path}: there is no certificate in it; {way_out}") from None
    except OSError as error:
        raise ConfigError(f"{said_by}={path}: it can't be read: {error.strerror}; {way_out}") from None
