"""What a client asks for does not hold the event loop. How long it is held, `make bench BENCH=scrape` measures."""

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

IN_PARTS = ("/metrics", "/-/healthy", "/-/ready", "/-/reload")
"""What these send is short, or rendered a part at a time between turns of other tasks."""
ROUTES = [route for route in create_app(EmptyView()).routes if isinstance(route, Route)]


class Watched(EmptyView):
    """A view that notes where it was asked for everything that it has, and whether garbage was collected then."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def snapshot(self) -> Snapshot:
        self._note()
        return super().snapshot()

    def redacted_config(self) -> str:
        self._note()
        return super().redacted_config()

    def _note(self) -> None:
        self.asked.append((threading.get_ident(), gc.isenabled()))


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.path not in IN_PARTS])
def test_a_page_of_the_whole_fleet_is_made_outside_of_the_event_loops_thread(path: str) -> None:
    view = Watched()

    assert send_request(create_app(view), path).status_code in (200, 404)
    ((thread, collects_garbage),) = view.asked
    assert thread != threading.get_ident()
    assert not collects_garbage  # it would stop all threads, to find everything in use
    assert gc.isenabled()


def test_others_have_their_turns_while_a_page_is_made_and_a_second_one_waits() -> None:
    class Slow(EmptyView):
        made, at_work = 0, 0

        def redacted_config(self) -> str:
            self.made, self.at_work = self.made + 1, self.at_work + 1
            assert self.at_work == 1
            started.set()
            assert release.wait(30)
            self.at_work -= 1
            return "accounts: []\n"

    started, release, view = threading.Event(), threading.Event(), Slow()

    async def main() -> tuple[int, list[int]]:
        transport = httpx.ASGITransport(create_app(view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            asked = [asyncio.create_task(http.get("/-/config")) for _ in range(20)]
            assert await asyncio.to_thread(started.wait, 30)
            healthy = await http.get("/-/healthy")
            assert (healthy.status_code, view.made) == (200, 1)
            release.set()
            return healthy.status_code, [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == (200, [200] * 20)


def test_the_configuration_is_rendered_once() -> None:
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
