"""The HTTP side: what is answered under which path. Knows no polling; asks its `Source`."""

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter import __version__
from exporter.config.problems import ConfigError
from exporter.metrics.catalogue import AccountView
from exporter.web.guard import Admits, Guard

_TEMPLATES = Path(__file__).parent / "templates"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Source(Protocol):
    """What the pages are made from."""

    def exposition(self, *, openmetrics: bool, names: Collection[str]) -> bytes:
        """All families, or those of these names, in one of the two formats."""

    def accounts(self) -> Collection[AccountView]:
        """The accounts as they are now."""

    def unpolled(self) -> int:
        """How many spaces have been neither polled nor known since the start."""

    def redacted_config(self) -> str:
        """The configuration in YAML, its secrets left out."""


def create_app(
    source: Source, *, reload: Callable[[], Awaitable[None]] | None = None, admits: Admits | None = None
) -> Starlette:
    """The application that answers from `source`; `reload`, where it may be asked for over HTTP, raises ConfigError."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    index = environment.get_template("index.html")

    async def metrics(request: Request) -> Response:
        openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
        body = source.exposition(openmetrics=openmetrics, names=request.query_params.getlist("name[]"))
        return Response(body, headers={"content-type": OPENMETRICS if openmetrics else TEXT})

    async def home(_: Request) -> Response:
        return HTMLResponse(index.render(version=__version__, accounts=source.accounts(), unpolled=source.unpolled()))

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("healthy\n")

    async def ready(_: Request) -> Response:
        unpolled = source.unpolled()
        text = f"not ready: {unpolled} spaces not polled yet\n" if unpolled else "ready\n"
        return PlainTextResponse(text, status_code=503 if unpolled else 200)

    async def config(_: Request) -> Response:
        return PlainTextResponse(source.redacted_config())

    async def reload_config(_: Request) -> Response:
        if reload is None:
            return PlainTextResponse("Lifecycle API is not enabled: start with --web.enable-lifecycle\n", 403)
        try:
            await reload()
        except ConfigError as error:
            return PlainTextResponse(f"configuration refused, the old one goes on:\n{error}\n", 500)
        return PlainTextResponse("configuration taken over\n")

    routes = [
        Route("/", home),
        Route("/metrics", metrics),
        Route("/-/healthy", healthy),
        Route("/-/ready", ready),
        Route("/-/config", config),
        Route("/-/reload", reload_config, methods=["POST", "PUT"]),
    ]
    guard = Middleware(Guard, admits=admits, content_security_policy=_content_security_policy(index.render()))
    app = Starlette(routes=routes, middleware=[guard, Middleware(GZipMiddleware, compresslevel=1)])
    app.router.redirect_slashes = False
    return app


def _content_security_policy(page: str) -> str:
    """Nothing may run, be loaded or framed; the page's own style, known by its hash, may apply."""
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" for style in styles)
    return f"default-src 'none'; style-src {hashes}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header ranks OpenMetrics 1.0 first; in all other cases text 0.0.4 is the answer."""
    ranked = sorted(map(_quality, accept.split(",")), key=lambda entry: -entry[0])
    for quality, media_type, version in ranked:
        if quality > 0 and media_type == "application/openmetrics-text" and version in ("", "0.0.1", "1.0.0"):
            return True
        if quality > 0 and media_type in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
            return False
    return False


def _quality(entry: str) -> tuple[float, str, str]:
    media_type, *rest = (part.strip() for part in entry.split(";"))
    parameters = dict(part.split("=", 1) for part in rest if "=" in part)
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    return quality, media_type.lower(), parameters.get("version", "").strip('"')
