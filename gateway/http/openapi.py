"""The OpenAPI document of the HTTP API, at `/docs` and `/docs/openapi.json`.

Swagger UI comes from a package, not from a CDN: an administrator's network may have no way out. Its page runs only
scripts that are files of the gateway, and none that stand in it: what an event, a name or an address could smuggle into
a page that administrators open with their token would be text there and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, ClassVar

from litestar import Litestar, Request, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIFormat,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
    Server,
)

import solowire
from solowire.model.events import Priority
from solowire.protocol.problem_details import PROBLEM_TYPE

DOCS = "/docs"
ASSETS = "/docs-assets"
_SCRIPT = f"{DOCS}/page.js".removeprefix("/")
_ASSETS = ASSETS.removeprefix("/")
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
        "id": Schema(
            type=OpenAPIType.STRING,
            description="Unique; of the same publisher an id that was seen is answered as a duplicate",
        ),
        "priority": Schema(type=OpenAPIType.STRING, enum=[p.value for p in Priority]),
        "key": Schema(type=OpenAPIType.STRING, description="What a state is the state of"),
        "user": Schema(type=OpenAPIType.STRING, description="Only this user gets it"),
        "timestamp": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
        "source": _TEXT,
        "correlation_id": _TEXT,
        "traceparent": Schema(description="A W3C trace context, which counts before the request's; else ignored"),
    },
    examples=[{"type": "custom.hello", "data": {"text": "hello"}}],
)
_EVENTS = Schema(one_of=[_EVENT, Schema(type=OpenAPIType.ARRAY, items=_EVENT)])


_FAULT = Schema(
    type=OpenAPIType.OBJECT,
    required=["index", "path", "message", "code", "hint"],
    properties={
        "index": Schema(type=OpenAPIType.INTEGER, description="Which event of the request, from 0"),
        "path": Schema(type=OpenAPIType.STRING, examples=["$.data.zone"]),
        "message": _TEXT,
        "code": _TEXT,
        "hint": _TEXT,
    },
)
_WRONG_PARAMETER = Schema(
    type=OpenAPIType.OBJECT,
    required=["parameter", "message"],
    properties={"parameter": _TEXT, "message": _TEXT},
)
_PROBLEM = Schema(
    type=OpenAPIType.OBJECT,
    title="Problem",
    description="RFC 9457, with a stable `code`, and the way out as `hint`",
    required=["type", "title", "status", "code", "detail"],
    properties={
        "type": Schema(type=OpenAPIType.STRING, examples=["about:blank"]),
        "title": Schema(type=OpenAPIType.STRING, description="The status in words"),
        "status": Schema(type=OpenAPIType.INTEGER),
        "code": Schema(type=OpenAPIType.STRING, description="Stable, for programs", examples=["over_limit"]),
        "detail": Schema(type=OpenAPIType.STRING, description="What is wrong, for people"),
        "hint": Schema(type=OpenAPIType.STRING, description="The way out"),
        "scope": Schema(
            type=OpenAPIType.STRING,
            description="Of `connect_rate_limited`: whose rate it is",
            enum=["system", "address", "user"],
        ),
        "errors": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(one_of=[_FAULT, _WRONG_PARAMETER]),
            description="Of `invalid_events`: each event's fault. Of `invalid_query`: each parameter's",
        ),
        "oldest": Schema(
            type=OpenAPIType.OBJECT,
            description="Of `history_gone`: since when there is something",
            properties={
                "position": Schema(type=OpenAPIType.STRING, description="`since` from there on"),
                "timestamp": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
            },
        ),
    },
)

_MEANINGS = {
    400: "The request can't be understood, as HTTP or as what is asked for",
    401: "No token, or one that proves nothing",
    403: "The token's role doesn't grant this",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "Not possible in its present state",
    410: "Some of what is asked for is not kept any more: `oldest` says from where on there is something",
    413: "The request, or what it becomes when it is decompressed, is too large",
    415: "The content type, or the content encoding, is not understood",
    429: "Too much of one address, user or publisher: `code` says of what",
    431: "The head of the request is too large",
    500: "A fault of the gateway, which is in its log",
    501: "A transfer encoding that is not understood",
    502: "A shard answered something else",
    503: "Not now: `code` says why",
    504: "A shard did not answer in time",
}
_ALWAYS = (400, 431, 500, 501, 503)
"""What any request may be answered, before it is known for which operation it is."""
_WITH_TOKEN = (401, 403, 429)
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer, with an error where there was a token"},
    415: {"Accept-Encoding": "Those that are understood, where it was the encoding"},
    429: {"Retry-After": "Seconds"},
    503: {"Retry-After": "Seconds"},
    504: {"Retry-After": "Seconds"},
}


@dataclass
class ApiOperation(Operation):
    """An operation with all answers that it may get: Litestar sees only the good ones.

    more_statuses: those of problems that it may be answered, beside those of all, of those with a token, and of those
    with a path that may lead nowhere.
    """

    more_statuses: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        is_open = self.security == [{}]
        statuses = {
            *_ALWAYS,
            *self.more_statuses,
            *(() if is_open else _WITH_TOKEN),
            *((404,) if self.parameters else ()),
        }
        good = {status: answer for status, answer in (self.responses or {}).items() if int(status) < 400}
        self.responses = good | {str(status): _problem_answer(status) for status in sorted(statuses)}


@cache
def make_operation(*more: int) -> type[ApiOperation]:
    """The class of operations with these statuses of problems beside the usual ones."""
    return type("ApiOperation", (ApiOperation,), {"more_statuses": more})


def document_problems(app: Litestar) -> None:
    """Has every operation that says nothing else of itself described as an ApiOperation."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if getattr(handler, "operation_class", None) is Operation:
                handler.operation_class = ApiOperation
    components = app.openapi_schema.components  # made here, since Litestar puts its own schemas in the place of others
    if components.schemas is not None:
        components.schemas["Problem"] = _PROBLEM


