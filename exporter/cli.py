"""The command line. Knows names, flags and exit statuses; every command imports what it needs when it runs.

Exit status: 0 well, 1 something failed, 2 the configuration or the command line is wrong, 3 `poll` found a number in
trouble, 130 interrupted.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from exporter import __version__

if TYPE_CHECKING:
    from socket import socket

    from click.shell_completion import CompletionItem

    from exporter.config.effective import Shard
    from exporter.config.loading import Configuration
    from exporter.config.settings import Settings
    from exporter.simulator.scenario import Scenario

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])


def _parse_shard(_: click.Context, __: click.Parameter, text: str) -> "Shard":
    from exporter.config.effective import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_WITHOUT_A_FILE = """
To poll an account's own numbers, give the access key of a RAM user:
  export ALIBABA_CLOUD_ACCESS_KEY_ID=LTAI... ALIBABA_CLOUD_ACCESS_KEY_SECRET=...
To poll customer spaces, name them in a file:  chatapp-exporter --config.file exporter.yml
To see it work without an account:             chatapp-exporter demo"""


def _examples(*lines: str) -> str:
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


_config_file = click.option(
    "--config.file",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file. Without it, one account is polled with the key from the environment.",
)
_expand = click.option(
    "--config.expand-environment-variables",
    "expand",
    is_flag=True,
    help="Replace ${NAME} in values of the configuration file and of space files by the environment variable NAME;"
    " $${NAME} is a literal ${NAME}.",
)
_shard = click.option(
    "--shard",
    metavar="INDEX/COUNT",
    default="1/1",
    show_default=True,
    callback=_parse_shard,
    help="Shard to run, counted from 1. Each account is polled by one shard.",
)
_scenario = click.option(
    "--scenario",
    type=click.Path(path_type=Path),
    help="What happens to the simulated fleet, in YAML. [default: the demo's]",
)


def _choice(flag: str, name: str, choices: list[str], default: str, about: str) -> Callable[[Command], Command]:
    return click.option(flag, name, type=click.Choice(choices), default=default, show_default=True, help=about)


def _listen_address(default: str, about: str) -> Callable[[Command], Command]:
    return click.option(
        "--web.listen-address",
        "addresses",
        metavar="ADDRESS",
        multiple=True,
        default=[default],
        show_default=True,
        help=f"{about} Can be repeated.",
    )


def _server_options(command: Command) -> Command:
    for option in (
        _choice("--log.format", "log_format", ["logfmt", "json"], "logfmt", "How a line of the log looks."),
        _choice("--log.level", "log_level", ["debug", "info", "warning", "error"], "info", "What is logged at least."),
        _listen_address(":10144", "Where it listens: host:port, or :port for every interface."),
    ):
        command = option(command)
    return command


_OPTIONS_OF_ALL = ("-h", "--help", "--version")


class _Command(click.Command):
    """An option that is given twice is an error, unless it can have several values: click would use the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            once = isinstance(option, click.Option) and not (option.multiple or option.is_eager)
            if once and times > 1 and not ctx.resilient_parsing:
                raise click.UsageError(f"Option '{option.opts[0]}' is given {times} times.", ctx)
        try:
            return super().parse_args(ctx, args)
        except OSError:  # the help could not be written
            with _printing():
                raise
            sys.exit()


