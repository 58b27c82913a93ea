"""Output of `check` and `poll`: the poll schedule, the progress bar, and the results as a table or JSON."""

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
from exporter.model import PHONE_NUMBER_STATES, RANKS, WATCHED_FIELDS, AccountHealth, AccountState, PhoneNumber, State
from exporter.polling.access import is_account_failure
from exporter.polling.plan import Plan, Progress
from exporter.source import QueryError, Reason, sanitized
from exporter.state.store import SpaceRecord
from exporter.web.next_steps import ACCOUNT_NEXT_STEPS

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
_POLL_NEXT_STEPS = {
    Reason.THROTTLED: ACCOUNT_NEXT_STEPS[AccountState.THROTTLED],
    Reason.TIMEOUT: "try again, and check the network path to the endpoint (firewall, proxy)",
    Reason.TRANSPORT: "check the host name of the endpoint, DNS, proxy (HTTPS_PROXY) and certificates (SSL_CERT_FILE)",
    Reason.DENIED: ACCOUNT_NEXT_STEPS[AccountState.DENIED],
    Reason.REJECTED: "check the space id and isv_code",
    Reason.MALFORMED: "check that the endpoint is the API; if it is, report a bug",
    Reason.SERVER: "try again later; if the error persists, check that the endpoint is the API",
}
_MAX_LISTED_SPACES = 5
_MAX_WIDTH = 1000
_MAX_VALUE_LENGTH = 80


def print_poll_schedule(settings: Settings) -> None:
    """Print the poll schedule, one row per account."""
    table = _table(
        "account",
        "spaces",
        "needed qps",
        "qps",
        "effective interval",
        "poll_interval",
        "oldest value",
        "endpoint",
    )
    for account in settings.accounts:
        plan = Plan.of(account)
        spaces = f"{plan.spaces}{' + discovered' if account.discover else ''}"
        table.add_row(
            account.name,
            "own numbers" if account.polls_own_numbers else spaces,
            f"{plan.needed_qps:.3g}",
            f"{plan.qps:g}",
            format_duration(plan.effective_interval),
            format_duration(plan.interval),
            format_duration(plan.oldest_value_age),
            account.identity,
        )
    _print(table)


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Show the progress of a sweep on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[counts]}"),
    )
    with bars.Progress(*columns, console=console, transient=True, disable=not console.file.isatty()) as bar:
        task = bar.add_task("discovering spaces", total=None, counts="")

        def show(progress: Progress) -> None:
            failures = _failure_counts(progress.failed, progress.not_polled)
            counts = f"{progress.done} of {progress.total} spaces, {failures}, {_time_left(progress)} left"
            completed = progress.done + progress.not_polled
            bar.update(task, description="polling", total=progress.total, completed=completed, counts=counts)

        yield show


def print_numbers(result: "SweepResult") -> None:
    """Print a table of the phone numbers, sorted by severity, the errors, and a summary."""
    numbers = [(space.view, number) for space in result.spaces for number in space.phone_numbers]
    states = [view.record.state_of(number) for view, number in numbers]
    table = _table(
        "state", "phone number", "verified name", "rating", "status", "tier", "account", "space", "space name"
    )
    for state, (view, number) in sorted(zip(states, numbers, strict=True), key=lambda row: RANKS[row[0]]):
        table.add_row(Text(state, _STYLES[state]), *_cells(view, number))
    if numbers:
        _print(table)
    print(end="", flush=True)  # flush before errors are written to standard error
    for error, next_step in _errors(result):
        print(f"error: {error}\n  {next_step}", file=sys.stderr)
    print(_summary(states, result))


def print_json(result: "SweepResult") -> None:
    """Print a JSON list with one entry for each space. For each failed space discovery, add an entry without a space
    (null)."""
    entries = [_entry(result, space.view.account, space.error, space) for space in result.spaces]
    entries += [_entry(result, account, error) for account, error in result.discovery_errors.items()]
    print(json.dumps(entries, indent=2))  # ASCII only, because a terminal may not support other letters


def _entry(
    result: "SweepResult", account: str, error: QueryError | None, space: "SpaceResult | None" = None
) -> dict[str, Any]:
    from exporter.web.api import watched_field_values  # imported here, because `check` does not need it

    record, numbers = (space.view.record, space.phone_numbers) if space else (SpaceRecord(), ())
    health = result.accounts[account].health
    return {
        "account": account,
        "account_state": health.state if health else None,
        "space": space.view.space.id if space else None,
        "error": {"reason": error.reason, "code": error.code, "detail": error.detail} if error else None,
        "phone_numbers": [
            {**asdict(number), **watched_field_values(record, number), "state": record.state_of(number)}
            for number in numbers
        ],
    }


