"""How an account's spaces fit its budget, as arithmetic: intervals, ages, warnings, and the progress of a sweep."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from exporter.config.fields import format_duration
from exporter.config.settings import API_LIMIT_QPS, Account, Settings
from exporter.polling.budget import ASSUMED_LATENCY_SECONDS, reached_qps
from exporter.source import REQUEST_TIMEOUT_SECONDS

_HEADROOM = 1.1
"""How much more than the minimum is recommended, because the number of spaces grows."""
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Plan:
    """How an account's spaces fit its budget: `interval` and `latency` (of a request, on average) in seconds."""

    spaces: int
    interval: float
    qps: float
    latency: float = ASSUMED_LATENCY_SECONDS

    @classmethod
    def of(cls, account: Account) -> Self:
        """The plan of an account."""
        return cls(len(account.polled_spaces), account.poll_interval, account.qps)

    @property
    def needed_qps(self) -> float:
        """Queries per second that the configured interval needs."""
        return self.spaces / self.interval

    @property
    def reached_qps(self) -> float:
        """Queries per second that the budget reaches at this latency."""
        return reached_qps(self.qps, self.latency)

    @property
    def sweep(self) -> float:
        """Seconds that it takes to poll every space once."""
        return self.spaces / self.reached_qps

    @property
    def effective_interval(self) -> float:
        """Seconds between two polls of one space: the configured interval, or the time of a sweep (rounded up to whole
        seconds) if that is longer."""
        return max(self.interval, float(math.ceil(self.sweep - _ROUNDING)))

    @property
    def oldest_age(self) -> float:
        """Seconds: how old a value can get while polls succeed, with the slowest poll."""
        return self.effective_interval + REQUEST_TIMEOUT_SECONDS

    def slot(self, index: int) -> float:
        """A space's first regular time, in seconds after the start: the spaces are spread evenly over the interval
        that follows the first sweep. If slots started earlier, some spaces would be polled twice before others have
        a value."""
        return self.spaces / self.qps + self.interval * (index + 1) / self.spaces

    @property
    def facts(self) -> dict[str, float]:
        """The plan as fields of a log line; times in seconds."""
        return {
            "spaces": self.spaces,
            "qps": self.qps,
            "reached_qps": round(self.reached_qps, 3),
            "needed_qps": round(self.needed_qps, 3),
            "interval": self.interval,
            "effective_interval": round(self.effective_interval, 1),
            "oldest_age": round(self.oldest_age, 1),
        }


def plans_of(settings: Settings) -> dict[str, Plan]:
    """The plan of every account, by name."""
    return {account.name: Plan.of(account) for account in settings.accounts}


def warnings(plans: Mapping[str, Plan], max_age: float) -> Iterator[str]:
    """Settings that are probably mistakes, and which value would fit."""
    if not plans:
        yield "no account is assigned to this shard; it polls nothing"
    for name, plan in plans.items():
        effective = format_duration(plan.effective_interval)
        if plan.effective_interval > plan.interval:
            yield (
                f"account {name}: {plan.spaces} spaces at {plan.qps:g} queries per second and"
                f" {format_duration(plan.latency)} latency are polled every {effective}, not every"
                f" {format_duration(plan.interval)}; {_what_fits(plan)}"
            )
        if plan.oldest_age >= max_age:
            longer = format_duration(_rounded_up(3 * plan.oldest_age))
            yield (
                f"account {name}: values are polled every {effective} and removed after max_age"
                f" {format_duration(max_age)}, so series will come and go; max_age: {longer} would fit"
            )


def _what_fits(plan: Plan) -> str:
    longer = format_duration(_rounded_up(_HEADROOM * plan.sweep))
    qps = math.ceil(_HEADROOM * plan.needed_qps * (1 + plan.latency))
    return f"{f'qps: {qps} or ' if qps <= API_LIMIT_QPS else ''}poll_interval: {longer} would fit"


def _rounded_up(seconds: float) -> float:
    """To whole minutes above ten minutes, else to ten seconds."""
    unit = 60 if seconds > 600 else 10
    return math.ceil(seconds / unit) * unit


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a sweep: the spaces that are left and the queries per second that are reached, both by account."""

    left: Mapping[str, int]
    qps: Mapping[str, float]
    done: int = 0
    failed: int = 0
    not_polled: int = 0

    @classmethod
    def of(cls, plans: Mapping[str, Plan]) -> Self:
        """The progress at the start."""
        return cls(
            {name: plan.spaces for name, plan in plans.items()},
            {name: plan.reached_qps for name, plan in plans.items()},
        )

    def after(self, account: str, *, failed: bool) -> "Progress":
        """A space of the account was polled."""
        left = {**self.left, account: self.left[account] - 1}
        return replace(self, left=left, done=self.done + 1, failed=self.failed + failed)

    def ended(self, account: str) -> "Progress":
        """No more spaces of the account are polled."""
        return replace(self, left={**self.left, account: 0}, not_polled=self.not_polled + self.left[account])

    @property
    def total(self) -> int:
        return self.done + self.not_polled + sum(self.left.values())

    @property
    def seconds_left(self) -> float:
        """Seconds that the slowest account needs."""
        return max((left / self.qps[account] for account, left in self.left.items()), default=0.0)
