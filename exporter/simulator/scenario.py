"""A scenario: which fleet the simulated API shows, and what happens to it when. The shape of the YAML file.

Times count from the simulator's start. An event lasts `for` its duration, or from then on.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from exporter.config.fields import Duration, Id, Strict, Text, parse_duration
from exporter.config.settings import API_LIMIT_QPS, MIN_QPS


def _moment(text: object) -> float:
    return 0.0 if text in ("0", "0s") else parse_duration(text)


Moment = Annotated[float, BeforeValidator(_moment)]


class SimulatedAccount(Strict):
    """An account of the fleet; `qps` and `poll_interval` are how the demo's exporter polls it."""

    name: Id
    access_key_id: Text
    access_key_secret: Text = Field(repr=False)
    spaces: int = Field(gt=0, le=20_000)
    qps: float = Field(10, ge=MIN_QPS, le=API_LIMIT_QPS)
    poll_interval: Duration = 5.0


class Event(Strict):
    """Something that happens to an account, to one of its spaces (1 is the first), or to a number in that space.

    Exactly one of: `set` fields of a number (null: not reported), `move_to` another space of the account with it,
    `remove` a number or all of a space, or `answer` with an error Code; of an account, perhaps to one `action` only.
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
    def _one_effect(self) -> "Event":
        of_number = (self.set is not None) + (self.move_to is not None)
        effects = of_number + self.remove + (self.answer is not None)
        placed = self.number if of_number else not self.number or self.remove
        misplaced = self.action if self.space else self.number or self.remove
        if effects != 1 or not placed or misplaced:
            raise ValueError("one of answer (of an account or space), remove (a space's number or all), set or move_to")
        return self

    def holds(self, elapsed: float) -> bool:
        """Whether it is in force so many seconds after the start."""
        return self.at <= elapsed and (self.lasts is None or elapsed < self.at + self.lasts)


class Scenario(Strict):
    """A fleet and its events. The same seed gives the same fleet."""

    seed: int = 1
    limit_qps: float = Field(10, gt=0, description="queries a second that the simulated API allows to an account")
    latency: Moment = Field(
        0.05, description="an answer takes half to one and a half times as long", validate_default=False
    )
    accounts: Annotated[list[SimulatedAccount], Field(min_length=1)]
    events: list[Event] = Field([], description="what happens to it, in any order")