def _problem_answer(status: int) -> OpenAPIResponse:
    headers = {
        name: OpenAPIHeader(schema=_TEXT, description=description)
        for name, description in _HEADERS.get(status, {}).items()
    }
    return OpenAPIResponse(
        description=f"{HTTPStatus(status).phrase}: {_MEANINGS[status]}",
        headers=headers or None,  # type: ignore[arg-type]
        content={PROBLEM_TYPE: OpenAPIMediaType(schema=Reference("#/components/schemas/Problem"))},
    )


@dataclass
class PublishOperation(ApiOperation):
    """`POST /v1/events` reads its body itself, in three forms and three encodings: Litestar can't see which."""

    more_statuses: ClassVar[tuple[int, ...]] = (408, 413, 415)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = RequestBody(
            required=True,
            description="`Content-Encoding` may be gzip, deflate or zstd; limits are on what comes out",
            content={
                "application/json": OpenAPIMediaType(schema=_EVENTS),
                "application/x-ndjson": OpenAPIMediaType(schema=_EVENT),
                "application/msgpack": OpenAPIMediaType(schema=_EVENTS),
            },
        )


_WRITTEN = Schema(
    type=OpenAPIType.OBJECT,
    required=["offset", "id", "type", "priority", "timestamp", "data"],
    properties={
        "offset": Schema(type=OpenAPIType.INTEGER, description="Its place in the log"),
        "id": _TEXT,
        "type": _TEXT,
        "priority": Schema(type=OpenAPIType.STRING, enum=[p.value for p in Priority]),
        "timestamp": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME),
        "data": Schema(type=OpenAPIType.OBJECT, description="As you may see it"),
        "key": _TEXT,
        "user": _TEXT,
        "source": _TEXT,
        "correlation_id": _TEXT,
    },
)
_PAGE_ENDS: dict[str, Reference | Schema] = {
    "next": Schema(
        one_of=[_TEXT, Schema(type=OpenAPIType.NULL)], description="`after` of the next page; null: there is none"
    ),
    "complete": Schema(type=OpenAPIType.BOOLEAN, description="That is all there is at present"),
    "denied": Schema(type=OpenAPIType.ARRAY, description="Types that you may not have, where some were asked for"),
}
_HISTORY_PAGE = Schema(
    type=OpenAPIType.OBJECT,
    required=["events", "next", "complete"],
    properties={"events": Schema(type=OpenAPIType.ARRAY, items=_WRITTEN), **_PAGE_ENDS},
)
_HISTORY_LINE = Schema(
    one_of=[_WRITTEN, Schema(type=OpenAPIType.OBJECT, required=["next", "complete"], properties=_PAGE_ENDS)],
    description="An event a line; the last line says where the stream has ended, and `error`, a problem, if too soon",
)
_BOUND = "a time (`2026-12-01T07:00:00Z`), so long ago (`1h`, `90s`, `2d`) or `EPOCH:OFFSET`"


