"""How the HTTP API describes itself, at `/docs` and `/docs/openapi.json`.

Swagger UI comes from a package, not from a CDN: an administrator's network may have no way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
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

ASSETS = "/docs-assets"

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


def openapi_config() -> OpenAPIConfig:
    ui = SwaggerRenderPlugin(
        js_url=f"{ASSETS}/swagger-ui-bundle.js",
        css_url=f"{ASSETS}/swagger-ui.css",
        standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
        path="/",
        favicon=f'<link rel="icon" type="image/png" href="{ASSETS}/favicon-32x32.png">',
    )
    bearer = SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")
    return OpenAPIConfig(
        title="Solowire gateway",
        version=solowire.__version__,
        path="/docs",
        render_plugins=[ui],
        components=Components(security_schemes={"bearer": bearer}),
        security=[{"bearer": []}],
    )
