"""What the commands print: the plan before polling, how far a sweep is, and the numbers after it."""

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from exporter.config.fields import format_duration
from exporter.config.settings import Settings
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.model import PHONE_NUMBER_STATES, RANKS, WATCHED_FIELDS, PhoneNumber, State
from exporter.polling.access import explains
from exporter.polling.plan import Plan, Progress
from exporter.source import QueryError, Reason, sanitized
from exporter.state.store import SpaceRecord
from exporter.web.next_steps import WHAT_TO_CHECK

if TYPE_CHECKING:
    from exporter.runtime.sweep import SpaceResult, SweepResult

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
            missed = _missed(progress.failed, progress.not_polled)
            counts = f"{progress.done} of {progress.total} spaces, {missed}, {_left(progress)} left"
            ended = progress.done + progress.not_polled
            bar.update(task, description="polling", total=progress.total, completed=ended, counts=counts)

        yield show


def print_numbers(swept: "SweepResult") -> None:
    """A table of all numbers, the worst first, a line for everything that failed, and one that sums up."""
    numbers = [(polled.view, number) for polled in swept.spaces for number in polled.phone_numbers]
    states = [view.record.state_of(number) for view, number in numbers]
    table = _table("state", "phone number", "verified name", "rating", "status", "tier", "account", "space", "name")
    for state, (view, number) in sorted(zip(states, numbers, strict=True), key=lambda shown: RANKS[shown[0]]):
        table.add_row(Text(state, _STYLES[state]), *_cells(view, number))
    if numbers:
        _print(table)
    print(end="", flush=True)  # before what stands on the other stream
    for line in _failures(swept):
        print(f"error: {line}", file=sys.stderr)
    print(_summary(states, swept))


def print_json(swept: "SweepResult") -> None:
    """The same as JSON: a list of spaces, each with its numbers or its error; without a space, of an account's list."""
    entries = [_entry(swept, polled.view.account, polled.error, polled) for polled in swept.spaces]
    entries += [_entry(swept, account, error) for account, error in swept.list_errors.items()]
    print(json.dumps(entries, indent=2))  # of any name in plain letters, whatever the terminal can show


def _entry(
    swept: "SweepResult", account: str, error: QueryError | None, polled: "SpaceResult | None" = None
) -> dict[str, Any]:
    from exporter.web.api import reported  # not for `check`, which needs no HTTP API

    known, numbers = (polled.view.record, polled.phone_numbers) if polled else (SpaceRecord(), ())
    health = swept.accounts[account].health
    return {
        "account": account,
        "account_state": health.state if health else None,
        "space": polled.view.space.id if polled else None,
        "error": {"reason": error.reason, "code": error.code, "detail": error.detail} if error else None,
        "phone_numbers": [
            {**asdict(number), **reported(known, number), "state": known.state_of(number)} for number in numbers
        ],
    }


def _cells(view: SpaceView, number: PhoneNumber) -> Iterator[Text]:
    rating, tier, status = (_value(view, number, field) for field in WATCHED_FIELDS)
    of_space = view.account, view.space.id, view.space.name
    for value in (number.phone_number, number.verified_name, rating, status, tier, *of_space):
        # others wrote it: no markup, and nothing that would do something to a terminal
        yield Text(sanitized(value, (), _LONGEST_VALUE))


def _value(view: SpaceView, number: PhoneNumber, field: str) -> str:
    lost = view.record.missing.get((number.phone_number, field))
    return getattr(number, field) or (f"not reported (was {lost.before})" if lost else "not reported")


def _failures(swept: "SweepResult") -> Iterator[str]:
    """What failed, why, and what to do: an account that is not ok in one line, and spaces of an account that failed
    alike for another reason in one line."""
    yield from (line for account in swept.accounts.values() if (line := _account_failure(account, swept)))
    alike = defaultdict(list)
    for polled in swept.spaces:
        account, error = polled.view.account, polled.error
        if error and not _is_of_account(swept.accounts[account], error):
            alike[account, error.reason, str(error)].append(polled.view.space.id)
    for (account, reason, text), spaces in alike.items():
        shown = ", ".join(spaces[:_MOST_SPACES_IN_A_LINE])
        more = len(spaces) - _MOST_SPACES_IN_A_LINE
        yield f"{account}/{shown}{f' and {more} more' if more > 0 else ''}: {_why(reason, text)}; {_NEXT_STEPS[reason]}"
    for account, error in swept.list_errors.items():
        if not _is_of_account(swept.accounts[account], error):
            yield f"{account}: spaces not listed: {_why(error.reason, str(error))}; {_NEXT_STEPS[error.reason]}"


def _account_failure(account: AccountView, swept: "SweepResult") -> str:
    """The line of an account that is not ok, with how many of its spaces failed or were not polled for that; "" for
    others."""
    health, name = account.health, account.account
    if not health or health.state not in WHAT_TO_CHECK:
        return ""
    errors = [polled.error for polled in swept.spaces if polled.view.account == name]
    not_polled = _not_polled(errors)
    failed = sum(_is_of_account(account, error) for error in errors) - not_polled
    lost = [f"{failed} of {len(errors)} spaces failed"] if errors else []
    lost += [f"{not_polled} not polled"] if not_polled else []
    lost += ["spaces not listed"] if _is_of_account(account, swept.list_errors.get(name)) else []
    why = f"{health.code}: {health.detail}" if health.code else str(swept.list_errors.get(name) or "")
    request = f" (request {health.request_id})" if health.request_id else ""
    text = f": {why.rstrip(':. ')}{request}" if why else ""
    return f"{name}: {health.state} ({', '.join(lost)}){text}; {WHAT_TO_CHECK[health.state]}"


def _is_of_account(account: AccountView, error: QueryError | None) -> bool:
    """Whether the account's state explains the failure."""
    return error is not None and account.health is not None and explains(error, account.health.state)


def _why(reason: Reason, text: str) -> str:
    return f"{reason}: {text.removeprefix(f'{reason}: ').rstrip('.')}"


def _summary(states: Sequence[State], swept: "SweepResult") -> str:
    count = Counter(states)
    found = ", ".join(f"{count[state]} {state}" for state in PHONE_NUMBER_STATES)
    errors = [polled.error for polled in swept.spaces if polled.error]
    missed = _missed(len(errors) - _not_polled(errors), _not_polled(errors))
    lists = f"; accounts whose spaces are not listed: {len(swept.list_errors)}" if swept.list_errors else ""
    return f"numbers: {len(states)} ({found}); spaces: {len(swept.spaces)} ({missed}){lists}"


def _not_polled(errors: Iterable[QueryError | None]) -> int:
    from exporter.runtime.sweep import NotPolledError  # not for `check`, which polls nothing

    return sum(isinstance(error, NotPolledError) for error in errors)


def _missed(failed: int, not_polled: int) -> str:
    return f"{failed} failed{f', {not_polled} not polled' if not_polled else ''}"


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
