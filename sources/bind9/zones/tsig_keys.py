"""TSIG keys out of a file: as named.conf has them, or one a line as `dig -y` has them, `algorithm:name:secret`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise, takewhile
from pathlib import Path

import dns.exception
import dns.name
import dns.tsig
import structlog

from solowire.errors import ConfigError
from solowire.sources.bind9.conf_tokens import ConfToken, split_tokens

logger = structlog.get_logger()

_LINE = re.compile(r"(?:([\w.-]+):)?([^:\s/#][^:\s]*):([A-Za-z0-9+/=]+)")
_DEFAULT = "hmac-sha256"


def load_keys(path: Path) -> dict[str, dns.tsig.Key]:
    """The keys of a file by their names, as `normalize_key` gives them. Raises ConfigError."""
    try:
        text = path.read_text()
        is_open = bool(path.stat().st_mode & 0o007)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"the key file {path} can't be read: {reason}; let the agent's user read it, or name another with "
            "source.zones.key_file"
        ) from None
    if is_open:
        logger.warning("key_file_open", path=str(path), hint="everyone on this machine can read it: chmod o= it")
    keys = parse_keys(text)
    if not keys:
        raise ConfigError(
            f"the key file {path} has no key; write one as `tsig-keygen NAME` prints it, or as algorithm:name:secret"
        )
    return keys


def parse_keys(text: str) -> dict[str, dns.tsig.Key]:
    """The keys of a text. Raises ConfigError for one that can't be one; a secret is never in it."""
    found: dict[str, dns.tsig.Key] = {}
    lines = text.splitlines()
    matches = [_LINE.fullmatch(line.strip()) for line in lines]
    rest = "\n".join(line for line, match in zip(lines, matches, strict=True) if match is None)
    for name, fields in _list_statements(rest):
        if "secret" not in fields:
            raise ConfigError(f'the key "{name}" has no secret; see `tsig-keygen`')
        _add_key(found, name, fields["secret"], fields.get("algorithm", _DEFAULT))
    for match in matches:
        if match is not None:
            _add_key(found, match[2], match[3], match[1] or _DEFAULT)
    return found


def _list_statements(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each `key NAME { … };` of a configuration: the name, and what its statements say."""
    tokens = list(split_tokens(text))
    for word, name, brace, place in zip(tokens, tokens[1:], tokens[2:], range(3, len(tokens)), strict=False):
        if word != ConfToken("key") or name.is_mark or brace != ConfToken("{", is_mark=True):
            continue
        inside = list(takewhile(lambda token: token.text != "}" or not token.is_mark, tokens[place:]))
        yield name.text, {field.text: value.text for field, value in pairwise(inside) if not value.is_mark}


def choose_key(keys: Mapping[str, dns.tsig.Key], name: str | None, setting: str) -> dns.tsig.Key | None:
    """The key of a name, the only one if no name is given. Raises ConfigError; setting: where the name was given."""
    if name is None:
        if len(keys) > 1:
            raise ConfigError(f"the key file has several keys ({', '.join(sorted(keys))}); name one with {setting}")
        return next(iter(keys.values()), None)
    found = keys.get(normalize_key(name))
    if found is None:
        known = ", ".join(sorted(keys)) or "none: name a file with source.zones.key_file"
        raise ConfigError(f"there is no key {name!r}, which {setting} names; the key file has {known}")
    return found


def normalize_key(name: str) -> str:
    """A key's name in the one form in which names are compared."""
    return name.lower().removesuffix(".")


def _add_key(keys: dict[str, dns.tsig.Key], name: str, secret: str, algorithm: str) -> None:
    try:
        key = dns.tsig.Key(name, base64.b64decode(secret, validate=True), algorithm.lower())
        if not key.secret:
            raise ValueError("it is empty")
        dns.tsig.get_context(key)  # type: ignore[no-untyped-call]
    except (dns.exception.DNSException, ValueError, NotImplementedError):
        raise ConfigError(
            f"the key {name!r} can't be used: its name, its algorithm ({algorithm}) or its secret (Base64) is none"
        ) from None
    keys[normalize_key(name)] = key
