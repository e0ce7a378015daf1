"""An OpenID provider's key endpoint on loopback: it publishes what a test says, slowly or not at all, and counts."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class SigningKey:
    """A provider's key for one algorithm: RS256, ES256 or EdDSA."""

    def __init__(self, algorithm: str, kid: str | None) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private: Any = {
            "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[algorithm]()

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public key as a provider publishes it."""
        form: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[self.algorithm]
        named = {"kid": self.kid} if self.kid is not None else {}
        return {**json.loads(form.to_jwk(self.private.public_key())), "use": "sig", **named, **more}

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        said = {"kid": self.kid, **headers} if self.kid is not None else headers
        return jwt.encode(claims, self.private, self.algorithm, headers=said)


class JwksServer:
    """`url` answers with `document`. status, delay_s: how; body: instead of the document. fetches: how often it was."""

    def __init__(self, *keys: SigningKey) -> None:
        self.document: dict[str, Any] = {"keys": [key.jwk() for key in keys]}
        self.body: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay_s = 0.0
        self.fetches: list[float] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.fetches.append(time.monotonic())
                time.sleep(server.delay_s)
                body = server.body if server.body is not None else json.dumps(server.document).encode()
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that has had enough is what some tests are about."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> JwksServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
