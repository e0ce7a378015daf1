"""What a user would take instead, each with its usual production settings."""

from __future__ import annotations


def versions(names: list[str]) -> dict[str, str]:
    return {}
