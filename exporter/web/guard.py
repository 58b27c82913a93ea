"""What comes before every answer: the login, a limit on what is sent to us, and headers for browsers."""

import base64
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.web.logins import TooManyWaiting

MAX_BODY_BYTES = 64 * 1024
"""No path reads a body; what is announced to be longer is refused at once."""
MAX_HEADER_BYTES = 16 * 1024

Admits = Callable[[str, str], Awaitable[bool]]
"""Whether someone with this name and password may ask. Raises TooManyWaiting."""

_log = structlog.get_logger()


class Guard:
    """An application behind a login, where there is one. All paths are behind it, as the exporter-toolkit has it."""

    def __init__(self, app: ASGIApp, admits: Admits | None, content_security_policy: str) -> None:
        self._app = app
        self._admits = admits
        self._headers = {
            "content-security-policy": content_security_policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        try:
            refusal = await self._refusal(scope, Headers(scope=scope))
            await (refusal or self._app)(scope, receive, send_with_headers)
        except Exception:
            if begun:
                raise  # the client has gone, or its answer is broken off
            _log.exception("page failed by a bug, please report it", path=scope["path"])
            await PlainTextResponse("Internal error\n", 500)(scope, receive, send_with_headers)

    async def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        # h11 bounds only headers that arrive in pieces
        if len(scope["path"]) + len(scope["query_string"]) + sum(map(_length, headers.raw)) > MAX_HEADER_BYTES:
            return PlainTextResponse("Request header too large\n", 431, {"connection": "close"})
        if not _is_small(headers.get("content-length", "0")):
            return PlainTextResponse("Request too large\n", 413, {"connection": "close"})
        if "transfer-encoding" in headers:  # so that nobody knows how long the body will be
            return PlainTextResponse("Length required\n", 411, {"connection": "close"})
        return await self._login(headers.get("authorization", "")) if self._admits else None

    async def _login(self, authorization: str) -> Response | None:
        try:
            if self._admits and await self._admits(*_basic_auth(authorization)):
                return None
        except TooManyWaiting:
            return PlainTextResponse("Too many logins at once\n", 503, {"retry-after": "1"})
        return PlainTextResponse("Unauthorized\n", 401, {"www-authenticate": "Basic"})


def _length(header: tuple[bytes, bytes]) -> int:
    return len(header[0]) + len(header[1])


def _is_small(content_length: str) -> bool:
    return content_length.isascii() and content_length.isdigit() and int(content_length[:9]) <= MAX_BODY_BYTES


def _basic_auth(authorization: str) -> tuple[str, str]:
    """The name and password of an Authorization header; "" for both where it has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        return "", ""
    user, _, password = text.partition(":")
    return user, password
