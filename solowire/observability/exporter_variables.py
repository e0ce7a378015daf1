"""The variables that OpenTelemetry's exporter reads by itself, looked at before it does.

What it keeps true: what it would ignore, take for something else or find out with the first span is one sentence at
the start. No sentence shows what stands in a header, which may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from solowire.errors import ConfigError

_LONGEST_S = 600.0
_FILES = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
_COMPRESSIONS = ("none", "gzip", "deflate")
_BATCH_NUMBERS = (
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
)


def check_exporter(environment: Mapping[str, str]) -> None:
    """Raises ConfigError for the first variable that means nothing, by its name."""
    for file in _FILES:
        for name, path in _find(environment, file):
            _check_file(name, path)
    for name, compression in _find(environment, "COMPRESSION"):
        if compression not in _COMPRESSIONS:
            raise ConfigError(f"{name}: {compression!r} is not known here; there are {', '.join(_COMPRESSIONS)}")
    for name, timeout in _find(environment, "TIMEOUT"):
        _check_timeout(name, timeout)
    for name, headers in _find(environment, "HEADERS"):
        _check_pairs(name, headers)
    _check_pairs("OTEL_RESOURCE_ATTRIBUTES", environment.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    for name in _BATCH_NUMBERS:
        number = environment.get(name, "").strip()
        if number and not (number.isdecimal() and int(number) > 0):
            raise ConfigError(f"{name}: {number!r} is no whole number above 0")


def _find(environment: Mapping[str, str], name: str) -> Iterator[tuple[str, str]]:
    """The two variables of that name that are set, for traces and for all."""
    for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        value = environment.get(variable, "").strip()
        if value:
            yield variable, value


def _check_file(name: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror}") from None


def _check_timeout(name: str, text: str) -> None:
    """In seconds, as OpenTelemetry's SDK for Python has it: in others it is milliseconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= _LONGEST_S:
        raise ConfigError(
            f"{name}: {text!r} is no number of seconds up to {_LONGEST_S:.0f} (here it is no milliseconds)"
        )


def _check_pairs(name: str, text: str) -> None:
    for number, pair in enumerate(text.split(","), 1):
        key, sign, _ = pair.partition("=")
        if pair.strip() and not (sign and key.strip()):
            raise ConfigError(f"{name}: number {number} is no name=value, as they stand with commas between them")
