"""The JSON API, with the same content as the status pages. docs/usage.md describes each field."""

import json
from dataclasses import asdict
from typing import Any

from exporter.metrics.catalogue import AccountView
from exporter.model import WATCHED_FIELDS, AccountState, PhoneNumber, State
from exporter.runtime.view import Snapshot
from exporter.state.store import Failure, SpaceRecord
from exporter.web.overview import Entry, Filter, entries_of, select, utc, worst_per_space


def phone_numbers(snapshot: Snapshot, filters: Filter) -> str:
    """Return the phone numbers that match the filters, as JSON."""
    entries = entries_of(snapshot)
    selection = select((entry for entry in entries if entry.number), filters)
    page = _page(snapshot, filters, entries, selection.total, selection.pages)
    return json.dumps({**page, "phone_numbers": [_phone_number(entry) for entry in selection.entries]})


def spaces(snapshot: Snapshot, filters: Filter) -> str:
    """Return the spaces that match the filters, as JSON."""
    entries = entries_of(snapshot)
    matching = {
        id(entry.space) for entry in entries if filters.matches_account_and_search(entry)
    }  # if any entry matches
    worst = (entry for entry in worst_per_space(entries) if id(entry.space) in matching)
    selection = select(worst, filters.model_copy(update={"q": ""}))
    page = _page(snapshot, filters, entries, selection.total, selection.pages)
    return json.dumps({**page, "spaces": [_space(entry) for entry in selection.entries]})


def _page(snapshot: Snapshot, filters: Filter, entries: list[Entry], total: int, pages: int) -> dict[str, Any]:
    """Return the fields that both responses have. `blind_spaces` and `waiting_spaces` count all spaces that match the
    account and the search, in any state and on any page."""
    counts = select(entries, filters).counts
    return {
        "as_of": _moment(snapshot.at),
        "total": total,
        "page": filters.page,
        "pages": pages,
        "blind_spaces": counts[State.BLIND],
        "waiting_spaces": counts[State.WAITING],
        "accounts": [_account(account) for account in snapshot.accounts],
        "accounts_with_incomplete_spaces": snapshot.accounts_with_incomplete_spaces,
        "shard": str(snapshot.shard),
    }


def _account(view: AccountView) -> dict[str, Any]:
    health = view.health
    return {
        "account": view.account,
        "state": health.state if health else None,
        "since": _moment(health.since) if health and health.state is not AccountState.OK else None,
        "code": health.code if health else "",
        "detail": health.detail if health else "",
        "request_id": health.request_id if health else "",
    }


def watched_field_values(record: SpaceRecord, number: PhoneNumber) -> dict[str, Any]:
    """Return the values of the watched fields. If the API does not report a field, the value is None, and
    `not_reported` has the last reported value."""
    missing = {
        field: {"before": lost.before, "since": _moment(lost.at)}
        for field in WATCHED_FIELDS
        if (lost := record.missing.get((number.phone_number, field)))
    }
    return {**{field: getattr(number, field) or None for field in WATCHED_FIELDS}, "not_reported": missing}


def _phone_number(entry: Entry) -> dict[str, Any]:
    space, number = entry.space, entry.number
    assert number
    return {
        "account": space.account,
        "space": space.space.id,
        "space_name": space.space.name,
        "phone_number": number.phone_number,
        "verified_name": number.verified_name,
        **watched_field_values(space.record, number),
        "state": entry.state,
        "blind": entry.blind,
        "since": _moment(entry.since),
        "last_success": _moment(space.record.last_success),
    }


def _space(entry: Entry) -> dict[str, Any]:
    view, record = entry.space, entry.space.record
    return {
        "account": view.account,
        "space": view.space.id,
        "name": view.space.name,
        "labels": view.space.labels,
        "state": entry.state,
        "blind": entry.blind,
        "up": record.up,
        "last_success": _moment(record.last_success),
        "phone_numbers": len(record.phone_numbers) if view.fresh else None,
        "polls": record.polls,
        "failures": record.failures,
        "last_failure": _failure(record.last_failure) if record.last_failure else None,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {**asdict(failure), "at": _moment(failure.at), "since": _moment(failure.since)}


def _moment(at: float | None) -> str | None:
    return None if at is None else f"{utc(at):%Y-%m-%dT%H:%M:%SZ}"
