"""The command line. Knows names, flags and exit statuses; every command imports what it needs when it runs.

Exit status: 0 well, 1 something failed, 2 the configuration or the command line is wrong.
"""

import gc
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from exporter import __version__

if TYPE_CHECKING:
    from socket import socket

    from exporter.config.settings import Settings
    from exporter.config.shard import Shard
    from exporter.simulator.scenario import Scenario

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])


def _parse_shard(_: click.Context, __: click.Parameter, text: str) -> "Shard":
    from exporter.config.shard import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_config_file = click.option(
    "--config.file",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file. Without it, one account is polled with the key from the environment.",
)
_shard = click.option(
    "--shard",
    default="1/1",
    show_default=True,
    callback=_parse_shard,
    help="Which of how many processes on this configuration it is: its part of the spaces and of each qps.",
)
_scenario = click.option(
    "--scenario",
    type=click.Path(path_type=Path),
    help="What happens to the simulated fleet, in YAML. [default: the demo's]",
)


def _server_options(command: Command) -> Command:
    for option in (
        click.option("--log.format", "log_format", type=click.Choice(["logfmt", "json"]), default="logfmt"),
        click.option(
            "--log.level", "log_level", type=click.Choice(["debug", "info", "warning", "error"]), default="info"
        ),
        click.option("--web.listen-address", "address", default=":10144", show_default=True, help="host:port or :port"),
    ):
        command = option(command)
    return command


class _ServeByDefault(click.Group):
    """`chatapp-exporter --config.file x` serves, as exporters do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "--version")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ServeByDefault, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="chatapp-exporter")
def main() -> None:
    """Prometheus exporter for the health of WhatsApp phone numbers on Alibaba Cloud's Chat App Message Service.

    Without a command it serves. To see it work without an account: chatapp-exporter demo
    """


@main.command()
@_config_file
@_shard
@_server_options
@click.option(
    "--web.config.file",
    "web_config_file",
    type=click.Path(path_type=Path),
    help="TLS and logins, in the format of Prometheus' exporter-toolkit.",
)
@click.option("--web.enable-lifecycle", "lifecycle", is_flag=True, help="Reload on POST /-/reload. SIGHUP always does.")
def serve(
    config_file: Path | None,
    shard: "Shard",
    address: str,
    log_level: str,
    log_format: Any,
    web_config_file: Path | None,
    lifecycle: bool,
) -> None:
    """Poll the configured spaces and serve /metrics (the default command)."""
    _end_well_on_sigterm()
    gc.disable()  # what a start makes stays: the collector would go through all of it again and again
    from exporter.clock import SystemClock
    from exporter.config.loading import Configuration
    from exporter.logs import configure_logs
    from exporter.service import serve as run
    from exporter.web.access import Access

    configuration = Configuration(config_file, os.environ)
    settings = _valid(configuration.load, hint=config_file is None)
    access = _valid(lambda: Access(web_config_file, SystemClock())) if web_config_file else None
    configure_logs(log_level, log_format)
    listener = _bind(address)
    _run(run(configuration, settings, os.environ, listener, access=access, lifecycle=lifecycle, shard=shard))


@main.command()
@_scenario
@_server_options
def demo(scenario: Path | None, address: str, log_level: str, log_format: Any) -> None:
    """Start a simulated API and the exporter on it. No account is needed."""
    _end_well_on_sigterm()
    from exporter.demo import run_demo
    from exporter.logs import configure_logs

    configure_logs(log_level, log_format)
    _run(run_demo(_load_scenario(scenario), _bind(address), click.echo))


@main.command()
@_scenario
@click.option(
    "--web.listen-address", "address", default="127.0.0.1:10145", show_default=True, help="host:port, on loopback"
)
def simulate(scenario: Path | None, address: str) -> None:
    """Start the simulated API alone and print a configuration that polls it."""
    _end_well_on_sigterm()
    from exporter.demo import run_simulator
    from exporter.logs import configure_logs

    configure_logs("info", "logfmt")
    _run(run_simulator(_load_scenario(scenario), _bind(address), click.echo))


@main.command()
@_config_file
@_shard
def check(config_file: Path | None, shard: "Shard") -> None:
    """Validate the configuration and print what polling it will mean."""
    from exporter.app import with_known_spaces
    from exporter.planning import plans, warnings
    from exporter.report import print_plan
    from exporter.state.state_file import read_beside

    settings = _load(config_file)
    state_file = shard.of(settings).state_file
    known = read_beside(Path(state_file), settings.endpoints) if state_file else {}
    planned = plans(shard.of(with_known_spaces(settings, known)), known)
    print_plan(planned)
    for warning in warnings(planned, settings.max_age, shard):
        click.echo(f"warning: {warning}", err=True)


@main.command()
@_config_file
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--fail-on",
    type=click.Choice(["down", "red", "restricted", "yellow", "unknown", "never"]),
    default="red",
    show_default=True,
    help="Exit with 3 if a number is so or worse; the choices begin with the worst.",
)
def poll(config_file: Path | None, output: str, fail_on: str) -> None:
    """Poll every space once, and print the numbers."""
    from exporter.app import sweep
    from exporter.chatapp.model import Condition
    from exporter.logs import configure_logs
    from exporter.report import print_json, print_numbers, progress_bar

    settings = _load(config_file)
    configure_logs("error", "logfmt")
    with progress_bar() as watch:
        swept, unlisted = _run(sweep(settings, os.environ, watch))
    (print_json if output == "json" else print_numbers)(swept, unlisted)
    conditions = list(Condition)
    bad = conditions[: conditions.index(Condition(fail_on)) + 1] if fail_on != "never" else []
    if any(number.condition in bad for view, _ in swept for number in view.phone_numbers):
        sys.exit(3)
    sys.exit(1 if unlisted or any(error for _, error in swept) else 0)


@main.command()
def schema() -> None:
    """Print the configuration's JSON Schema."""
    import json

    from exporter.config.settings import Settings

    click.echo(json.dumps(Settings.model_json_schema(), indent=2))


def _load(config_file: Path | None) -> "Settings":
    from exporter.config.loading import load

    return _valid(lambda: load(config_file, os.environ), hint=config_file is None)


def _load_scenario(path: Path | None) -> "Scenario":
    from exporter.simulator.fleet import load_scenario

    return _valid(lambda: load_scenario(path))


def _valid(make: Callable[[], Result], *, hint: bool = False) -> Result:
    """What `make` gives; where a file is wrong, the end."""
    from exporter.config.problems import ConfigError

    try:
        return make()
    except ConfigError as error:
        found = len(error.problems)
        click.echo(f"{error}\n{found} problem{'s' if found > 1 else ''} found, nothing was started", err=True)
        if hint:
            click.echo("Name a file with --config.file, or try without an account: chatapp-exporter demo", err=True)
        sys.exit(2)


def _end_well_on_sigterm() -> None:
    """Before the event loop takes the signals over, and as PID 1, which would not hear SIGTERM at all."""
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a reload waits until there is something to reload
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _bind(address: str) -> "socket":
    from exporter.web.server import AddressError, bind

    try:
        return bind(address)
    except AddressError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import asyncio

    from exporter.threads import DaemonThreads

    async def with_threads() -> Result:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        return await work

    return asyncio.run(with_threads())
