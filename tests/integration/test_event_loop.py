"""HTTP requests do not block the event loop. `make bench BENCH=scrape` measures how long the loop is blocked."""

import asyncio
import gc
import threading

import httpx
import pytest
from empty_view import EmptyView, send_request
from starlette.routing import Route
from virtual_time import run
from world import World, scenario

from exporter.runtime.view import Snapshot
from exporter.web.routes import create_app

SHORT_OR_IN_PARTS = ("/metrics", "/-/healthy", "/-/ready", "/-/reload")
"""Paths whose response is short, or is rendered in parts so that other tasks can run."""
ROUTES = [route for route in create_app(EmptyView()).routes if isinstance(route, Route)]


class RecordingView(EmptyView):
    """A view that records the thread of each call, and whether garbage collection was enabled."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def snapshot(self) -> Snapshot:
        self._record()
        return super().snapshot()

    def redacted_config(self) -> str:
        self._record()
        return super().redacted_config()

    def _record(self) -> None:
        self.calls.append((threading.get_ident(), gc.isenabled()))


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.path not in SHORT_OR_IN_PARTS])
def test_a_page_is_rendered_in_another_thread_without_garbage_collection(path: str) -> None:
    view = RecordingView()

    assert send_request(create_app(view), path).status_code in (200, 404)
    ((thread, collects_garbage),) = view.calls
    assert thread != threading.get_ident()
    assert not collects_garbage  # a collection would stop all threads
    assert gc.isenabled()


def test_only_one_page_is_rendered_at_a_time_and_health_checks_do_not_wait() -> None:
    class SlowView(EmptyView):
        renderings, in_progress = 0, 0

        def redacted_config(self) -> str:
            self.renderings, self.in_progress = self.renderings + 1, self.in_progress + 1
            assert self.in_progress == 1
            started.set()
            assert release.wait(30)
            self.in_progress -= 1
            return "accounts: []\n"

    started, release, view = threading.Event(), threading.Event(), SlowView()

    async def main() -> tuple[int, list[int]]:
        transport = httpx.ASGITransport(create_app(view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            requests = [asyncio.create_task(http.get("/-/config")) for _ in range(20)]
            assert await asyncio.to_thread(started.wait, 30)
            healthy = await http.get("/-/healthy")
            assert (healthy.status_code, view.renderings) == (200, 1)
            release.set()
            return healthy.status_code, [response.status_code for response in await asyncio.gather(*requests)]

    assert asyncio.run(main()) == (200, [200] * 20)


def test_the_rendered_configuration_is_cached_until_a_reload() -> None:
    async def main() -> tuple[str, str, str]:
        world = World(scenario(2))
        first, second = world.exporter.view.redacted_config(), world.exporter.view.redacted_config()
        await world.exporter.reconfigure(world.settings.model_copy(update={"max_age": 60.0}))
        third = world.exporter.view.redacted_config()
        await world.exporter.stop()
        return first, second, third

    first, second, third = run(main())

    assert first is second
    assert "max_age" not in first
    assert "max_age: 1m" in third