class _ServeByDefault(_Command, click.Group):
    """`chatapp-exporter --config.file x` serves, as exporters do. Commands are listed in the order of first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        completing = ctx.resilient_parsing  # where nothing is said yet, it may become any command
        if (not args and not completing) or (args and args[0].startswith("-") and args[0] not in _OPTIONS_OF_ALL):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        of_serve = self.commands["serve"].shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete) + [one for one in of_serve if one.value not in _OPTIONS_OF_ALL]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted, nothing more is shown", err=True)
            sys.exit(130)


@click.group(
    cls=_ServeByDefault,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "chatapp-exporter demo                              see it work, no account",
        "chatapp-exporter check --config.file exporter.yml  see what a file means",
        "chatapp-exporter --config.file exporter.yml        serve :10144/metrics",
    ),
)
@click.version_option(__version__, prog_name="chatapp-exporter")
def main() -> None:
    """Prometheus exporter for the health of WhatsApp phone numbers on Alibaba Cloud's Chat App Message Service.

    Without a command it serves, and takes the options of serve. COMMAND --help tells more of each.
    """
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)  # before prometheus_client reads it, which would keep its values in files there


@main.command(
    cls=_Command,
    epilog=_examples(
        "chatapp-exporter --config.file exporter.yml",
        "chatapp-exporter --config.file exporter.yml --web.listen-address :9100",
        "chatapp-exporter --config.file exporter.yml --shard 2/5",
    ),
)
@_config_file
@_expand
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
    expand: bool,
    shard: "Shard",
    addresses: Sequence[str],
    log_level: str,
    log_format: Any,
    web_config_file: Path | None,
    lifecycle: bool,
) -> None:
    """Poll the configured spaces and serve /metrics (the default).

    SIGHUP reloads the configuration, SIGTERM stops the exporter.
    """
    _end_well_on_signals(reloads=True)
    gc.disable()  # what a start makes stays: the collector would go through all of it again and again
    from exporter.clock import SystemClock
    from exporter.logs import configure_logs
    from exporter.serve import serve as run
    from exporter.web.web_config import WebConfigFile

    configuration = _configuration(config_file, expand=expand)
    settings = _valid(lambda: _in_time(configuration.load), hint=config_file is None)
    web_config = None
    if web_config_file:
        web_config = _valid(lambda: _in_time(lambda: WebConfigFile(web_config_file, SystemClock())))
    configure_logs(log_level, log_format)
    listeners = _bind(addresses)
    served = run(
        configuration, settings, os.environ, listeners, web_config=web_config, lifecycle=lifecycle, shard=shard
    )
    _valid(lambda: _run(served))


@main.command(
    cls=_Command, epilog=_examples("chatapp-exporter demo", "chatapp-exporter demo --web.listen-address 127.0.0.1:8080")
)
@_scenario
@_server_options
def demo(scenario: Path | None, addresses: Sequence[str], log_level: str, log_format: Any) -> None:
    """Start the exporter on a simulated API; needs no account.

    Within five minutes, something happens that each dashboard and each alert can show.
    """
    _end_well_on_signals()
    from exporter.logs import configure_logs
    from exporter.simulator.demo import run_demo

    configure_logs(log_level, log_format)
    served = run_demo(_load_scenario(scenario), _bind(addresses), _say)
    _valid(lambda: _run(served))


@main.command(
    cls=_Command,
    epilog=_examples(
        "chatapp-exporter check --config.file exporter.yml",
        "chatapp-exporter check --config.file exporter.yml --shard 2/5",
    ),
)
@_config_file
@_expand
@_shard
def check(config_file: Path | None, expand: bool, shard: "Shard") -> None:
    """Validate the configuration and print what it will mean.

    For each account: how many queries per second its spaces need, how often they are polled, and how old a value can
    get. The API is not queried. Exit status: 0, with warnings too; 2 if the file has errors.
    """
    from exporter.config.effective import effective_settings
    from exporter.polling.plan import plans_by_account, warnings
    from exporter.report import print_plan

    settings = effective_settings(_load(config_file, expand=expand), {}, shard)
    with _printing():
        print_plan(settings)
    for warning in (*warnings(plans_by_account(settings), settings.max_age), *settings.polled_twice):
        click.echo(f"warning: {warning}", err=True)
    if settings.state_file and not (directory := Path(settings.state_file).parent).is_dir():
        click.echo(f"warning: state_file: no directory {directory}, so values will not be kept; create it", err=True)


@main.command(
    cls=_Command,
    epilog=_examples(
        "chatapp-exporter poll --config.file exporter.yml",
        "chatapp-exporter poll --fail-on yellow || echo 'look at the numbers'",
        "chatapp-exporter poll --output json | jq '.[] | select(.error)'",
    ),
)
@_config_file
@_expand
@_choice("--output", "output", ["table", "json"], "table", "For people, or for programs.")
@_choice(
    "--fail-on",
    "fail_on",
    ["down", "red", "restricted", "yellow", "unknown", "never"],
    "red",
    "Exit with 3 if a number is in this state or a worse one.",
)
def poll(config_file: Path | None, expand: bool, output: str, fail_on: str) -> None:
    """Poll every space once and print the numbers, the worst first.

    \b
    A number's state is the worst that applies:
      down        BANNED, DELETED, DISCONNECTED, MIGRATED or OFFLINE
      red         its quality rating is RED
      restricted  FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED
      yellow      its quality rating is YELLOW
      unknown     not known to be GREEN and CONNECTED
      green       GREEN and CONNECTED
    If the configuration has a state_file, a field that the API no longer
    reports keeps its last reported value for this. The file is not changed.

    \b
    After three denied spaces in a row, the account is denied. Its other
    spaces are not polled. They are reported as "not polled".

    \b
    Exit status:
      0    all well
      1    a space failed or was not polled, or the spaces of an account could
           not be listed
      2    the configuration or the command line is wrong; nothing was polled
      3    a number is as bad as --fail-on says, whatever else failed
      130  interrupted
    """
    sys.exit(_poll(_load(config_file, expand=expand), output, fail_on))


@main.command(
    cls=_Command,
    epilog=_examples(
        "chatapp-exporter simulate --write simulated.yml &",
        "until test -e simulated.yml; do sleep 1; done",
        "chatapp-exporter poll --config.file simulated.yml",
    ),
)
@_scenario
@_listen_address("127.0.0.1:10145", "Where it listens: host:port, on loopback.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    help="Write the configuration to this new file instead of printing it. When the file exists, it is complete and the"
    " API can be polled. The file is removed when simulate ends.",
)
def simulate(scenario: Path | None, addresses: Sequence[str], write: Path | None) -> None:
    """Start the simulated API alone and print how to poll it.

    What it prints is a configuration.
    """
    _end_well_on_signals()
    from exporter.logs import configure_logs
    from exporter.simulator.demo import run_simulator

    configure_logs("info", "logfmt")
    served = run_simulator(_load_scenario(scenario), _bind(addresses), _say, write)
    _valid(lambda: _run(served))


@main.command(
    cls=_Command,
    epilog=_examples(
        "chatapp-exporter schema >schema.json",
        "sed -i '1i # yaml-language-server: $schema=schema.json' exporter.yml",
    ),
)
def schema() -> None:
    """Print the configuration's JSON Schema, for editors."""
    import json

    from exporter.sources import Settings

    _say(json.dumps(Settings.model_json_schema(), indent=2))


