"""The same as the pages, as JSON for programs: its shapes, and the OpenAPI document that is made from them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from exporter import __version__
from exporter.source import Reason
from exporter.web.overview import Entry, Filter, Snapshot, State, entries_of, select, utc, worst_of_spaces

Moment = Annotated[datetime, BeforeValidator(utc)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class PhoneNumberNow(_Shape):
    """A phone number as of the last successful poll of its space."""

    account: str
    space: str
    space_name: str
    phone_number: str
    verified_name: str
    quality_rating: str
    messaging_limit_tier: str
    status: str
    state: State = Field(description="the worst that is true of it, in one word")
    blind: bool = Field(description="its space cannot be seen: all this may have changed")
    since: Moment | None = Field(description="when what makes it so was seen to change last; null: never seen to")
    last_seen: Moment | None


class FailureNow(_Shape):
    """The last poll that failed; `since` then all before it had."""

    at: Moment
    since: Moment
    in_a_row: int
    reason: Reason
    code: str
    detail: str
    request_id: str


class SpaceNow(_Shape):
    """A space, and how its polls go."""

    account: str
    space: str
    name: str
    labels: Mapping[str, str]
    state: State = Field(description="the worst of its numbers, or what it is itself")
    blind: bool
    up: bool = Field(description="whether the last poll succeeded")
    last_success: Moment | None
    phone_numbers: int | None = Field(description="how many are listed; null where nothing fresh is known")
    polls: int = Field(description="since the start of the process")
    failures: Mapping[Reason, int]
    last_failure: FailureNow | None


class _Page(_Shape):
    as_of: Moment
    total: int = Field(description="how many there are as asked for, on all pages")
    page: int
    pages: int
    blind_spaces: int = Field(description="of those with the words asked for; their numbers may be missing or old")
    waiting_spaces: int = Field(description="not polled yet; their numbers are missing")
    refused_accounts: list[str] = Field(description="of which nothing can be seen")
    unlisted_accounts: list[str] = Field(description="which may have spaces that nobody knows of")
    shard: str = Field(
        description="2/5: the second of five processes that share the spaces, of which others are elsewhere"
    )


class PhoneNumbers(_Page):
    """Phone numbers, the worst first."""

    phone_numbers: list[PhoneNumberNow]


class Spaces(_Page):
    """Spaces, the worst first."""

    spaces: list[SpaceNow]


class Refusal(_Shape):
    """A request that was not understood."""

    error: str


def phone_numbers(snapshot: Snapshot, asked: Filter) -> PhoneNumbers:
    """The phone numbers that are asked for."""
    entries = entries_of(snapshot)
    listed = select((entry for entry in entries if entry.number), asked)
    return PhoneNumbers(
        **_page(snapshot, asked, entries, listed.total, listed.pages),
        phone_numbers=[_phone_number(entry) for entry in listed.entries],
    )


def spaces(snapshot: Snapshot, asked: Filter) -> Spaces:
    """The spaces that are asked for."""
    entries = entries_of(snapshot)
    named = {id(entry.space) for entry in entries if asked.has_words_of(entry)}  # by any of its numbers
    worst = (entry for entry in worst_of_spaces(entries) if id(entry.space) in named)
    listed = select(worst, asked.model_copy(update={"q": ""}))
    return Spaces(
        **_page(snapshot, asked, entries, listed.total, listed.pages),
        spaces=[_space(entry) for entry in listed.entries],
    )


def _page(snapshot: Snapshot, asked: Filter, entries: list[Entry], total: int, pages: int) -> dict[str, Any]:
    counts = select(entries, asked).counts
    return {
        "as_of": snapshot.at,
        "total": total,
        "page": asked.page,
        "pages": pages,
        "blind_spaces": counts[State.BLIND],
        "waiting_spaces": counts[State.WAITING],
        "refused_accounts": snapshot.refused,
        "unlisted_accounts": snapshot.unlisted,
        "shard": str(snapshot.shard),
    }


def _phone_number(entry: Entry) -> PhoneNumberNow:
    space, number = entry.space, entry.number
    assert number
    return PhoneNumberNow(
        account=space.account,
        space=space.space.id,
        space_name=space.space.name,
        phone_number=number.phone_number,
        verified_name=number.verified_name,
        quality_rating=number.quality_rating,
        messaging_limit_tier=number.messaging_limit_tier,
        status=number.status,
        state=entry.state,
        blind=entry.blind,
        since=entry.since,
        last_seen=space.state.last_success,
    )


def _space(entry: Entry) -> SpaceNow:
    view, state = entry.space, entry.space.state
    return SpaceNow(
        account=view.account,
        space=view.space.id,
        name=view.space.name,
        labels=view.space.labels,
        state=entry.state,
        blind=entry.blind,
        up=state.up,
        last_success=state.last_success,
        phone_numbers=len(state.phone_numbers) if view.fresh else None,
        polls=state.polls,
        failures=state.failures,
        last_failure=state.last_failure,
    )


def openapi() -> dict[str, Any]:
    """The description of both paths."""
    shapes: list[Any] = [(Filter, "validation"), *((one, "serialization") for one in (PhoneNumbers, Spaces, Refusal))]
    schemas = models_json_schema(shapes, ref_template="#/components/schemas/{model}")[1]["$defs"]
    asked = schemas.pop("Filter")["properties"]
    parameters = [
        {"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema}
        for name, schema in asked.items()
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatapp-exporter", "version": __version__},
        "servers": [{"url": "../.."}],  # where this document was found, whatever a proxy puts before it
        "paths": {
            f"/api/v1/{path}": {
                "get": {"summary": shape.__doc__, "parameters": parameters, "responses": _answers(shape)}
            }
            for path, shape in (("phone-numbers", PhoneNumbers), ("spaces", Spaces))
        },
        "components": {"schemas": schemas},
    }


def _answers(shape: type[BaseModel]) -> dict[str, Any]:
    return {
        status: {"description": text, "content": {"application/json": {"schema": _reference(answer)}}}
        for status, text, answer in (("200", "what is asked for", shape), ("400", "what is wrong", Refusal))
    }


def _reference(shape: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
