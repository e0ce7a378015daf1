"""The mask over secrets: nothing that leaves the source has one in it.

Pure. Two kinds of texts are masked. A canonical configuration is had twice, as it is and with BIND's own mask
(`named-checkconf -p` and `-px`): a line that differs holds a secret, and what it shows in its place is a tag that
changes when the secret does. An error line may quote any word of a file: it loses each secret that is known, and
whatever looks like one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

HIDDEN = "(hidden)"
_LEAST_CHARACTERS = 6  # a shorter "secret" would mask half of every text
_KNOWN = 10_000

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_MASKED = re.compile(r"\?{3,}")
_CREDENTIAL = re.compile(
    r"(?i)(\b[\w-]*(?:passw(?:or)?d|secret|credential|token|api[_-]?key|passphrase)[\w-]*\b\s*[=:]?\s*)"
    r"(\"(?:[^\"\\]|\\.)*\"|[^\s;{}\"]+)"
)
_DATABASE = re.compile(r'(\bdatabase\s+"\s*[^"\s]+)\s+[^"]*(")')
_WORD = re.compile(r"[A-Za-z0-9+/=_-]{12,}")


class SecretMask:
    """The secrets of one configuration. key: of the tags; whoever doesn't have it can't try secrets against a tag."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._secrets: set[str] = set()

    def learn_secrets(self, secrets: Iterable[str]) -> None:
        """These words are not to be shown from now on, also when they are no longer in force."""
        for secret in secrets:
            if len(secret) >= _LEAST_CHARACTERS and len(self._secrets) < _KNOWN:
                self._secrets.add(secret)

    def mask_configuration(self, plain: str, masked: str) -> str | None:
        """The canonical configuration with tags for secrets; None if the two texts are not of one configuration.

        plain, masked: without and with BIND's own mask.
        """
        plain_lines, masked_lines = plain.split("\n"), masked.split("\n")
        if len(plain_lines) != len(masked_lines):
            return None
        lines = []
        for open_line, shut_line in zip(plain_lines, masked_lines, strict=True):
            if open_line == shut_line:
                lines.append(self._mask_credentials(open_line))
                continue
            before = _MASKED.split(shut_line, maxsplit=1)[0]
            if not open_line.startswith(before):
                return None
            self.learn_secrets(_QUOTED.findall(open_line))
            lines.append(_MASKED.sub(self._make_tag(open_line), shut_line))
        return "\n".join(lines)

    def mask_text(self, text: str) -> str:
        """A line without secrets, such as an error of named's."""
        for secret in tuple(self._secrets):  # a thread may be learning
            if secret in text:
                text = text.replace(secret, HIDDEN)
        return _WORD.sub(lambda word: HIDDEN if _looks_secret(word[0]) else word[0], _mask_quoted_after_secret(text))

    def _mask_credentials(self, line: str) -> str:
        """What BIND doesn't know to be secret: parameters of databases and of plug-ins."""
        line = _DATABASE.sub(lambda match: f"{match[1]} {self._make_tag(line)}{match[2]}", line)
        return _CREDENTIAL.sub(self._hide_credential, line)

    def _hide_credential(self, match: re.Match[str]) -> str:
        self.learn_secrets([match[2].strip('"')])
        return f'{match[1]}"{self._make_tag(match[2])}"'

    def _make_tag(self, text: str) -> str:
        """Another one for another secret."""
        return f"hidden-{hashlib.blake2b(text.encode(), key=self._key, digest_size=4).hexdigest()}"


def _mask_quoted_after_secret(text: str) -> str:
    return re.sub(r"(?i)(\bsecret\s+)(\"[^\"]*\"|[^\s;'\"]+(?=[\s;]))", rf"\1{HIDDEN}", text)


def _looks_secret(word: str) -> bool:
    """Whether a word looks like base64 or hexadecimal, and not like an option, a path or a name."""
    if word.startswith(("/", "-")) or "/" in word[1:4]:
        return False
    if word.endswith("=") or "+" in word:
        return True
    kinds = (any(c.islower() for c in word), any(c.isupper() for c in word), any(c.isdigit() for c in word))
    return (all(kinds) and "-" not in word) or (len(word) >= 32 and "-" not in word and "/" not in word)
