"""What polling a configuration means, said beforehand: whether it fits, how old values get, how large a scrape is.

The size is measured on the spaces that are known, and estimated for the others after them; where none is known, as if
each had three numbers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from exporter.config.settings import API_LIMIT_QPS, Account, Settings, Space, format_duration
from exporter.config.shard import WHOLE, Shard
from exporter.metrics.catalogue import SpaceView
from exporter.metrics.page import Page, Size, size_of
from exporter.model import MESSAGING_LIMITS, Callback, PhoneNumber
from exporter.polling.plan import Plan
from exporter.state.store import Key, SpaceState

_TYPICAL = tuple(
    PhoneNumber(
        f"1555010000{position}",
        "A verified name",
        "GREEN",
        "TIER_10K",
        "CONNECTED",
        "APPROVAL",
        code_verification_status="VERIFIED",
        is_official="N",
        inbound_callback=Callback.URL,
        status_callback=Callback.URL,
    )
    for position in range(3)
)
_HEADROOM = 1.1
"""How much more than the bare quotient is recommended: answers take time, and numbers of spaces grow."""


@dataclass(frozen=True, slots=True)
class AccountPlan:
    """One account's plan. Once every space has been polled a scrape has so many `series` of it, and `bytes` in text;
    `measured` on all of its spaces, or estimated."""

    account: Account
    plan: Plan
    series: int
    bytes: int
    measured: bool

    @classmethod
    def of(cls, account: Account, known: Size) -> Self:
        """The plan, by what is known of the account's spaces."""
        plan, sample = Plan.of(account), known if known.spaces else _typical(account)
        share = plan.spaces / sample.spaces
        return cls(
            account, plan, round(sample.series * share), round(sample.bytes * share), 0 < known.spaces == plan.spaces
        )

    @property
    def facts(self) -> dict[str, str | float]:
        """What the log tells of it; times in seconds."""
        plan = self.plan
        return {
            "account": self.account.name,
            "spaces": plan.spaces,
            "qps": plan.qps,
            "needed_qps": round(plan.needed_qps, 3),
            "interval": plan.interval,
            "effective_interval": round(plan.effective_interval, 1),
            "oldest_age": round(plan.oldest_age, 1),
            "series": self.series,
            "bytes": self.bytes,
        }


def plans(settings: Settings, known: Mapping[Key, SpaceState]) -> list[AccountPlan]:
    """Every account's plan, by what is known of their spaces."""
    spaces = settings.spaces
    page = Page(lambda key, state, fresh: SpaceView(key[0], spaces[key], state, fresh, settings.limits), list, math.inf)
    for key in spaces.keys() & known.keys():
        page.update(key, known[key])
    return [AccountPlan.of(account, page.size(account.name)) for account in settings.accounts]


def warnings(planned: Sequence[AccountPlan], max_age: float, shard: Shard = WHOLE) -> Iterator[str]:
    """What the operator will not have meant, and which setting would fit."""
    if not planned:
        yield "no space falls to this shard; it will poll nothing"
    for one in planned:
        name, plan = one.account.name, one.plan
        effective = format_duration(plan.effective_interval)
        if plan.effective_interval > plan.interval:
            yield (
                f"account {name}: {plan.spaces} spaces at {plan.qps:g} queries a second are polled every {effective},"
                f" not every {format_duration(plan.interval)}; {_what_fits(plan, shard)}"
            )
        if plan.oldest_age >= max_age:
            longer = format_duration(_rounded_up(3 * plan.oldest_age))
            yield (
                f"account {name}: values are polled every {effective} and leave after max_age"
                f" {format_duration(max_age)}, so series will come and go; max_age: {longer} would fit"
            )


def _what_fits(plan: Plan, shard: Shard) -> str:
    longer = format_duration(_rounded_up(_HEADROOM * plan.spaces / plan.qps))
    qps = math.ceil(_HEADROOM * plan.needed_qps)
    # of a shard, what the account would need is not known here
    more = f"qps: {qps} or " if qps <= API_LIMIT_QPS and shard == WHOLE else ""
    return f"{more}poll_interval: {longer} would fit"


def _rounded_up(seconds: float) -> float:
    """To whole minutes, of what is longer than ten; else to ten seconds."""
    unit = 60 if seconds > 600 else 10
    return math.ceil(seconds / unit) * unit


def _typical(account: Account) -> Size:
    space = next(iter(account.polled_spaces), Space(id="cams-0000000000"))
    return size_of(SpaceView(account.name, space, SpaceState(True, 1.8e9, _TYPICAL, polls=1), True, MESSAGING_LIMITS))
