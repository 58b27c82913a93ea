"""ASGI middleware: basic auth, limit of request headers, rejection of cross-origin requests, security headers."""

import base64
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.web.passwords import TooManyPending

MAX_HEADER_BYTES = 16 * 1024
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")
"""Methods that change nothing (RFC 9110)."""

Authenticate = Callable[[str, str], Awaitable[bool]]
"""Whether this user name and password are valid. Raises TooManyPending."""

_log = structlog.get_logger()


class Guard:
    """Protects an application. With `authenticate`, all paths require basic auth, as in the exporter-toolkit."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate | None, content_security_policy: str) -> None:
        self._app = app
        self._authenticate = authenticate
        self._headers = {
            "content-security-policy": content_security_policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            rejection = await self._rejection(scope, Headers(scope=scope))
            await (rejection or self._app)(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request failed because of a bug, please report it", path=scope["path"])
            if started:
                raise  # the server closes the connection, so that the client detects the incomplete response
            await PlainTextResponse("Internal error\n", 500)(scope, receive, send_with_headers)

    async def _rejection(self, scope: Scope, headers: Headers) -> Response | None:
        lengths = sum(len(name) + len(value) for name, value in headers.raw)
        # h11 limits only headers that arrive in several reads
        if len(scope["path"]) + len(scope["query_string"]) + lengths > MAX_HEADER_BYTES:
            return PlainTextResponse("Request header too large\n", 431, {"connection": "close"})
        if scope["method"] not in _SAFE_METHODS and _is_cross_origin(headers):
            return PlainTextResponse("Cross-origin requests are not allowed\n", 403)
        return await self._check_basic_auth(headers.get("authorization", "")) if self._authenticate else None

    async def _check_basic_auth(self, authorization: str) -> Response | None:
        try:
            if self._authenticate and await self._authenticate(*_basic_auth(authorization)):
                return None
        except TooManyPending:
            return PlainTextResponse("Too many pending password checks, retry later\n", 503, {"retry-after": "1"})
        return PlainTextResponse("Unauthorized\n", 401, {"www-authenticate": "Basic"})


def _is_cross_origin(headers: Headers) -> bool:
    """Whether a page of another origin sent the request. Only browsers send these headers."""
    host = headers.get("host", "").lower()
    # compare without the scheme, because it can be the scheme of a reverse proxy
    origins = (origin.lower().partition("://")[2] for origin in headers.getlist("origin"))
    sites = headers.getlist("sec-fetch-site")
    return any(not host or origin != host for origin in origins) or bool(set(sites) - {"same-origin", "none"})


def _basic_auth(authorization: str) -> tuple[str, str]:
    """Return the user name and password of an Authorization header, or two empty strings if there are none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        return "", ""
    user, _, password = text.partition(":")
    return user, password
