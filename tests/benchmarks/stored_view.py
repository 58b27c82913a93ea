"""Reads the state file of a configuration without starting polls."""

import asyncio
from pathlib import Path

from configured import load

from exporter.clock import SystemClock
from exporter.http import http_client
from exporter.runtime.service import Service
from exporter.runtime.view import ReloadState, View
from exporter.source import SourceContext


def view_of(config: Path) -> View:
    """Return the view of an exporter with this configuration file and the records of its state file."""

    async def create_view() -> View:
        clock = SystemClock()
        service = Service(SourceContext({}, clock, http_client))
        service.commit(await service.prepare(load(config, {})))
        return View(service, ReloadState(clock.now()), clock)

    return asyncio.run(create_view())
