"""Calculates whether the budget of an account is sufficient for its spaces, and the progress of a sweep."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from exporter.config.fields import format_duration
from exporter.config.settings import API_LIMIT_QPS, Account, Settings
from exporter.polling.budget import DEFAULT_LATENCY_SECONDS, possible_qps
from exporter.source import REQUEST_TIMEOUT_SECONDS

_HEADROOM = 1.1
"""Recommended values are the minimum times this factor, because the number of spaces grows."""
_ROUNDING_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Plan:
    """The spaces and the budget of an account. `interval` and `latency` (mean of a request) are in seconds."""

    spaces: int
    interval: float
    qps: float
    latency: float = DEFAULT_LATENCY_SECONDS

    @classmethod
    def of(cls, account: Account) -> Self:
        """Return the plan of an account."""
        return cls(len(account.polled_spaces), account.poll_interval, account.qps)

    @property
    def needed_qps(self) -> float:
        """Queries per second that the configured interval requires."""
        return self.spaces / self.interval

    @property
    def possible_qps(self) -> float:
        """Queries per second that the budget allows with this latency."""
        return possible_qps(self.qps, self.latency)

    @property
    def sweep(self) -> float:
        """Duration of a sweep in seconds."""
        return self.spaces / self.possible_qps

    @property
    def effective_interval(self) -> float:
        """Seconds between two polls of a space: the configured interval, or the duration of a sweep (rounded up to
        full seconds) if the sweep takes longer."""
        return max(self.interval, float(math.ceil(self.sweep - _ROUNDING_TOLERANCE)))

    @property
    def oldest_value_age(self) -> float:
        """Maximum age of a value in seconds if all polls succeed."""
        return self.effective_interval + REQUEST_TIMEOUT_SECONDS

    def slot(self, index: int) -> float:
        """Return the first slot of a space in seconds after the start. The slots are spread evenly over one interval,
        which starts after the minimum duration of a sweep (spaces/qps). Earlier slots would poll some spaces twice
        before other spaces have a value."""
        return self.spaces / self.qps + self.interval * (index + 1) / self.spaces

    @property
    def log_fields(self) -> dict[str, float]:
        """The plan as fields of a log line."""
        return {
            "spaces": self.spaces,
            "qps": self.qps,
            "possible_qps": round(self.possible_qps, 3),
            "needed_qps": round(self.needed_qps, 3),
            "interval_seconds": self.interval,
            "effective_interval_seconds": round(self.effective_interval, 1),
            "oldest_value_seconds": round(self.oldest_value_age, 1),
        }


def plans_by_account(settings: Settings) -> dict[str, Plan]:
    """Return the plan of each account by name."""
    return {account.name: Plan.of(account) for account in settings.accounts}


class PlanWarning(NamedTuple):
    """A warning about the settings: the log event, and a text with the details and, if possible, a suggestion."""

    event: str
    text: str


def warnings(plans: Mapping[str, Plan], max_age: float) -> Iterator[PlanWarning]:
    """Yield a warning for each setting that is probably wrong."""
    if not plans:
        text = "no account is assigned to this shard, so nothing is polled"
        yield PlanWarning("no account assigned to this shard", text)
    for name, plan in plans.items():
        effective = format_duration(plan.effective_interval)
        if plan.effective_interval > plan.interval:
            yield PlanWarning(
                "account polled less often than configured",
                f"account {name}: {plan.spaces} spaces at {plan.qps:g} queries per second and"
                f" {format_duration(plan.latency)} latency are polled every {effective}, not every"
                f" {format_duration(plan.interval)}; {_suggestion(plan)}",
            )
        if plan.oldest_value_age >= max_age:
            longer = format_duration(_round_up(3 * plan.oldest_value_age))
            yield PlanWarning(
                "max_age too short for the effective interval",
                f"account {name}: spaces are polled every {effective}, but values are removed after max_age"
                f" {format_duration(max_age)}, so series will have gaps; set max_age: {longer}",
            )


def _suggestion(plan: Plan) -> str:
    longer = format_duration(_round_up(_HEADROOM * plan.sweep))
    qps = math.ceil(_HEADROOM * plan.needed_qps * (1 + plan.latency))
    return f"set {f'qps: {qps} or ' if qps <= API_LIMIT_QPS else ''}poll_interval: {longer}"


def _round_up(seconds: float) -> float:
    """Round up to full minutes above 10 minutes, otherwise to 10 seconds."""
    unit = 60 if seconds > 600 else 10
    return math.ceil(seconds / unit) * unit


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a sweep. `left`: remaining spaces by account. `qps`: possible queries per second by account."""

    left: Mapping[str, int]
    qps: Mapping[str, float]
    done: int = 0
    failed: int = 0
    not_polled: int = 0

    @classmethod
    def of(cls, plans: Mapping[str, Plan]) -> Self:
        """Return the progress before the first poll."""
        return cls(
            {name: plan.spaces for name, plan in plans.items()},
            {name: plan.possible_qps for name, plan in plans.items()},
        )

    def after(self, account: str, *, failed: bool) -> "Progress":
        """Return the progress after a poll of this account."""
        left = {**self.left, account: self.left[account] - 1}
        return replace(self, left=left, done=self.done + 1, failed=self.failed + failed)

    def after_account_end(self, account: str) -> "Progress":
        """Return the progress after the sweep of this account ended. Its remaining spaces count as not polled."""
        return replace(self, left={**self.left, account: 0}, not_polled=self.not_polled + self.left[account])

    @property
    def total(self) -> int:
        return self.done + self.not_polled + sum(self.left.values())

    @property
    def seconds_left(self) -> float:
        """Remaining seconds of the slowest account."""
        return max((left / self.qps[account] for account, left in self.left.items()), default=0.0)
