"""The demo: the simulated API on a loopback socket, and the exporter polling it for real."""

import asyncio
import signal
from collections.abc import Callable
from socket import socket

import yaml
from pydantic import SecretStr

from exporter.clock import SystemClock
from exporter.config.settings import Account, Settings, Space, format_duration
from exporter.service import Fixed, serve
from exporter.simulator.api import SimulatedApi, create_simulator
from exporter.simulator.fleet import Fleet
from exporter.simulator.scenario import Scenario
from exporter.web.server import bind, serving, url_of

_REGIONS = ("apac", "emea", "latam")


async def run_demo(scenario: Scenario, listener: socket, say: Callable[[str], None]) -> None:
    """Serve the simulated API on a free port and the exporter on `listener`, until SIGTERM or SIGINT."""
    simulator = bind("127.0.0.1:0")
    api = SimulatedApi(scenario, SystemClock())
    async with serving(create_simulator(api, scenario.latency, scenario.seed), simulator):
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
    api = SimulatedApi(scenario, SystemClock())
    async with serving(create_simulator(api, scenario.latency, scenario.seed), listener):
        say(f"# The simulated API listens on {endpoint}; this configuration polls it:")
        say(_as_yaml(demo_settings(scenario, endpoint)))
        await stop.wait()


def demo_settings(scenario: Scenario, endpoint: str) -> Settings:
    """The configuration that polls the scenario's fleet at `endpoint`."""
    fleet = Fleet(scenario)
    return Settings(
        accounts=[
            Account(
                name=account.name,
                endpoint=endpoint,
                access_key_id=account.access_key_id,
                access_key_secret=SecretStr(account.access_key_secret),
                qps=account.qps,
                poll_interval=format_duration(account.poll_interval),
                spaces=[
                    Space(id=space.id, name=space.name, labels={"region": _REGIONS[index % len(_REGIONS)]})
                    for index, space in enumerate(fleet.spaces[account.name])
                ],
            )
            for account in scenario.accounts
        ]
    )


def _as_yaml(settings: Settings) -> str:
    document = settings.model_dump(mode="json", exclude_defaults=True)
    for written, account in zip(document["accounts"], settings.accounts, strict=True):
        # the made-up secret of a made-up account is part of what people need to see
        written["access_key_secret"] = account.access_key_secret.get_secret_value() if account.access_key_secret else ""
    return yaml.safe_dump(document, sort_keys=False)
