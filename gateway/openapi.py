"""How the HTTP API describes itself, at `/docs` and `/docs/openapi.json`.

Swagger UI comes from a package, not from a CDN: an administrator's network may have no way out. Its page runs only
scripts that are files of the gateway, and none that stand in it: what an event, a name or an address could smuggle into
a page that administrators open with their token would be text there and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from litestar import Request, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
    SecurityScheme,
)

import solowire
from solowire.events import Priority

DOCS = "/docs"
ASSETS = "/docs-assets"
_SCRIPT = f"{DOCS}/page.js"
PAGE_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)

_TEXT = Schema(type=OpenAPIType.STRING)

_EVENT = Schema(
    type=OpenAPIType.OBJECT,
    required=["type", "data"],
    properties={
        "type": Schema(type=OpenAPIType.STRING, description="One of GET /v1/catalog, or custom.NAME"),
        "data": Schema(type=OpenAPIType.OBJECT, description="What the type's schema says; any object for custom.NAME"),
        "id": Schema(type=OpenAPIType.STRING, description="Unique; an id that was seen is answered as a duplicate"),
        "priority": Schema(type=OpenAPIType.STRING, enum=[p.value for p in Priority]),
        "key": Schema(type=OpenAPIType.STRING, description="What a state is the state of"),
        "user": Schema(type=OpenAPIType.STRING, description="Only this user gets it"),
        "timestamp": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
        "source": _TEXT,
        "correlation_id": _TEXT,
    },
    examples=[{"type": "custom.hello", "data": {"text": "hello"}}],
)
_EVENTS = Schema(one_of=[_EVENT, Schema(type=OpenAPIType.ARRAY, items=_EVENT)])


@dataclass
class PublishOperation(Operation):
    """`POST /v1/events` reads its body itself, in three forms: Litestar can't see which."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=_EVENTS),
                "application/x-ndjson": OpenAPIMediaType(schema=_EVENT),
                "application/msgpack": OpenAPIMediaType(schema=_EVENTS),
            },
        )


_REVOCATION = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "user": Schema(type=OpenAPIType.STRING, description="All tokens of this user, also those to come"),
        "jti": Schema(type=OpenAPIType.STRING, description="The one token with this id"),
        "issued_before": Schema(
            type=OpenAPIType.NUMBER,
            description="Tokens whose `iat` is before this, in unix seconds, or that have none; with `user`: its own",
        ),
        "until": Schema(type=OpenAPIType.NUMBER, description="Unix seconds; when all of these tokens have expired"),
        "reason": Schema(type=OpenAPIType.STRING, description="For those who read the list"),
    },
    examples=[{"user": "ann", "reason": "has left"}],
)


@dataclass
class RevokeOperation(Operation):
    """`POST /v1/revocations` reads its body strictly, in words of its own."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=_REVOCATION)}
        )


def swagger_ui() -> Path:
    """Where a package keeps Swagger UI's files. Only its files are of use: it is not imported, nor is Flask."""
    return Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))


class _Page(OpenAPIRenderPlugin):
    """Swagger UI's page. Litestar's own has its script and its style in it, which PAGE_POLICY is against."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return _PAGE

    def receive_router(self, router: Router) -> None:
        @get("/page.js", media_type="text/javascript", sync_to_thread=False)
        def script() -> bytes:
            return _PAGE_SCRIPT

        router.register(script)


_PAGE = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Solowire gateway</title>
<link rel="icon" type="image/png" href="{ASSETS}/favicon-32x32.png">
<link rel="stylesheet" href="{ASSETS}/swagger-ui.css">
<link rel="stylesheet" href="{ASSETS}/index.css">
<script src="{ASSETS}/swagger-ui-bundle.js" defer></script>
<script src="{_SCRIPT}" defer></script>
</head>
<body><div id="page"></div></body>
</html>
""".encode()
_PAGE_SCRIPT = f"""\
SwaggerUIBundle({{
  url: "{DOCS}/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  validatorUrl: null,
}});
""".encode()


def openapi_config() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")
    return OpenAPIConfig(
        title="Solowire gateway",
        version=solowire.__version__,
        path=DOCS,
        render_plugins=[_Page(path="/")],
        components=Components(security_schemes={"bearer": bearer}),
        security=[{"bearer": []}],
    )
