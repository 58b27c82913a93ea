"""The command line: commands, flags and exit statuses. Each command imports its modules when it runs.

Exit status: 0 success, 1 failure, 2 error in the configuration or the command line, 3 `poll` found a phone number in
the state of `--fail-on` or a worse one, 130 interrupted.
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


_GETTING_STARTED = """
To poll the account's own phone numbers, set the access key of a RAM user:
  export ALIBABA_CLOUD_ACCESS_KEY_ID=LTAI... ALIBABA_CLOUD_ACCESS_KEY_SECRET=...
To poll customer spaces, use a configuration file:  chatapp-exporter --config.file exporter.yml
To try the exporter without an account:             chatapp-exporter demo"""


def _examples(*lines: str) -> str:
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


_config_file = click.option(
    "--config.file",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration file. If not set, the exporter polls the own numbers of the account whose access key is in"
    " ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET.",
)
_expand = click.option(
    "--config.expand-environment-variables",
    "expand",
    is_flag=True,
    help="Replace ${NAME} with the environment variable NAME in values of the configuration file and space files."
    " Write $${NAME} for a literal ${NAME}.",
)
_shard = click.option(
    "--shard",
    metavar="INDEX/COUNT",
    default="1/1",
    show_default=True,
    callback=_parse_shard,
    help="Shard to run, counted from 1: 2/5 is the second of 5. Each account is polled by one shard.",
)
_scenario = click.option(
    "--scenario",
    type=click.Path(path_type=Path),
    help="YAML file with the simulated accounts and events. [default: built-in scenario]",
)


def _choice(flag: str, name: str, choices: list[str], default: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(flag, name, type=click.Choice(choices), default=default, show_default=True, help=help_text)


def _listen_address(default: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(
        "--web.listen-address",
        "addresses",
        metavar="ADDRESS",
        multiple=True,
        default=[default],
        show_default=True,
        help=f"{help_text} Can be repeated.",
    )


def _server_options(command: Command) -> Command:
    for option in (
        _choice("--log.format", "log_format", ["logfmt", "json"], "logfmt", "Log format."),
        _choice("--log.level", "log_level", ["debug", "info", "warning", "error"], "info", "Minimum log level."),
        _listen_address(":10144", "Address to listen on: host:port, or :port for all interfaces."),
    ):
        command = option(command)
    return command


_COMMON_OPTIONS = ("-h", "--help", "--version")


class _StrictCommand(click.Command):
    """Rejects a repeated option, unless the option can have several values. click would use the last value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, options = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(options).items():
            is_single = isinstance(option, click.Option) and not (option.multiple or option.is_eager)
            if is_single and times > 1 and not ctx.resilient_parsing:
                raise click.UsageError(f"Option '{option.opts[0]}' is given {times} times.", ctx)
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # --help cannot be written to standard output
            _report_output_error(error)
            sys.exit()


