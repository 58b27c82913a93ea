"""The demo: the simulated API on a loopback socket, and an exporter that polls it over HTTP."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from socket import socket
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

from exporter import sources
from exporter.clock import SystemClock
from exporter.config.fields import format_duration
from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Settings
from exporter.runtime.reload import StaticLoader
from exporter.serve import install_signal_handlers, serve
from exporter.simulator.api import SimulatedApi, create_simulator
from exporter.simulator.fleet import Fleet
from exporter.simulator.scenario import Scenario
from exporter.web.server import bind, serving, url_of

_REGIONS = ("apac", "emea", "latam")


async def run_demo(scenario: Scenario, listeners: Sequence[socket], print_line: Callable[[str], None]) -> None:
    """Serve the simulated API on a free port and the exporter on `listeners`, until SIGTERM, SIGINT or SIGHUP."""
    simulator = bind("127.0.0.1:0")
    async with serving(create_simulator(SimulatedApi(scenario, SystemClock())), simulator):
        settings = demo_settings(scenario, url_of(simulator))
        spaces = [space for spaces in Fleet(scenario).spaces.values() for space in spaces]
        numbers = sum(len(space.numbers) for space in spaces)
        print_line(f"Demo with {numbers} simulated phone numbers in {len(spaces)} spaces.")
        print_line("The ratings, limits and statuses of the phone numbers change over time.")
        for url in map(url_of, listeners):
            print_line(f"  metrics      {url}/metrics")
            print_line(f"  status page  {url}/")
        print_line("Press Ctrl-C to stop.")
        await serve(StaticLoader(settings), settings, {}, listeners, hangup_stops=True)


async def run_simulator(
    scenario: Scenario, listeners: Sequence[socket], print_line: Callable[[str], None], config_file: Path | None = None
) -> None:
    """Serve the simulated API on `listeners` until SIGTERM, SIGINT or SIGHUP. Print a configuration that polls the API,
    or write it to `config_file`.

    Raises:
        ConfigError: the file cannot be written.
    """
    stop = asyncio.Event()
    install_signal_handlers(stop)
    urls = list(map(url_of, listeners))
    document = yaml.safe_dump(demo_document(scenario, urls[0]), sort_keys=False)
    text = f"# The simulated API listens on {' and '.join(urls)}. This configuration polls it:\n{document}"
    async with serving(create_simulator(SimulatedApi(scenario, SystemClock())), *listeners):
        if not config_file:
            print_line(text)
        with _temporary_file(text, config_file) if config_file else nullcontext():
            await stop.wait()


@contextmanager
def _temporary_file(text: str, file: Path) -> Iterator[None]:
    """Create a file with this text, and delete the file at the end of the context. The file is never visible with a
    part of the text."""
    try:
        with NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=f"{file.name}.") as partial:
            partial.write(text)
            partial.flush()
            file.hardlink_to(partial.name)  # fails if the file exists
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        raise ConfigError([Problem(str(file), (), f"cannot create the file: {reason}")]) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def demo_settings(scenario: Scenario, endpoint: str) -> Settings:
    """Return the settings that poll the scenario's fleet at `endpoint`."""
    return sources.Settings.model_validate(demo_document(scenario, endpoint))


def demo_document(scenario: Scenario, endpoint: str) -> dict[str, Any]:
    """Return the content of a configuration file that polls the fleet at `endpoint`, with the example secrets."""
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
