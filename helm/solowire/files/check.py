"""What `helm test` does: a user connects through the edge, to its own shard, and gets the event that another publishes.

It signs two tokens with the system's secret, and asks the edge by the name that users use, wherever that leads. Where
tokens are an identity provider's alone, it sees whether the system would let somebody in.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
import uuid

import httpx
import jwt
import msgspec
from websockets.asyncio.client import connect

EDGE, HOST, SECRET = os.environ["EDGE"], os.environ["HOST"], os.environ["SECRET"].strip()
SIGNS, SAYS_PROXY = os.environ["SIGNS"] == "true", os.environ["SAYS_PROXY"] == "true"
TRIES = 60


def sign_token(user: str, role: str) -> str:
    """A token for the next minutes."""
    return jwt.encode({"sub": user, "role": role, "exp": time.time() + 300}, SECRET, "HS256")


async def ask(
    http: httpx.AsyncClient, status: int, method: str, path: str, token: str, **options: object
) -> httpx.Response:
    """The answer, once it has that status. Ends the test if it never has."""
    for _ in range(TRIES):
        answer = await http.request(method, path, headers={"authorization": f"Bearer {token}"}, **options)  # type: ignore[arg-type]
        if answer.status_code == status:
            return answer
        print(f"{path}: {answer.status_code} {answer.text[:200]}", flush=True)
        await asyncio.sleep(1)
    sys.exit(f"{path} never answered {status}")


def find_edge() -> tuple[str, int]:
    """Host and port of the edge."""
    scheme, _, place = EDGE.partition("://")
    host, _, port = place.partition(":")
    return host, int(port or (443 if scheme == "https" else 80))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes a connection on to the edge as a load balancer does that speaks the PROXY protocol."""
    edge_reader, edge_writer = await asyncio.open_connection(*find_edge())
    edge_writer.write(b"PROXY UNKNOWN\r\n")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, edge_writer), pump(edge_reader, writer), return_exceptions=True)


async def main() -> None:
    """Ends with a sentence, and status 1 where anything is not as it should be."""
    if not SAYS_PROXY:
        await check(*find_edge())
        return
    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as balancer:
        await check("127.0.0.1", balancer.sockets[0].getsockname()[1])


async def check(host: str, port: int) -> None:
    """Does all of it, at an edge's address."""
    unchecked = ssl.create_default_context()  # the certificate is for the name, and this is the Service's
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    run = uuid.uuid4().hex[:8]
    reader, writer = sign_token(f"helm-test-{run}", "viewer"), sign_token("helm-test-publisher", "publisher")
    tls = unchecked if EDGE.startswith("https") else None
    base = f"{'https' if tls else 'http'}://{host}:{port}"
    async with httpx.AsyncClient(base_url=base, headers={"host": HOST}, verify=unchecked, timeout=10) as http:
        await ask(http, 200, "GET", "/readyz", reader)
        if not SIGNS:
            await ask(http, 401, "POST", "/v1/connect", reader)
            print("The gateways are ready, and refuse a token that is not the identity provider's.")
            return
        grant = (await ask(http, 200, "POST", "/v1/connect", reader)).json()
        path = "/" + grant["url"].split("://", 1)[1].split("/", 1)[1]
        url = f"{'wss' if tls else 'ws'}://{HOST}{path}"
        async with connect(url, host=host, port=port, ssl=tls, proxy=None) as socket:
            if socket.response is None or socket.response.headers["X-Solowire-Shard"] != str(grant["shard"]):
                sys.exit("the edge has not passed the socket to the shard that /v1/connect named")
            await socket.send(msgspec.json.encode({"type": "hello", "subscriptions": ["custom.*"]}).decode())
            event = {"type": "custom.helm_test", "data": {"run": run}, "id": uuid.uuid4().hex}
            await ask(http, 200, "POST", "/v1/events", writer, json=event)
            async with asyncio.timeout(30):
                while run not in str(await socket.recv()):
                    pass
    print(f"A user connected through the edge to shard {grant['shard']}, and got the event that was published.")


asyncio.run(main())
