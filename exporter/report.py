"""What the commands print: the plan before polling, and the numbers after a sweep."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from exporter.chatapp.errors import QueryError
from exporter.config.settings import format_duration
from exporter.metrics.catalogue import SpaceView
from exporter.planning import AccountPlan

Swept = Sequence[tuple[SpaceView, QueryError | None]]
"""Every space after one poll, with the error where it failed."""
Unlisted = Mapping[str, QueryError]
"""The accounts whose spaces could not be listed, and why."""

_STYLES = {"RED": "bold red", "YELLOW": "yellow", "GREEN": "green", "BANNED": "bold red", "CONNECTED": "green"}


def print_plan(plans: Sequence[AccountPlan]) -> None:
    """One row an account: what is asked of its budget, how old values can get, and how large a scrape will be."""
    table = Table(
        "account",
        "endpoint",
        "spaces",
        "queries/s needed",
        "allowed",
        "polled every",
        "configured",
        "oldest value",
        "series",
        "scrape",
    )
    for one in plans:
        account, plan, about = one.account, one.plan, "" if one.measured else "~"
        table.add_row(
            account.name,
            account.endpoint,
            "own numbers" if account.polls_own_numbers else f"{plan.spaces}{' and more' if account.discover else ''}",
            f"{plan.needed_qps:.3g}",
            f"{plan.qps:g}",
            format_duration(plan.effective_interval),
            format_duration(plan.interval),
            format_duration(plan.oldest_age),
            f"{about}{one.series}",
            f"{about}{decimal(one.bytes)}",
        )
    _console().print(table)
    if not all(one.measured for one in plans):
        print("~ estimated: the state file, where there is one, does not know all spaces yet")


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
