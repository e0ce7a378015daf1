"""History through real processes: what is asked for is exactly what would have been sent live."""

from __future__ import annotations

from typing import Any

from solowire.domains.dns.event_types import CATALOG
from tests.e2e.system import System


def change(zone: str, name: str = "www", **more: Any) -> dict[str, Any]:
    return {"type": "record_updated", "data": {"zone": zone, "name": name, "type": "A"}, **more}


async def test_a_page_holds_what_was_published(system: System) -> None:
    """What a user may see of what was published comes as a page of JSON."""
    accepted = await system.publish(change("history.example"), change("other.example"))
    async with system.http(system.token("reader", "viewer")) as http:
        answer = await http.get(
            "/v1/events",
            params={"since": "1h", "types": "record_updated", "filter": '{"zone":["history.example"]}'},
        )
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert [e["offset"] for e in page["events"]] == [accepted["first_offset"]]
    assert page["events"][0]["data"]["zone"] == "history.example"
    assert page["complete"] is True
    assert CATALOG
