"""Durations as they are typed: `90`, `30s`, `5m`, `1h`, `2d`."""

from __future__ import annotations

import math
from typing import Any

import click

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str) -> float:
    """Seconds. Raises ValueError, whose text says how one is written."""
    number, unit = text.strip(), 1.0
    if number[-1:].lower() in SECONDS:
        number, unit = number[:-1], SECONDS[number[-1:].lower()]
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is no duration: write seconds, or 30s, 5m, 1h, 2d")
    return seconds


class Duration(click.ParamType[float]):
    """An option's value: seconds, one at least."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds < 1:
            self.fail(f"{value} is less than one second", param, ctx)
        return seconds
