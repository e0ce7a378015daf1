"""As how many events a large one counts."""

from __future__ import annotations

import msgspec
import pytest

from solowire.gateway.publish.event_weight import PLAIN_BYTES, WEIGHT_BYTES, WEIGHT_VALUES, weigh_event
from tests.support.factories import event


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        ("x", 1),
        ([[]] * (PLAIN_BYTES // 3 - 10), 1),
        ("x" * 2 * WEIGHT_BYTES, 3),
        (",[{" * 1_000, 1),  # a text
        ([[]] * 10_000, 1 + 30_000 // WEIGHT_BYTES + 20_000 // WEIGHT_VALUES),
        ([1] * 10_000, 1 + 20_000 // WEIGHT_BYTES + 10_000 // WEIGHT_VALUES),
    ],
)
def test_an_event_weighs_what_its_bytes_and_values_do(value: object, weight: int) -> None:
    heavy = msgspec.structs.replace(event("custom.x", {}), data=msgspec.json.encode({"f": value}))
    assert weigh_event(heavy) == weight
