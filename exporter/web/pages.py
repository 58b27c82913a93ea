"""The status pages in HTML. They have no scripts, and refresh automatically only with the parameter `refresh`."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from pydantic import Field

from exporter import __version__
from exporter.config.fields import format_duration
from exporter.metrics.catalogue import SpaceView
from exporter.model import PhoneNumber, State
from exporter.runtime.view import Snapshot
from exporter.web.next_steps import ACCOUNT_NEXT_STEPS
from exporter.web.overview import MEANINGS, Filter, deciding_fields, entries_of, select, utc

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = (_TEMPLATES / "style.css").read_text()
_SYMBOLS = dict(zip(State, "✖●◌◆▲?○…✔", strict=True))
"""A symbol for each state, so that colour is not the only difference."""
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"))

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Allows only the style of the pages, by its hash. Scripts, other resources and frames are blocked."""


class PageFilter(Filter):
    """The filters of the status page. `refresh` is in seconds."""

    refresh: int | None = Field(None, ge=5, le=3600)

    def url(self, **changes: Any) -> str:
        """Return a link to the page with these changes, without default values."""
        return _index_url(self.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True))


@dataclass(frozen=True, slots=True)
class _Change:
    at: float
    number: PhoneNumber
    field: str
    before: str
    after: str


class Pages:
    """Renders the templates."""

    def __init__(self) -> None:
        loader = jinja2.FileSystemLoader(_TEMPLATES)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        environment.filters.update(age=_age, ago=_ago, utc=_utc, duration=_duration, sentence=_sentence)
        environment.filters.update(
            space_url=_space_url,
            index_url=_index_url,
            seconds_ago=_seconds_ago,
            seconds_until_next_poll=_seconds_until_next_poll,
        )
        environment.globals.update(version=__version__, State=State, meanings=MEANINGS, symbols=_SYMBOLS, style=_STYLE)
        environment.globals.update(account_next_steps=ACCOUNT_NEXT_STEPS, deciding_fields=deciding_fields)
        self._index = environment.get_template("index.html")
        self._space = environment.get_template("space.html")
        self._error = environment.get_template("error.html")

    def index(self, snapshot: Snapshot, filters: PageFilter) -> str:
        """Render the status page with the entries that match the filters."""
        return self._index.render(
            now=snapshot.at,
            filters=filters,
            link=filters.url,
            fleet=snapshot,
            selection=select(entries_of(snapshot), filters),
        )

    def space(self, snapshot: Snapshot, account: str, space: str) -> str:
        """Render the page of a space. Returns "" if there is no such space."""
        views = [view for view in snapshot.spaces if (view.account, view.space.id) == (account, space)]
        entries = entries_of(replace(snapshot, spaces=views))
        if not entries:
            return ""
        return self._space.render(
            now=snapshot.at,
            view=entries[0].space,
            worst=entries[0],
            account=next(view for view in snapshot.accounts if view.account == account),
            states={entry.number.phone_number: entry.state for entry in entries if entry.number},
            changes=sorted(_changes(entries[0].space), key=lambda change: -change.at),
        )

    def error(self, title: str, problem: str) -> str:
        """Render an error page. Each line of `problem` is a paragraph."""
        return self._error.render(title=title, problem=problem)


def _changes(view: SpaceView) -> Iterator[_Change]:
    record = view.record
    numbers = {number.phone_number: number for number in record.phone_numbers}
    for (phone_number, field), change in record.changes.items():
        number = numbers[phone_number]
        yield _Change(change.at, number, field, change.before, getattr(record.last_reported(number), field))
    for (phone_number, field), lost in record.missing.items():
        yield _Change(lost.at, numbers[phone_number], field, lost.before, "")


def _seconds_ago(view: SpaceView, now: float) -> float:
    """Seconds since the last successful poll. Negative if another process recorded a time in the future."""
    record = view.record
    if record.seen is not None or record.last_success is None:
        return view.seconds_since_success
    return now - record.last_success


def _seconds_until_next_poll(view: SpaceView, now: float) -> float:
    """Seconds until the next regular poll of a space whose last poll succeeded. 0 if it is due or not scheduled."""
    record = view.record
    if record.next_slot is None:
        return 0.0
    # both times are from the last poll, so a later step of the system clock has no effect
    ahead = record.next_slot - (record.last_success or now)
    return max(0.0, ahead - _seconds_ago(view, now))


def _age(seconds: float) -> str:
    """Format a duration in the largest unit that fits."""
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{int(seconds / unit)} {name}"
    return f"{int(seconds)} s"


def _ago(seconds: float) -> str:
    return f"{_age(seconds)} ago" if seconds > -1 else "in the future (the clock is or was wrong)"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _utc(at: float) -> str:
    return utc(at).strftime("%Y-%m-%d %H:%M:%SZ")


def _duration(seconds: float) -> str:
    return format_duration(round(seconds, 1))


def _space_url(view: SpaceView) -> str:
    return f"space?{urlencode({'account': view.account, 'space': view.space.id})}"


def _index_url(query: Mapping[str, Any]) -> str:
    return f"./?{urlencode(query, doseq=True)}" if query else "./"