def _in_query(name: str, description: str, schema: Schema = _TEXT) -> Parameter:
    return Parameter(name=name, param_in="query", description=description, required=False, schema=schema)


@dataclass
class HistoryOperation(ApiOperation):
    """`GET /v1/events`, whose parameters the shard reads."""

    more_statuses: ClassVar[tuple[int, ...]] = (400, 410, 504)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parameters = [
            _in_query("since", f"From there on: {_BOUND}. Left out: from the oldest that is kept"),
            _in_query("until", f"Before a time, or up to and with an offset: {_BOUND}"),
            _in_query("types", "Event types and patterns, separated by commas. Left out: your role's defaults"),
            _in_query("filter", '`{"zone": ["example.com"]}` as JSON, as in a `hello`'),
            _in_query(
                "limit", "Events of a page, of a stream all of them", Schema(type=OpenAPIType.INTEGER, minimum=1)
            ),
            _in_query("after", "`next` of the page before; `EPOCH:OFFSET` goes on behind that event"),
            _in_query("order", "`desc`: newest first", Schema(type=OpenAPIType.STRING, enum=["asc", "desc"])),
        ]
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse):
            answer.content = {
                "application/json": OpenAPIMediaType(schema=_HISTORY_PAGE),
                "application/x-ndjson": OpenAPIMediaType(schema=_HISTORY_LINE),
            }


@dataclass
class ReadyOperation(ApiOperation):
    """`GET /readyz`, whose 503 is an answer, and may be a problem as that of any other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        answer = (self.responses or {})["503"]
        if isinstance(answer, OpenAPIResponse) and answer.content is not None:
            status = Schema(type=OpenAPIType.OBJECT, properties={"status": Schema(const="starting")})
            answer.content["application/json"] = OpenAPIMediaType(schema=status)


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
class RevokeOperation(ApiOperation):
    """`POST /v1/revocations` reads its body strictly, in words of its own."""

    more_statuses: ClassVar[tuple[int, ...]] = (409, 413, 415)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.request_body = RequestBody(
            required=True, content={"application/json": OpenAPIMediaType(schema=_REVOCATION)}
        )


def find_swagger_ui() -> Path:
    """Where a package keeps Swagger UI's files. Only its files are of use: it is not imported, nor is Flask."""
    return Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))


class _SwaggerPage(OpenAPIRenderPlugin):
    """Swagger UI's page. Litestar's own has its script and its style in it, which PAGE_POLICY is against."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        # Relative, since a proxy may serve it beneath a path of its own; at /docs/ it is one level deeper.
        return _PAGE_BELOW if request.scope.get("raw_path", b"").endswith(b"/") else _PAGE

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
<link rel="icon" type="image/png" href="{_ASSETS}/favicon-32x32.png">
<link rel="stylesheet" href="{_ASSETS}/swagger-ui.css">
<link rel="stylesheet" href="{_ASSETS}/index.css">
<script src="{_ASSETS}/swagger-ui-bundle.js" defer></script>
<script src="{_SCRIPT}" defer></script>
</head>
<body><div id="page"></div></body>
</html>
""".encode()
_PAGE_BELOW = _PAGE.replace(b'href="', b'href="../').replace(b'src="', b'src="../')
_PAGE_SCRIPT = b"""\
SwaggerUIBundle({
  url: new URL("openapi.json", document.currentScript.src).href,
  dom_id: "#page",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  validatorUrl: null,
});
"""


def make_openapi_config() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")
    return OpenAPIConfig(
        title="Solowire gateway",
        version=solowire.__version__,
        path=DOCS,
        servers=[Server(url="..", description="This gateway, seen from where this document is")],
        render_plugins=[_SwaggerPage(path="/")],
        components=Components(security_schemes={"bearer": bearer}),
        security=[{"bearer": []}],
    )
