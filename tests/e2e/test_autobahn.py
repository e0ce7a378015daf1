"""The Autobahn test suite's own cases (by `kosoku`), against the shard's listener and through the gateway's relay."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import kosoku
import pytest

from solowire.backplane.messages import ShardAddress
from tests.support.echo_shard import Echo
from tests.support.relay_harness import OneShardGateway, relay_front
from tests.support.system import ANSWER_SECONDS

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
COUNT = 247
UNSPECIFIED = {"7.1.6", "7.13.1", "7.13.2"}
"""What the RFC leaves open, and the suite only reports: what follows a close at once, and codes of nobody."""


@pytest.mark.parametrize("way", ["direct", "relayed"])
async def test_every_case_is_passed_strictly(way: str, tmp_path: Path) -> None:
    """Sections 1 to 7 and 10: what is right is echoed, what is wrong ends with the right code, and at once."""
    echo = Echo()
    try:
        async with contextlib.AsyncExitStack() as stack:
            port = echo.port
            if way == "relayed":
                gateway = OneShardGateway(ShardAddress(0, "127.0.0.1", port, "boot"))
                port = await stack.enter_async_context(relay_front(gateway, tmp_path))
            async with asyncio.timeout(4 * ANSWER_SECONDS):
                try:
                    results = await kosoku.run_fuzzingclient(f"ws://127.0.0.1:{port}/ws?token=t", cases=CASES)
                except kosoku.FailureError as failure:
                    results = failure.results
    finally:
        echo.close()
    verdicts = {r.case_id: (r.behavior.value, r.behavior_close.value) for r in results}
    assert len(verdicts) == COUNT
    wrong = {case: verdict for case, verdict in verdicts.items() if verdict != ("OK", "OK")}
    assert wrong == dict.fromkeys(UNSPECIFIED, ("INFORMATIONAL", "INFORMATIONAL"))
