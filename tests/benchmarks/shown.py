"""What an exporter shows that is not started: all that its state file knows."""

import asyncio
from pathlib import Path

from configured import load

from exporter.clock import SystemClock
from exporter.http import http_client
from exporter.runtime.service import Service
from exporter.runtime.view import ReloadState, View
from exporter.source import SourceContext


def view_of(config: Path) -> View:
    """The view of an exporter with this configuration file."""

    async def committed() -> View:
        clock = SystemClock()
        service = Service(SourceContext({}, clock, http_client))
        service.commit(await service.prepare(load(config, {})))
        return View(service, ReloadState(clock.now()), clock)

    return asyncio.run(committed())