def _cells(view: SpaceView, number: PhoneNumber) -> Iterator[Text]:
    rating, tier, status = (_field_text(view, number, field) for field in WATCHED_FIELDS)
    space_cells = view.account, view.space.id, view.space.name
    for value in (number.phone_number, number.verified_name, rating, status, tier, *space_cells):
        # untrusted text: no markup and no control characters of a terminal
        yield Text(sanitized(value, (), _MAX_VALUE_LENGTH))


def _field_text(view: SpaceView, number: PhoneNumber, field: str) -> str:
    missing = view.record.missing.get((number.phone_number, field))
    return getattr(number, field) or (f"not reported (was {missing.before})" if missing else "not reported")


def _errors(result: "SweepResult") -> Iterator[tuple[str, str]]:
    """Yield each error with the next step: one per account that is not ok, and one per group of spaces of an account
    with the same error."""
    for view in result.accounts.values():
        if view.health and view.health.state in ACCOUNT_NEXT_STEPS:
            yield _account_error(view, view.health, result), ACCOUNT_NEXT_STEPS[view.health.state]
    same_error = defaultdict(list)
    for space in result.spaces:
        account, error = space.view.account, space.error
        if error and not _is_account_error(result.accounts[account], error):
            same_error[account, error.reason, str(error)].append(space.view.space.id)
    for (account, reason, text), spaces in same_error.items():
        listed = f"{'space' if len(spaces) == 1 else 'spaces'} {', '.join(spaces[:_MAX_LISTED_SPACES])}"
        more = f" and {len(spaces) - _MAX_LISTED_SPACES} more" if len(spaces) > _MAX_LISTED_SPACES else ""
        yield f"{account}: {reason}, {listed}{more} failed: {_cause(reason, text)}", _POLL_NEXT_STEPS[reason]
    for account, error in result.discovery_errors.items():
        if not _is_account_error(result.accounts[account], error):
            text = f"{error.reason}, space discovery failed: {_cause(error.reason, str(error))}"
            yield f"{account}: {text}", _POLL_NEXT_STEPS[error.reason]


def _account_error(account: AccountView, health: AccountHealth, result: "SweepResult") -> str:
    """Return the error of an account, with the number of its spaces that failed or were not polled because of the
    account's state."""
    name = account.account
    errors = [space.error for space in result.spaces if space.view.account == name]
    not_polled = _not_polled(errors)
    # NotPolledError is a DeniedError, so the sum also counts the spaces that were not polled
    failed = sum(_is_account_error(account, error) for error in errors) - not_polled
    details = [f"{failed} of {len(errors)} spaces failed"] if errors else []
    details += [f"{not_polled} not polled"] if not_polled else []
    details += ["space discovery failed"] if _is_account_error(account, result.discovery_errors.get(name)) else []
    cause = f"{health.code}: {health.detail}" if health.code else str(result.discovery_errors.get(name) or "")
    request = f" (request {health.request_id})" if health.request_id else ""
    text = f": {cause.rstrip(':. ')}{request}" if cause else ""
    return f"{', '.join((f'{name}: {health.state}', *details))}{text}"


def _is_account_error(account: AccountView, error: QueryError | None) -> bool:
    """Whether the account's state explains the failure."""
    return error is not None and account.health is not None and is_account_failure(error, account.health.state)


def _cause(reason: Reason, text: str) -> str:
    """Return the code and detail of an error. A code that repeats the reason is removed."""
    return text.removeprefix(f"{reason}: ").rstrip(".")


def _summary(states: Sequence[State], result: "SweepResult") -> str:
    count = Counter(states)
    by_state = ", ".join(f"{count[state]} {state}" for state in PHONE_NUMBER_STATES)
    errors = [space.error for space in result.spaces if space.error]
    failures = _failure_counts(len(errors) - _not_polled(errors), _not_polled(errors))
    discovery = (
        f"; accounts with failed space discovery: {len(result.discovery_errors)}" if result.discovery_errors else ""
    )
    return f"phone numbers: {len(states)} ({by_state}); spaces: {len(result.spaces)} ({failures}){discovery}"


def _not_polled(errors: Iterable[QueryError | None]) -> int:
    from exporter.runtime.sweep import NotPolledError  # imported here, because `check` does not poll

    return sum(isinstance(error, NotPolledError) for error in errors)


def _failure_counts(failed: int, not_polled: int) -> str:
    return f"{failed} failed{f', {not_polled} not polled' if not_polled else ''}"


def _time_left(progress: Progress) -> str:
    return format_duration(math.ceil(progress.seconds_left))


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False)


def _print(table: Table) -> None:
    # a fixed width, so that rich does not truncate values on a narrow terminal; the terminal wraps long lines
    console = Console(width=_MAX_WIDTH, height=1)  # rich ignores the width on some terminals if the height is not set
    with console.capture() as captured:  # rich itself exits if the pipe is closed
        console.print(table)
    print(captured.get(), end="")