@main.command(
    cls=_Command,
    epilog=_examples(
        'eval "$(chatapp-exporter completion bash)"  # in ~/.bashrc',
        'eval "$(chatapp-exporter completion zsh)"   # in ~/.zshrc',
        "chatapp-exporter completion fish | source   # in config.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's script that completes commands and options."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete, "click has these three"
    _say(complete(main, {}, "chatapp-exporter", "_CHATAPP_EXPORTER_COMPLETE").source())


def _poll(settings: "Settings", output: str, fail_on: str) -> int:
    """The exit status."""
    from exporter.logs import configure_logs
    from exporter.model import RANKS, State
    from exporter.report import print_json, print_numbers, progress_bar
    from exporter.serve import poll_once

    configure_logs("error", "logfmt")
    with progress_bar() as watch:
        swept = _valid(lambda: _run(poll_once(settings, os.environ, watch)))
    with _printing():
        (print_json if output == "json" else print_numbers)(swept)
    worst = RANKS[State(fail_on)] if fail_on != "never" else -1
    states = (polled.view.record.state_of(number) for polled in swept.spaces for number in polled.phone_numbers)
    if any(RANKS[state] <= worst for state in states):
        return 3
    return 1 if swept.list_errors or any(polled.error for polled in swept.spaces) else 0


def _configuration(config_file: Path | None, *, expand: bool) -> "Configuration":
    from exporter.config.loading import Configuration
    from exporter.sources import Settings

    return Configuration(config_file, os.environ, Settings, expand=expand)


def _load(config_file: Path | None, *, expand: bool) -> "Settings":
    load = _configuration(config_file, expand=expand).load
    return _valid(lambda: _in_time(load), hint=config_file is None)


def _in_time(load: Callable[[], Result]) -> Result:
    """In a thread: a file on a network mount that does not answer neither blocks a start for ever, nor its signals."""
    from exporter.config.problems import read_timeout_error
    from exporter.threads import LOAD_SECONDS, DaemonThreads

    try:
        return DaemonThreads().submit(load).result(LOAD_SECONDS)
    except TimeoutError as error:
        raise read_timeout_error(LOAD_SECONDS) from error


def _load_scenario(path: Path | None) -> "Scenario":
    from exporter.simulator.fleet import load_scenario

    return _valid(lambda: load_scenario(path))


def _valid(make: Callable[[], Result], *, hint: bool = False) -> Result:
    """What `make` gives; if a file has errors, they are printed and the program ends."""
    from exporter.config.problems import ConfigError

    try:
        return make()
    except ConfigError as error:
        found = len(error.problems)
        click.echo(
            f"{error}\n{found} problem{'s' if found > 1 else ''} found, nothing was started; fix that and try again",
            err=True,
        )
        if hint and not any(problem.place for problem in error.problems):
            click.echo(_WITHOUT_A_FILE, err=True)
        sys.exit(2)


def _end_well_on_signals(*, reloads: bool = False) -> None:
    """Before the event loop handles them, and as PID 1, for which SIGTERM would have no effect."""
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if reloads:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # a reload waits until there is something to reload
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(0))


def _bind(addresses: Sequence[str]) -> "list[socket]":
    from exporter.web.server import AddressError, bind

    try:
        return [bind(address) for address in addresses]
    except AddressError as error:
        raise click.BadParameter(str(error), param_hint="'--web.listen-address'") from error
    except OSError as error:
        click.echo(f"error: {error}; choose another address with --web.listen-address", err=True)
        sys.exit(1)


def _say(text: str) -> None:
    with _printing():
        click.echo(text)


@contextmanager
def _printing() -> Iterator[None]:
    """For what writes to standard output: that it could not be written is told here, and not by a traceback at exit."""
    if sys.stdout is None:  # closed by the parent process
        click.echo("error: standard output is closed; redirect the output to a file", err=True)
        sys.exit(1)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name in letters that it has not
    try:
        yield
        click.echo(nl=False)  # flushes
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever reads has seen enough, and the exit status tells the rest
            click.echo(f"error: cannot write the output: {error.strerror}; write it elsewhere", err=True)
            sys.exit(1)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import asyncio

    from exporter.threads import DaemonThreads

    async def with_threads() -> Result:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        return await work

    return asyncio.run(with_threads())
