"""The base of the models of settings: how they are written, and what is said of those that don't fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

CONFLICT = "settings_conflict"
"""The type of an error that `make_conflict` has made."""

T = TypeVar("T")


class Section(BaseModel):
    """Settings that one room takes: a table of the file. Each field says what it means; its name, its unit.

    Each number has an upper bound: what is far beyond all use would end in an overflow, long after the settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def split_list(value: Any) -> Any:
    """A list, also as one text with commas or, as pydantic writes them in the environment, in JSON."""
    if not isinstance(value, str):
        return value
    return [part for piece in value.strip().strip("[]").split(",") if (part := piece.strip(" \t\"'"))]


def parse_table(value: Any) -> Any:
    """A table, also as one text in JSON, as the environment has it. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        fault = f"it is no table, as it is not valid JSON ({error})"
        raise ValueError(fault + ': write it as JSON, such as {"name": 1}') from None
    if not isinstance(found, dict):
        raise ValueError('it is no table: write it as JSON, such as {"name": 1}')
    return found


TextList = Annotated[list[str], NoDecode, BeforeValidator(split_list)]
"""Texts, with commas or as JSON where they are one text."""

PathList = Annotated[list[Path], NoDecode, BeforeValidator(split_list)]
"""Paths, the same."""

Table = Annotated[dict[str, T], NoDecode, BeforeValidator(parse_table)]
"""A value for each name, as JSON where it is one text."""


def make_conflict(text: str, *names: str) -> PydanticCustomError:
    """What a validator of several settings raises. text: with `{}` for each of them, put in as the user wrote it.

    names: as seen from the model whose validator it is, with dots. Braces that are meant are doubled.
    """
    return PydanticCustomError(CONFLICT, "settings that contradict each other", {"text": text, "names": names})
