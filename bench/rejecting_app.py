"""The floor of a refusal: `python -m bench.rejecting_app PORT` serves an application that does nothing but refuse.

The same server with the same settings as a gateway's and a shard's; what they take more is ours.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from solowire.errors import RequestRejected
from solowire.protocol.problem_details import to_http_response
from solowire.runtime.http_server import WebServer, listen
from solowire.runtime.process import tune_gc

_STATUS, _HEADERS, _BODY = to_http_response(
    RequestRejected(503, "over_limit", "a floor has no room", "", retry_after=1)
)


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        kind = "websocket.http.response"
    send({"type": f"{kind}.start", "status": _STATUS, "headers": _HEADERS})
    send({"type": f"{kind}.body", "body": _BODY})


async def main(port: int) -> None:
    WebServer(refuse, listen("127.0.0.1", port)).start()
    tune_gc()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
