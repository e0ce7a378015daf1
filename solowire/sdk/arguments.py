"""Checks of what users of the SDK pass in: a wrong type is refused at once, by name, rather than doing something else.

Python takes a str for a list of its letters, msgspec writes NaN as null and bytes as Base64, and a coroutine that is
called and not awaited does nothing: each would be silence in place of an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import iscoroutinefunction
from typing import Any
from urllib.parse import urlsplit

from solowire.algorithms.hosts import is_http_url

MAX_DEPTH = 64
"""Levels of objects and arrays in an event's data that the gateway takes, the event not counted."""

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1  # what MessagePack has, which some clients read
_WORD = re.compile(r"[\x21-\x7e]+")  # what a header can carry
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Token = str | Callable[[], str | Awaitable[str]]


def check_url(url: object) -> str:
    """The gateway's URL without a slash at its end. Raises TypeError, ValueError."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {_kind(url)}")
    parts = urlsplit(url) if is_http_url(url) else None
    if parts is None or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"url must begin with http:// or https:// and a host, without a query, not {url!r}")
    if "@" in parts.netloc:  # HTTP would send it in the token's place, and errors would show it
        raise ValueError("url must hold no user name or password: what says who you are is `token`")
    return url.rstrip("/")


def check_token(token: object) -> Token:
    """A token or a function that gives one. Raises TypeError, ValueError."""
    if callable(token):
        return token
    return check_token_text(token, "token")


def check_token_text(token: object, name: str) -> str:
    """A token without white space around it, as a file has it at its end. Raises TypeError, ValueError."""
    if not isinstance(token, str):
        raise TypeError(f"{name} must be a str, not {_kind(token)}")
    token = token.strip()
    if not _WORD.fullmatch(token):
        raise ValueError(f"{name} must be one word of plain ASCII, as a JWT is" if token else f"{name} is empty")
    return token


def check_names(name: str, value: object) -> list[str]:
    """Names in any iterable but a str, bytes or a mapping. Raises TypeError."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a list of str, not a str: write [{value!r}]")
    if isinstance(value, (bytes, bytearray, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of str, not {_kind(value)}")
    names = list(value)
    for index, item in enumerate(names):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{index}] must be a str, not {_kind(item)}")
        _check_text(item, f"{name}[{index}]")
    return names


def check_filter(name: str, value: object) -> dict[str, list[str]] | None:
    """`{attribute: [values]}`, or None. Raises TypeError."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of lists of str, not {_kind(value)}")
    checked: dict[str, list[str]] = {}
    for attribute, values in value.items():
        if not isinstance(attribute, str):
            raise TypeError(f"the names in {name} must be str, not {_kind(attribute)}")
        _check_text(attribute, name)
        checked[attribute] = check_names(f"{name}[{attribute!r}]", values)
    return checked


def check_callback(name: str, value: object) -> None:
    """None, or a function that is called and not awaited. Raises TypeError."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {_kind(value)}")
    if iscoroutinefunction(value) or iscoroutinefunction(getattr(value, "__call__", None)):  # noqa: B004 - its kind
        raise TypeError(f"{name} must be a plain function: an async one would never be awaited; start a task in it")


def check_flag(name: str, value: object) -> None:
    """True or False: "no", of a configuration, would be true. Raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {_kind(value)}")


def check_seconds(name: str, value: object, *, least: float = 0.0, above: bool = False) -> None:
    """A number of seconds, finite, from `least`, or above it. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {_kind(value)}")
    if not math.isfinite(value) or value < least or (above and value == least):
        raise ValueError(
            f"{name} must be a number of seconds {'above' if above else 'of at least'} {least:g}, not {value}"
        )


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Checks an argument that must be a positive number. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {_kind(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_position(name: str, value: object) -> tuple[str, int] | None:
    """None, or `(epoch, cursor)`. Raises TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be (epoch, cursor), a str and an int, not {_kind(value)}")
    epoch, cursor = value
    if not isinstance(epoch, str) or isinstance(cursor, bool) or not isinstance(cursor, int):
        raise TypeError(f"{name} must be (epoch, cursor), a str and an int, not ({_kind(epoch)}, {_kind(cursor)})")
    _check_text(epoch, f"the epoch in {name}")
    if not 0 <= cursor <= 2**63 - 1:
        raise ValueError(f"the cursor in {name} is an offset, not {cursor}")
    return epoch, cursor


def check_optional_text(name: str, value: object) -> None:
    """None, or a str that is not empty. Raises TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, str):
        hint = ": write .isoformat(), with a time zone" if hasattr(value, "isoformat") else ""
        raise TypeError(f"{name} must be a str, not {_kind(value)}{hint}")
    if not value:
        raise ValueError(f"{name} must not be empty; leave it out")
    _check_text(value, name)


def check_json(value: Any, path: str) -> None:
    """Whether JSON can say `value`, exactly, and MessagePack too. Raises TypeError or ValueError with the path.

    Objects have text as keys, arrays are lists or tuples; text is UTF-8, numbers are finite, whole ones of 64 bits.
    """
    if not _is_plain(value, MAX_DEPTH + 1):
        _check_json(value, path, MAX_DEPTH + 1)


def _is_plain(value: Any, levels: int) -> bool:
    """Whether it is all of the usual types, and right. No paths are made here: this is done for every event."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is dict:
        if not levels:
            return False
        levels -= 1
        for key, inner in value.items():
            if type(key) is not str or not key.isascii() or not _is_plain(inner, levels):
                return False
        return True
    if kind is int:
        return bool(_MIN_INT <= value <= _MAX_INT)
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return levels > 0 and all(_is_plain(inner, levels - 1) for inner in value)
    return value is None or kind is bool


def _check_json(value: Any, path: str, levels: int) -> None:
    if value is None or value is True or value is False:
        return
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise ValueError(f"{path} is a number of more than 64 bits; send it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which JSON can't say; leave it out or send null")
    elif isinstance(value, (Mapping, list, tuple)):
        if not levels:
            raise ValueError(f"it is nested too deeply: data may have {MAX_DEPTH} levels, and {path[:60]}… has more")
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{path} has the key {key!r}, {_kind(key)}: keys in JSON are text")
                below = f"{path}.{key}" if _PLAIN.fullmatch(key) else f"{path}[{key[:60]!r}]"
                _check_text(key, below)
                _check_json(inner, below, levels - 1)
        else:
            for index, inner in enumerate(value):
                _check_json(inner, f"{path}[{index}]", levels - 1)
    else:
        raise TypeError(f"{path} is {_kind(value)}, which JSON can't say{_way_out(value)}")


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path} holds half a character ({text[error.start]!a}), which UTF-8 can't say") from None


def _way_out(value: object) -> str:
    name = type(value).__name__
    return {
        "bytes": "; send text, such as value.decode() or Base64",
        "bytearray": "; send text, such as Base64",
        "set": "; send a list, such as sorted(value)",
        "frozenset": "; send a list, such as sorted(value)",
        "Decimal": "; send str(value), or float(value)",
        "datetime": "; send value.isoformat()",
        "date": "; send value.isoformat()",
        "UUID": "; send str(value)",
    }.get(name, "")


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
