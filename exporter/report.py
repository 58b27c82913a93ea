"""What the commands print: the plan before polling, and the numbers after a sweep."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from exporter.chatapp.errors import QueryError
from exporter.config.settings import Settings, format_duration
from exporter.metrics.catalogue import SpaceView
from exporter.polling.plan import Plan

Swept = Sequence[tuple[SpaceView, QueryError | None]]
"""Every space after one poll, with the error where it failed."""
Unlisted = Mapping[str, QueryError]
"""The accounts whose spaces could not be listed, and why."""

_STYLES = {"RED": "bold red", "YELLOW": "yellow", "GREEN": "green", "BANNED": "bold red", "CONNECTED": "green"}


def print_plan(settings: Settings) -> None:
    """One row an account: what is asked of its budget, and how old values can get."""
    table = Table("account", "endpoint", "spaces", "queries/s needed", "allowed", "polled every", "configured")
    for account in settings.accounts:
        plan = Plan.of(account)
        table.add_row(
            account.name,
            account.endpoint,
            "own numbers" if account.polls_own_numbers else f"{plan.spaces}{' and more' if account.discover else ''}",
            f"{plan.needed_qps:.3g}",
            f"{plan.qps:g}",
            format_duration(plan.effective_interval),
            format_duration(plan.interval),
        )
    _console().print(table)


def plan_warnings(settings: Settings) -> Iterator[str]:
    """What the operator will not have meant."""
    if not settings.accounts:
        yield "no space falls to this shard; it will poll nothing"
    for account in settings.accounts:
        plan = Plan.of(account)
        effective, configured = format_duration(plan.effective_interval), format_duration(plan.interval)
        if plan.effective_interval > plan.interval:
            yield (
                f"account {account.name}: {plan.spaces} spaces at {plan.qps:g} queries a second are polled every"
                f" {effective}, not every {configured}; raise qps or poll_interval"
            )
        if plan.effective_interval >= settings.max_age:
            yield (
                f"account {account.name}: values are polled every {effective} and leave after max_age"
                f" {format_duration(settings.max_age)}, so series will come and go; raise max_age"
            )


def print_numbers(swept: Swept, unlisted: Unlisted) -> None:
    """A table of all numbers, and a line for everything that failed."""
    table = Table("account", "space", "name", "phone number", "verified name", "rating", "tier", "status")
    for view, _ in swept:
        for number in view.phone_numbers:
            table.add_row(
                view.account,
                view.space.id,
                view.space.name,
                number.phone_number,
                number.verified_name,
                _styled(number.quality_rating),
                number.messaging_limit_tier,
                _styled(number.status),
            )
    _console().print(table)
    for view, error in swept:
        if error:
            print(f"{view.account}/{view.space.id}: {error.reason}: {error}", file=sys.stderr)
    for account, error in unlisted.items():
        print(f"{account}: spaces not listed: {error.reason}: {error}", file=sys.stderr)


def print_json(swept: Swept, unlisted: Unlisted) -> None:
    """The same as JSON: a list of spaces, each with its numbers or its error; without a space, of an account's list."""
    entries = [(view.account, view.space.id, error, view.phone_numbers) for view, error in swept]
    document = [
        {
            "account": account,
            "space": space,
            "error": {"reason": error.reason, "code": error.code, "detail": error.detail} if error else None,
            "phone_numbers": [asdict(number) for number in numbers],
        }
        for account, space, error, numbers in (*entries, *((name, None, why, ()) for name, why in unlisted.items()))
    ]
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _styled(value: str) -> str:
    style = _STYLES.get(value)
    return f"[{style}]{escape(value)}[/]" if style else escape(value)


def _console() -> Console:
    # a pipe gets whole lines, whatever the width that a terminal would have
    return Console() if sys.stdout.isatty() else Console(width=200)
