"""The demo: the simulated API on a loopback socket, and the exporter polling it for real."""

import asyncio
import signal
from collections.abc import Callable
from socket import socket
from typing import Any

import yaml

from exporter import sources
from exporter.clock import SystemClock
from exporter.config.fields import format_duration
from exporter.config.settings import Settings
from exporter.runtime.reload import Fixed
from exporter.serve import serve
from exporter.simulator.api import SimulatedApi, create_simulator
from exporter.simulator.fleet import Fleet
from exporter.simulator.scenario import Scenario
from exporter.web.server import bind, serving, url_of

_REGIONS = ("apac", "emea", "latam")


async def run_demo(scenario: Scenario, listener: socket, say: Callable[[str], None]) -> None:
    """Serve the simulated API on a free port and the exporter on `listener`, until SIGTERM or SIGINT."""
    simulator = bind("127.0.0.1:0")
    async with serving(create_simulator(SimulatedApi(scenario, SystemClock())), simulator):
        settings = demo_settings(scenario, url_of(simulator))
        spaces = sum(account.spaces for account in scenario.accounts)
        say(f"A simulated fleet of {spaces} spaces; something happens every few seconds.")
        say(f"  metrics   {url_of(listener)}/metrics")
        say(f"  overview  {url_of(listener)}/")
        say("Press Ctrl-C to stop.")
        await serve(Fixed(settings), settings, {}, listener)


async def run_simulator(scenario: Scenario, listener: socket, say: Callable[[str], None]) -> None:
    """Serve the simulated API on `listener` until SIGTERM or SIGINT, and say how to poll it."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    endpoint = url_of(listener)
    async with serving(create_simulator(SimulatedApi(scenario, SystemClock())), listener):
        say(f"# The simulated API listens on {endpoint}; this configuration polls it:")
        say(yaml.safe_dump(demo_document(scenario, endpoint), sort_keys=False))
        await stop.wait()


def demo_settings(scenario: Scenario, endpoint: str) -> Settings:
    """The configuration that polls the scenario's fleet at `endpoint`."""
    return sources.Settings.model_validate(demo_document(scenario, endpoint))


def demo_document(scenario: Scenario, endpoint: str) -> dict[str, Any]:
    """The same as it stands in a file; the made-up secrets of made-up accounts are part of what people need to see."""
    fleet = Fleet(scenario)
    accounts = [
        {
            "name": account.name,
            "endpoint": endpoint,
            "access_key_id": account.access_key_id,
            "access_key_secret": account.access_key_secret,
            "qps": account.qps,
            "poll_interval": format_duration(account.poll_interval),
            "spaces": [
                {"id": space.id, "name": space.name, "labels": {"region": _REGIONS[index % len(_REGIONS)]}}
                for index, space in enumerate(fleet.spaces[account.name])
            ],
        }
        for account in scenario.accounts
    ]
    return {"accounts": accounts}
