"""The schema of a scenario file (YAML): the accounts of the simulated API and the events that change them.

An event without `for` never ends.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from exporter.config.fields import Duration, Id, Strict, Text, parse_duration
from exporter.config.settings import API_LIMIT_QPS, MIN_QPS


def _parse_duration_or_zero(text: object) -> float:
    return 0.0 if text in ("0", "0s") else parse_duration(text)


DurationOrZero = Annotated[float, BeforeValidator(_parse_duration_or_zero)]
Moment = DurationOrZero
"""Time since the start of the simulator, in seconds."""


class SimulatedAccount(Strict):
    """An account of the fleet. `qps` and `poll_interval` are for the configuration of the exporter."""

    name: Id
    access_key_id: Text
    access_key_secret: Text = Field(repr=False)
    spaces: int = Field(ge=1, le=20_000)
    qps: float = Field(10, ge=MIN_QPS, le=API_LIMIT_QPS)
    poll_interval: Duration = 5.0


class Event(Strict):
    """An event of an account, of a space of the account, or of a phone number of the space. The first space is 1.

    Each event has exactly one effect:
    - `set` changes fields of a number (null: not reported)
    - `move_to` moves a number to another space of the account
    - `remove` removes a number or all numbers of a space
    - `answer` sets an error Code for the requests of an account or space. For an account, `action` limits the error to
      one operation.
    """

    at: Moment
    lasts: Duration | None = Field(None, alias="for")
    account: str
    space: int | None = Field(None, ge=1)
    number: int | None = Field(None, ge=1)
    set: dict[str, str | None] | None = None
    move_to: int | None = Field(None, ge=1)
    remove: bool = False
    answer: str | None = None
    action: Literal["QueryChatappPhoneNumbers", "ListInstance"] | None = None

    @model_validator(mode="after")
    def _require_one_effect(self) -> "Event":
        number_effects = (self.set is not None) + (self.move_to is not None)
        effects = number_effects + self.remove + (self.answer is not None)
        number_valid = self.number if number_effects else not self.number or self.remove
        target_valid = not self.action if self.space else not (self.number or self.remove)
        if effects != 1 or not number_valid or not target_valid:
            raise ValueError(
                "one of answer (of an account or space), remove (one or all numbers of a space),"
                " set (of a number) or move_to (of a number)"
            )
        return self

    def is_active(self, elapsed: float) -> bool:
        """Whether the event is active `elapsed` seconds after the start."""
        return self.at <= elapsed and (self.lasts is None or elapsed < self.at + self.lasts)


class Scenario(Strict):
    """A simulated fleet and its events. The same seed creates the same fleet."""

    seed: int = 1
    limit_qps: float = Field(10, gt=0, description="queries per second that the simulated API allows for each account")
    latency: DurationOrZero = Field(
        0.05, description="mean response time; each response takes 0.5 to 1.5 times as long", validate_default=False
    )
    accounts: Annotated[list[SimulatedAccount], Field(min_length=1)]
    events: list[Event] = Field([], description="events of the fleet, in any order")
