"""The HTTP side: what is answered under which path. Knows no polling; asks its `Source`."""

import asyncio
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter import __version__
from exporter.config.problems import ConfigError
from exporter.metrics.catalogue import AccountView
from exporter.web.exposition import exposition, prefers_openmetrics
from exporter.web.guard import Admits, Guard

_TEMPLATES = Path(__file__).parent / "templates"


class Source(Protocol):
    """What the pages are made from."""

    def expire(self) -> Iterator[None]:
        """Take off what is too old to show, step by step."""

    def exposition(self, *, openmetrics: bool, names: Collection[str]) -> Sequence[bytes]:
        """All families, or those of these names, in one of the two formats, in parts of any size."""

    def accounts(self) -> Collection[AccountView]:
        """The accounts as they are now."""

    def unpolled(self) -> int:
        """How many spaces have been neither polled nor known since the start."""

    def redacted_config(self) -> str:
        """The configuration in YAML, its secrets left out."""


Reload = Callable[[], Awaitable[None]]
"""Takes over the configuration; raises ConfigError where it is wrong."""


def create_app(source: Source, *, reload: Reload | None = None, admits: Admits | None = None) -> Starlette:
    """The application that answers from `source`; without `reload` none may be asked for over HTTP."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    index = environment.get_template("index.html")
    pages = _Pages(source, index, reload)
    routes = [
        Route("/", pages.home),
        Route("/metrics", pages.metrics),
        Route("/-/healthy", pages.healthy),
        Route("/-/ready", pages.ready),
        Route("/-/config", pages.config),
        Route("/-/reload", pages.reload, methods=["POST", "PUT"]),
    ]
    guard = Middleware(Guard, admits=admits, content_security_policy=_content_security_policy(index.render()))
    app = Starlette(routes=routes, middleware=[guard])
    app.router.redirect_slashes = False
    return app


class _Pages:
    """One method a path."""

    def __init__(self, source: Source, index: jinja2.Template, reload: Reload | None) -> None:
        self._source = source
        self._index = index
        self._reload = reload
        self._is_ready = False

    async def home(self, _: Request) -> Response:
        accounts, unpolled = self._source.accounts(), self._source.unpolled()
        return HTMLResponse(self._index.render(version=__version__, accounts=accounts, unpolled=unpolled))

    async def metrics(self, request: Request) -> Response:
        openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
        for _ in self._source.expire():
            await asyncio.sleep(0)  # after an outage it can be thousands of spaces
        parts = self._source.exposition(openmetrics=openmetrics, names=request.query_params.getlist("name[]"))
        return exposition(parts, request.headers, openmetrics=openmetrics)

    async def healthy(self, _: Request) -> Response:
        return PlainTextResponse("healthy\n")

    async def ready(self, _: Request) -> Response:
        # spaces that a reload brings do not take it back: the others are there to be scraped
        unpolled = self._source.unpolled()
        unlisted = sum(view.unlisted for view in self._source.accounts())
        self._is_ready |= not unpolled and not unlisted
        if self._is_ready:
            return PlainTextResponse("ready\n")
        missing = f"spaces of {unlisted} accounts not listed yet" if unlisted else f"{unpolled} spaces not polled yet"
        return PlainTextResponse(f"not ready: {missing}\n", status_code=503)

    async def config(self, _: Request) -> Response:
        return PlainTextResponse(self._source.redacted_config())

    async def reload(self, _: Request) -> Response:
        if self._reload is None:
            return PlainTextResponse("Lifecycle API is not enabled: start with --web.enable-lifecycle\n", 403)
        try:
            await self._reload()
        except ConfigError as error:
            return PlainTextResponse(f"configuration refused, the old one goes on:\n{error}\n", 500)
        return PlainTextResponse("configuration taken over\n")


def _content_security_policy(page: str) -> str:
    """Nothing may run, be loaded or framed; the page's own style, known by its hash, may apply."""
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" for style in styles)
    return f"default-src 'none'; style-src {hashes}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
