"""The HTTP paths and their handlers. They read from a `View`, and are independent of polling."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter.config.problems import ConfigError
from exporter.config.validation import expected_text
from exporter.runtime.view import Snapshot, View
from exporter.web import api
from exporter.web.exposition import exposition_response, prefers_openmetrics
from exporter.web.guard import Authenticate, Guard
from exporter.web.overview import Filter
from exporter.web.pages import CONTENT_SECURITY_POLICY, PageFilter, Pages

AnyFilter = TypeVar("AnyFilter", bound=Filter)
Reload = Callable[[], Awaitable[None]]
"""Reloads the configuration. Raises ConfigError if the configuration has errors."""


def create_app(view: View, *, reload: Reload | None = None, authenticate: Authenticate | None = None) -> Starlette:
    """Create the application. Without `reload`, POST /-/reload is not enabled."""
    handlers = _Handlers(view, reload)
    routes = [
        Route("/", handlers.home),
        Route("/space", handlers.space),
        Route("/api/v1/phone-numbers", handlers.phone_numbers),
        Route("/api/v1/spaces", handlers.spaces),
        Route("/metrics", handlers.metrics),
        Route("/-/healthy", handlers.healthy),
        Route("/-/ready", handlers.ready),
        Route("/-/config", handlers.config),
        Route("/-/reload", handlers.reload, methods=["POST", "PUT"]),
    ]
    guard = Middleware(Guard, authenticate=authenticate, content_security_policy=CONTENT_SECURITY_POLICY)
    app = Starlette(routes=routes, middleware=[guard])
    app.router.redirect_slashes = False
    return app


class _Handlers:
    """One handler per path."""

    def __init__(self, view: View, reload: Reload | None) -> None:
        self._view = view
        self._reload = reload
        self._pages = Pages()
        self._render_lock = asyncio.Lock()
        self._is_ready = False

    async def home(self, request: Request) -> Response:
        try:
            filters = self._parse_filters(PageFilter, request.query_params)
        except ValueError as error:
            return HTMLResponse(self._pages.error("Invalid request", str(error)), 400)
        page = await self._render_in_thread(lambda: self._pages.index(self._view.snapshot(), filters))
        return HTMLResponse(page, headers={"refresh": str(filters.refresh)} if filters.refresh else {})

    async def space(self, request: Request) -> Response:
        account, space = (request.query_params.get(name, "") for name in ("account", "space"))
        page = await self._render_in_thread(lambda: self._pages.space(self._view.snapshot(), account, space))
        if page:
            return HTMLResponse(page)
        return HTMLResponse(self._pages.error("Space not found", "This exporter does not poll this space."), 404)

    async def phone_numbers(self, request: Request) -> Response:
        return await self._json_response(request, api.phone_numbers)

    async def spaces(self, request: Request) -> Response:
        return await self._json_response(request, api.spaces)

    async def metrics(self, request: Request) -> Response:
        openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
        for _ in self._view.expire():
            await asyncio.sleep(0)  # after an outage, thousands of spaces can expire at once
        families = self._view.exposition(openmetrics=openmetrics, names=request.query_params.getlist("name[]"))
        return exposition_response(families, request.headers, openmetrics=openmetrics)

    async def healthy(self, _: Request) -> Response:
        return PlainTextResponse("healthy\n")

    async def ready(self, _: Request) -> Response:
        # the exporter stays ready if a reload adds spaces, because the other spaces can be scraped
        unpolled = self._view.unpolled()
        unknown = sum(view.spaces_unknown for view in self._view.accounts())
        self._is_ready |= not unpolled and not unknown
        if self._is_ready:
            return PlainTextResponse("ready\n")
        missing = f"spaces of {unknown} accounts not listed yet" if unknown else f"{unpolled} spaces not polled yet"
        return PlainTextResponse(f"not ready: {missing}\n", status_code=503)

    async def config(self, _: Request) -> Response:
        return PlainTextResponse(await self._render_in_thread(self._view.redacted_config))

    async def reload(self, _: Request) -> Response:
        if self._reload is None:
            return PlainTextResponse("Lifecycle API is not enabled: start with --web.enable-lifecycle\n", 403)
        try:
            await self._reload()
        except ConfigError as error:
            return PlainTextResponse(f"config reload failed, keeping the current configuration:\n{error}\n", 500)
        return PlainTextResponse("config reloaded\n")

    async def _json_response(self, request: Request, to_json: Callable[[Snapshot, Filter], str]) -> Response:
        try:
            filters = self._parse_filters(Filter, request.query_params)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        text = await self._render_in_thread(lambda: to_json(self._view.snapshot(), filters))
        return Response(text, media_type="application/json")

    def _parse_filters(self, filter_type: type[AnyFilter], params: QueryParams) -> AnyFilter:
        """Return the filters of a query string. Raises ValueError with a line for each error."""
        filters = _filters_of(filter_type, params)
        if filters.account and filters.account not in (accounts := [view.account for view in self._view.accounts()]):
            # an empty list would look like an account without problems
            raise ValueError(f"account: expected one of {', '.join(accounts)}, found {filters.account!r}")
        return filters

    async def _render_in_thread(self, render: Callable[[], str]) -> str:
        """Render a text in a thread, because 10,000 numbers take 0.1 s. Only one text is rendered at a time, so that
        polls have enough time and memory."""
        async with self._render_lock:
            return await asyncio.to_thread(_without_garbage_collection, render)


def _without_garbage_collection(render: Callable[[], str]) -> str:
    """Render without garbage collection. A page of 10,000 spaces creates so many objects that the collector would run,
    with all threads stopped, and free nothing. Reference counting frees the objects after rendering."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return render()
    finally:
        if enabled:
            gc.enable()


def _filters_of(filter_type: type[AnyFilter], params: QueryParams) -> AnyFilter:
    texts: dict[str, list[str]] = {}
    for name, text in params.multi_items():
        if text:
            texts.setdefault(name, []).append(text)
    # states are accepted in upper case, as pages show RED; duplicates would slow down the comparison of each number
    texts["state"] = list({text.lower(): None for text in texts.get("state", [])})
    parameters = {
        name: values if name == "state" or len(values) > 1 else values[0] for name, values in texts.items() if values
    }
    try:
        return filter_type.model_validate(parameters)
    except ValidationError as error:
        raise ValueError("\n".join(_problem(details, filter_type) for details in error.errors())) from error


def _problem(details: Mapping[str, Any], filter_type: type[Filter]) -> str:
    name = details["loc"][0]
    if details["type"] == "extra_forbidden":
        return f"{name}: unknown parameter, expected one of {', '.join(filter_type.model_fields)}"
    return f"{name}: expected {expected_text(details, filter_type)}, found {details['input']!r}"
