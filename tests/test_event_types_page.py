"""The page on event types: its examples are taken as they stand."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from solowire.domains.dns.event_types import CATALOG
from solowire.model.type_declarations import parse_types

PAGE = (Path(__file__).parents[1] / "docs/event-types.md").read_text()


def test_the_examples_of_the_page_are_taken() -> None:
    """The TOML and the JSON both declare what they say they do."""
    [toml] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    [made] = parse_types(tomllib.loads(toml), "types.toml", CATALOG)
    assert CATALOG.validate_data(made, {"service": "web", "zone": "example.com"}) == {
        "service": "web",
        "zone": "example.com",
    }
    [document] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    [door] = parse_types(json.loads(document), "types.json", CATALOG)
    assert (door.name, door.category) == ("door_opened", "building")
