"""What holds for all tests."""

from __future__ import annotations

from tests.support.examples import register_profiles

register_profiles()
