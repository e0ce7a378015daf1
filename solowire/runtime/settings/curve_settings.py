"""The settings of the keys that processes on several hosts know each other by (`solowire.backplane.curve_keys`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from solowire.backplane.curve_keys import SEED_CHARACTERS, find_public_key, is_key
from solowire.runtime.settings.section import Section, make_conflict

_PAIRS = ("secret_key", "router_key", "member_keys")


def split_keys(value: Any) -> Any:
    """Keys that stand in one text, with commas, blanks or lines between them: none of these is part of a key."""
    return re.split(r"[,\s]+", value.strip(", \t\r\n\ufeff")) if isinstance(value, str) else value


def split_seeds(text: str) -> list[str]:
    """Seeds that stand in one text, a line each. Raises ValueError for one that is too short, and for none."""
    seeds = [line.strip() for line in text.strip("\ufeff").splitlines() if line.strip()]
    if not seeds or any(len(seed) < SEED_CHARACTERS for seed in seeds):
        raise ValueError(f"a seed must have {SEED_CHARACTERS} characters or more, chosen at random")
    return seeds


def check_keys(keys: list[str]) -> list[str]:
    """The same keys. Raises ValueError if one is none."""
    for number, key in enumerate(keys, 1):  # which is not shown: it may be a secret one, in the wrong place
        if not is_key(key):
            raise ValueError(f"number {number} is no key: 40 characters, as `solowire keys` makes them")
    return keys


def _trim(value: Any) -> Any:
    return value.strip().strip("\ufeff").strip() if isinstance(value, str) else value


_Keys = Annotated[list[str], NoDecode, BeforeValidator(split_keys)]


class CurveSettings(Section):
    """The keys of a backplane over TCP: one seed for all, or pairs of keys. Unused where the backplane is ipc."""

    seed: Annotated[SecretStr | None, BeforeValidator(_trim)] = Field(
        None,
        description="32 or more random characters from which all keys are derived, in place of the other settings "
        "here; of several lines the first is in force, and the others are accepted while they are being changed",
    )
    seed_file: Path | None = Field(None, description="file with it")
    secret_key: Annotated[SecretStr | None, BeforeValidator(_trim)] = Field(
        None, description="this process's own secret key: the router's, or a member's"
    )
    secret_key_file: Path | None = Field(None, description="file with it")
    router_key: _Keys = Field(
        default_factory=list,
        description="the router's public key, for shards and gateways; of several, each is tried",
    )
    router_key_file: Path | None = Field(None, description="file with it")
    member_keys: _Keys = Field(
        default_factory=list, description="public keys of the shards and gateways that the router lets in"
    )
    member_keys_file: Path | None = Field(None, description="file with them, one a line")

    @field_validator("seed")
    @classmethod
    def _is_seed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            split_seeds(value.get_secret_value())
        return value

    @field_validator("secret_key")
    @classmethod
    def _is_secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            find_public_key(value.get_secret_value())
        return value

    @field_validator("router_key", "member_keys")
    @classmethod
    def _are_keys(cls, value: list[str]) -> list[str]:
        return check_keys(value)

    @model_validator(mode="after")
    def _agree(self) -> CurveSettings:
        for name in ("seed", *_PAIRS):
            if getattr(self, name) and getattr(self, f"{name}_file") is not None:
                raise make_conflict("{} and {} are both set: which? leave one out", name, f"{name}_file")
        seeded = next((name for name in ("seed", "seed_file") if getattr(self, name) is not None), None)
        paired = next((n for pair in _PAIRS for n in (pair, f"{pair}_file") if getattr(self, n)), None)
        if seeded is not None and paired is not None:
            raise make_conflict("{} and {} are both set: all keys come from a seed; leave one out", seeded, paired)
        return self
