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
SIGNS = os.environ["SIGNS"] == "true"
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


async def main() -> None:
    """Ends with a sentence, and status 1 where anything is not as it should be."""
    unchecked = ssl.create_default_context()  # the certificate is for the name, and this is the Service's
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    run = uuid.uuid4().hex[:8]
    reader, writer = sign_token(f"helm-test-{run}", "viewer"), sign_token("helm-test-publisher", "publisher")
    async with httpx.AsyncClient(base_url=EDGE, headers={"host": HOST}, verify=unchecked, timeout=10) as http:
        await ask(http, 200, "GET", "/readyz", reader)
        if not SIGNS:
            await ask(http, 401, "POST", "/v1/connect", reader)
            print("The gateways are ready, and refuse a token that is not the identity provider's.")
            return
        grant = (await ask(http, 200, "POST", "/v1/connect", reader)).json()
        path = "/" + grant["url"].split("://", 1)[1].split("/", 1)[1]
        tls = unchecked if EDGE.startswith("https") else None
        place, _, port = EDGE.split("://", 1)[1].partition(":")
        url, port = f"{'wss' if tls else 'ws'}://{HOST}{path}", port or ("443" if tls else "80")
        async with connect(url, host=place, port=int(port), ssl=tls, proxy=None) as socket:
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