class _ServeByDefault(_StrictCommand, click.Group):
    """Runs `serve` if there is no command, like other exporters. Lists the commands in the order of definition."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        completing = ctx.resilient_parsing  # without arguments, complete the commands too
        if (not args and not completing) or (args and args[0].startswith("-") and args[0] not in _COMMON_OPTIONS):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        serve_options = self.commands["serve"].shell_complete(ctx, incomplete)
        commands = super().shell_complete(ctx, incomplete)
        return commands + [item for item in serve_options if item.value not in _COMMON_OPTIONS]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted: the command did not complete", err=True)
            sys.exit(130)


@click.group(
    cls=_ServeByDefault,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "chatapp-exporter demo                              try it without an account",
        "chatapp-exporter check --config.file exporter.yml  validate a configuration",
        "chatapp-exporter --config.file exporter.yml        serve :10144/metrics",
    ),
)
@click.version_option(__version__, prog_name="chatapp-exporter")
def main() -> None:
    """Prometheus exporter for the health of WhatsApp phone numbers on Alibaba Cloud's Chat App Message Service.

    The default command is serve: chatapp-exporter OPTIONS is the same as chatapp-exporter serve OPTIONS. For the
    options of a command, see chatapp-exporter COMMAND --help.
    """
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(name, None)  # otherwise prometheus_client stores its values in files of this directory


@main.command(
    cls=_StrictCommand,
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
    help="Web configuration file: TLS and basic auth, in the format of the Prometheus exporter-toolkit.",
)
@click.option(
    "--web.enable-lifecycle",
    "lifecycle",
    is_flag=True,
    help="Enable reloads with POST /-/reload. SIGHUP works without it.",
)
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
    """Poll the spaces and serve /metrics (default command).

    SIGHUP reloads the configuration. SIGTERM stops the exporter.
    """
    _handle_early_signals(reloads=True)
    gc.disable()  # startup creates many long-lived objects, and the collector would scan them repeatedly
    from exporter.clock import SystemClock
    from exporter.logs import configure_logs
    from exporter.serve import serve as run
    from exporter.web.web_config import WebConfigFile

    configuration = _configuration(config_file, expand=expand)
    settings = _exit_on_config_error(lambda: _with_time_limit(configuration.load), hint=config_file is None)
    web_config = None
    if web_config_file:
        web_config = _exit_on_config_error(
            lambda: _with_time_limit(lambda: WebConfigFile(web_config_file, SystemClock()))
        )
    configure_logs(log_level, log_format)
    listeners = _bind(addresses)
    served = run(
        configuration, settings, os.environ, listeners, web_config=web_config, lifecycle=lifecycle, shard=shard
    )
    _exit_on_config_error(lambda: _run(served))


@main.command(
    cls=_StrictCommand,
    epilog=_examples("chatapp-exporter demo", "chatapp-exporter demo --web.listen-address 127.0.0.1:8080"),
)
@_scenario
@_server_options
def demo(scenario: Path | None, addresses: Sequence[str], log_level: str, log_format: Any) -> None:
    """Start the exporter with a simulated API. No account is needed.

    In the first 5 minutes, simulated events show most failures: a rating drops to RED, a phone number is banned, an
    account is throttled or denied.
    """
    _handle_early_signals()
    from exporter.logs import configure_logs
    from exporter.simulator.demo import run_demo

    configure_logs(log_level, log_format)
    served = run_demo(_load_scenario(scenario), _bind(addresses), _print)
    _exit_on_config_error(lambda: _run(served))


@main.command(
    cls=_StrictCommand,
    epilog=_examples(
        "chatapp-exporter check --config.file exporter.yml",
        "chatapp-exporter check --config.file exporter.yml --shard 2/5",
    ),
)
@_config_file
@_expand
@_shard
def check(config_file: Path | None, expand: bool, shard: "Shard") -> None:
    """Validate the configuration and print the poll schedule.

    The API is not queried. Errors and warnings go to standard error.

    \b
    Columns of the poll schedule, for each account:
      spaces              polled spaces; "+ discovered" if discover is set
      needed qps          queries per second for the configured interval
      qps                 configured budget
      effective interval  time between two polls of a space
      poll_interval       configured interval
      oldest value        maximum age of a value if all polls succeed
      endpoint            address of the API

    \b
    Exit status:
      0  the configuration is valid; there can be warnings
      1  the poll schedule cannot be written
      2  the configuration or the command line has errors
    """
    from exporter.config.effective import effective_settings
    from exporter.polling.plan import plans_by_account, warnings
    from exporter.report import print_poll_schedule

    settings = effective_settings(_load(config_file, expand=expand), {}, shard)
    with _checked_output():
        print_poll_schedule(settings)
    plan_warnings = (warning.text for warning in warnings(plans_by_account(settings), settings.max_age))
    for warning in (*plan_warnings, *settings.shared_space_warnings):
        click.echo(f"warning: {warning}", err=True)
    if settings.state_file and not (directory := Path(settings.state_file).parent).is_dir():
        missing = f"directory {directory} does not exist, so values are not saved; create the directory"
        click.echo(f"warning: state_file: {missing}", err=True)


@main.command(
    cls=_StrictCommand,
    epilog=_examples(
        "chatapp-exporter poll --config.file exporter.yml",
        "chatapp-exporter poll --fail-on yellow || echo 'check the phone numbers'",
        "chatapp-exporter poll --output json | jq '.[] | select(.error)'",
    ),
)
@_config_file
@_expand
@_choice("--output", "output", ["table", "json"], "table", "Output format.")
@_choice(
    "--fail-on",
    "fail_on",
    ["down", "red", "restricted", "yellow", "unknown", "never"],
    "red",
    "Exit with status 3 if a phone number is in this state or a worse one.",
)
def poll(config_file: Path | None, expand: bool, output: str, fail_on: str) -> None:
    """Poll each space once and print the phone numbers.

    \b
    Output:
      --output table  one row for each phone number, sorted by severity, and a
                      summary; errors go to standard error
      --output json   a list with one entry for each space: its phone numbers
                      or its error, and the state of the account

    \b
    State of a phone number (the first that applies):
      down        status BANNED, DELETED, DISCONNECTED, MIGRATED or OFFLINE
      red         quality rating RED
      restricted  status FLAGGED, PAUSED, RATE_LIMITED or RESTRICTED
      yellow      quality rating YELLOW
      unknown     quality rating not GREEN, or status not CONNECTED
      green       quality rating GREEN and status CONNECTED

    If the configuration has a state_file, poll reads this file and never changes it. If the API no longer reports a
    rating, tier or status, its last reported value in this file still counts for the state.

    If three spaces of an account are denied, with no successful or rejected poll between them, its remaining spaces are
    not polled. They count as "not polled".

    \b
    Exit status:
      0    no error, and no phone number in the state of --fail-on or a worse one
      1    a space failed or was not polled, space discovery failed, or the
           output cannot be written
      2    the configuration or the command line has errors; nothing was polled
      3    a phone number is in the state of --fail-on or a worse one, even if
           there are errors too
      130  interrupted
    """
    sys.exit(_poll(_load(config_file, expand=expand), output, fail_on))


@main.command(
    cls=_StrictCommand,
    epilog=_examples(
        "chatapp-exporter simulate --write simulated.yml &",
        "until test -e simulated.yml; do sleep 1; done",
        "chatapp-exporter poll --config.file simulated.yml",
    ),
)
@_scenario
@_listen_address("127.0.0.1:10145", "Loopback address to listen on: host:port.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    help="Write the configuration to this new file instead of standard output. The complete file appears when the"
    " simulated API is ready. It is removed when simulate exits.",
)
def simulate(scenario: Path | None, addresses: Sequence[str], write: Path | None) -> None:
    """Start the simulated API and print a configuration for it."""
    _handle_early_signals()
    from exporter.logs import configure_logs
    from exporter.simulator.demo import run_simulator

    configure_logs("info", "logfmt")
    served = run_simulator(_load_scenario(scenario), _bind(addresses), _print, write)
    _exit_on_config_error(lambda: _run(served))


@main.command(
    cls=_StrictCommand,
    epilog=_examples(
        "chatapp-exporter schema >schema.json",
        "sed -i '1i # yaml-language-server: $schema=schema.json' exporter.yml",
    ),
)
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    import json

    from exporter.sources import Settings

    _print(json.dumps(Settings.model_json_schema(), indent=2))


@main.command(
    cls=_StrictCommand,
    epilog=_examples(
        'eval "$(chatapp-exporter completion bash)"  # in ~/.bashrc',
        'eval "$(chatapp-exporter completion zsh)"   # in ~/.zshrc',
        "chatapp-exporter completion fish | source   # in config.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell script that completes commands and options."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete, "click supports these three shells"
    _print(complete(main, {}, "chatapp-exporter", "_CHATAPP_EXPORTER_COMPLETE").source())


def _poll(settings: "Settings", output: str, fail_on: str) -> int:
    """Poll, print the result and return the exit status."""
    from exporter.logs import configure_logs
    from exporter.model import RANKS, State
    from exporter.report import print_json, print_numbers, progress_bar
    from exporter.serve import poll_once

    configure_logs("error", "logfmt")
    with progress_bar() as watch:
        result = _exit_on_config_error(lambda: _run(poll_once(settings, os.environ, watch)))
    with _checked_output():
        (print_json if output == "json" else print_numbers)(result)
    worst = RANKS[State(fail_on)] if fail_on != "never" else -1
    states = (space.view.record.state_of(number) for space in result.spaces for number in space.phone_numbers)
    if any(RANKS[state] <= worst for state in states):
        return 3
    return 1 if result.discovery_errors or any(space.error for space in result.spaces) else 0


def _configuration(config_file: Path | None, *, expand: bool) -> "Configuration":
    from exporter.config.loading import Configuration
    from exporter.sources import Settings

    return Configuration(config_file, os.environ, Settings, expand=expand)


def _load(config_file: Path | None, *, expand: bool) -> "Settings":
    load = _configuration(config_file, expand=expand).load
    return _exit_on_config_error(lambda: _with_time_limit(load), hint=config_file is None)


def _with_time_limit(load: Callable[[], Result]) -> Result:
    """Load in a thread with a time limit of 60 s. If a network mount does not respond, signals still work."""
    from exporter.config.problems import read_timeout_error
    from exporter.threads import LOAD_SECONDS, DaemonThreads

    try:
        return DaemonThreads().submit(load).result(LOAD_SECONDS)
    except TimeoutError as error:
        raise read_timeout_error(LOAD_SECONDS) from error


def _load_scenario(path: Path | None) -> "Scenario":
    from exporter.simulator.fleet import load_scenario

    return _exit_on_config_error(lambda: load_scenario(path))


def _exit_on_config_error(make: Callable[[], Result], *, hint: bool = False) -> Result:
    """Return the result of `make`. If there are configuration errors, print them and exit with status 2."""
    from exporter.config.problems import ConfigError

    try:
        return make()
    except ConfigError as error:
        number = len(error.problems)
        count, them = (f"{number} problems", "them") if number > 1 else ("1 problem", "it")
        click.echo(f"{error}\n{count} found, nothing was started; fix {them} and run the command again", err=True)
        if hint and not any(problem.place for problem in error.problems):
            click.echo(_GETTING_STARTED, err=True)
        sys.exit(2)


def _handle_early_signals(*, reloads: bool = False) -> None:
    """Handle signals until the event loop handles them. Without a handler, SIGTERM has no effect on PID 1."""
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if reloads:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # blocked until the event loop can reload
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores SIGHUP
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


def _print(text: str) -> None:
    with _checked_output():
        click.echo(text)


@contextmanager
def _checked_output() -> Iterator[None]:
    """Report errors of writing to standard output in one line, instead of a traceback at exit."""
    if sys.stdout is None:  # closed by the parent process
        click.echo("error: standard output is closed; redirect the output to a file", err=True)
        sys.exit(1)
    # for letters that the encoding of the terminal does not have
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
        click.echo(nl=False)  # flushes
    except OSError as error:
        _report_output_error(error)


def _report_output_error(error: OSError) -> None:
    """Report the error and exit with status 1, unless the reader, such as head, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the output that Python writes at exit
    if not isinstance(error, BrokenPipeError):
        click.echo(f"error: cannot write to standard output: {error.strerror}; redirect the output", err=True)
        sys.exit(1)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import asyncio

    from exporter.threads import DaemonThreads

    async def with_threads() -> Result:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        return await work

    return asyncio.run(with_threads())
