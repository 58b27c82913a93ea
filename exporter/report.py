"""What the commands print: the plan before polling, how far a sweep is, and the numbers after it."""

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.config.fields import format_duration
from exporter.config.settings import Settings
from exporter.metrics.catalogue import SpaceView
from exporter.model import PHONE_NUMBER_STATES, RANKS, PhoneNumber, State
from exporter.polling.plan import Plan, Progress
from exporter.source import QueryError, Reason, quoted

Swept = Sequence[tuple[SpaceView, QueryError | None]]
"""Every space after one poll, with the error where it failed."""
Unlisted = Mapping[str, QueryError]
"""The accounts whose spaces could not be listed, and why."""

_STYLES = {
    State.DOWN: "bold red",
    State.RED: "red",
    State.RESTRICTED: "bold yellow",
    State.YELLOW: "yellow",
    State.UNKNOWN: "cyan",
    State.GREEN: "green",
}
_NEXT_STEPS = {
    Reason.THROTTLED: "lower qps, or poll while less uses the account",
    Reason.TIMEOUT: "try again, and check the way to the endpoint (firewall, proxy)",
    Reason.TRANSPORT: "check the endpoint's name, DNS, proxy (HTTPS_PROXY) and certificates (SSL_CERT_FILE)",
    Reason.DENIED: "check the access key, its RAM policy, the subscription and this machine's clock",
    Reason.REJECTED: "check the space's id and isv_code",
    Reason.MALFORMED: "check that the endpoint is the API's; if it is, please report this",
    Reason.SERVER: "try again later; if it stays, check that the endpoint is the API's",
}
_MOST_SPACES_IN_A_LINE = 5
_WIDEST = 1000
_LONGEST_VALUE = 80


def print_plan(settings: Settings) -> None:
    """One row per account: what its budget must do, and how old values can get."""
    table = _table(
        "account",
        "spaces",
        "queries/s needed",
        "allowed",
        "polled every",
        "configured",
        "oldest value",
        "values from",
    )
    for account in settings.accounts:
        plan = Plan.of(account)
        table.add_row(
            account.name,
            "own numbers" if account.polls_own_numbers else f"{plan.spaces}{' and more' if account.discover else ''}",
            f"{plan.needed_qps:.3g}",
            f"{plan.qps:g}",
            format_duration(plan.effective_interval),
            format_duration(plan.interval),
            format_duration(plan.oldest_age),
            account.identity,
        )
    _print(table)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Shows on standard error how far a sweep is while the context lasts, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[counts]}"),
    )
    with bars.Progress(*columns, console=console, transient=True, disable=not console.file.isatty()) as bar:
        task = bar.add_task("listing spaces", total=None, counts="")

        def show(progress: Progress) -> None:
            counts = f"{progress.done} of {progress.total} spaces, {progress.failed} failed, {_left(progress)} left"
            bar.update(task, description="polling", total=progress.total, completed=progress.done, counts=counts)

        yield show


def print_numbers(swept: Swept, unlisted: Unlisted) -> None:
    """A table of all numbers, the worst first, a line for everything that failed, and one that sums up."""
    numbers = [(view, number) for view, _ in swept for number in view.phone_numbers]
    numbers.sort(key=lambda shown: RANKS[shown[1].state])
    table = _table("state", "phone number", "verified name", "rating", "status", "tier", "account", "space", "name")
    for view, number in numbers:
        table.add_row(*_cells(view, number))
    if numbers:
        _print(table)
    print(end="", flush=True)  # before what stands on the other stream
    for line in _failures(swept, unlisted):
        print(f"error: {line}", file=sys.stderr)
    print(_summary([number.state for _, number in numbers], swept, unlisted))


def print_json(swept: Swept, unlisted: Unlisted) -> None:
    """The same as JSON: a list of spaces, each with its numbers or its error; without a space, of an account's list."""
    entries = [(view.account, view.space.id, error, view.phone_numbers) for view, error in swept]
    document = [
        {
            "account": account,
            "space": space,
            "error": {"reason": error.reason, "code": error.code, "detail": error.detail} if error else None,
            "phone_numbers": [{**asdict(number), "state": number.state} for number in numbers],
        }
        for account, space, error, numbers in (*entries, *((name, None, why, ()) for name, why in unlisted.items()))
    ]
    print(json.dumps(document, indent=2))  # of any name in plain letters, whatever the terminal can show


def _cells(view: SpaceView, number: PhoneNumber) -> Iterator[Text]:
    yield Text(number.state, _STYLES[number.state])
    of_number = number.phone_number, number.verified_name, number.quality_rating, number.status
    for value in (*of_number, number.messaging_limit_tier, view.account, view.space.id, view.space.name):
        # others wrote it: no markup, and nothing that would do something to a terminal
        yield Text(quoted(value, (), _LONGEST_VALUE))


def _failures(swept: Swept, unlisted: Unlisted) -> Iterator[str]:
    """What failed, why, and what to do: spaces of an account that failed alike in one line."""
    alike = defaultdict(list)
    for view, error in swept:
        if error:
            alike[view.account, error.reason, str(error)].append(view.space.id)
    for (account, reason, text), spaces in alike.items():
        shown = ", ".join(spaces[:_MOST_SPACES_IN_A_LINE])
        more = len(spaces) - _MOST_SPACES_IN_A_LINE
        yield f"{account}/{shown}{f' and {more} more' if more > 0 else ''}: {_why(reason, text)}"
    for account, error in unlisted.items():
        yield f"{account}: spaces not listed: {_why(error.reason, str(error))}"


def _why(reason: Reason, text: str) -> str:
    return f"{reason}: {text.removeprefix(f'{reason}: ').rstrip('.')}; {_NEXT_STEPS[reason]}"


def _summary(states: Sequence[State], swept: Swept, unlisted: Unlisted) -> str:
    count = Counter(states)
    found = ", ".join(f"{count[state]} {state}" for state in PHONE_NUMBER_STATES)
    failed = sum(error is not None for _, error in swept)
    lists = f"; accounts whose spaces are not listed: {len(unlisted)}" if unlisted else ""
    return f"numbers: {len(states)} ({found}); spaces: {len(swept)} ({failed} failed){lists}"


def _left(progress: Progress) -> str:
    return format_duration(math.ceil(progress.seconds_left))


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _print(table: Table) -> None:
    # whatever the width of a terminal: a number that is cut is no use, and a line that goes on below can still be read
    console = Console(width=_WIDEST, height=1)  # the width counts on every terminal only where both are given
    with console.capture() as captured:  # for it would end the program where a pipe is closed
        console.print(table)
    print(captured.get(), end="")
