"""Counters and histograms of what happens between the exporter and the API."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.model import WATCHED_FIELDS, Answer, unknown_values
from exporter.source import QueryError, ThrottledError

_MAX_VALUES = 50
"""Label values that a family takes from the API; the rest are counted as "other"."""
_MISSING = "missing"
_UNKNOWN_HELP = (
    "Values in answers that this version does not know, counted at every poll. The value missing counts a rating, tier"
    " or status that was reported before and is not reported now, once for each phone number. With field phone_number"
    " it counts entries without a number."
)
_REQUEST_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_DELAY_BUCKETS = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)


class _Bounded:
    """Passes the first values of an account or field, and "other" for the rest: the API must not grow our memory."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def __call__(self, of: str, value: str) -> tuple[str, str]:
        seen = self._seen.setdefault(of, set())
        if value not in seen and len(seen) >= _MAX_VALUES:
            return of, "other"
        seen.add(value)
        return of, value

    def remove(self, of: str) -> None:
        self._seen.pop(of, None)


class Instruments(Collector):
    """Families in a registry of their own. An account's series exist from the start, at 0, except for requests by
    code."""

    def __init__(self, accounts: Collection[str] = ()) -> None:
        self._registry = CollectorRegistry()
        self._accounts: Collection[str] = ()
        self._codes = _Bounded()
        self._values = _Bounded()
        self._requests = self._counter(
            "chatapp_api_requests",
            "HTTP attempts, by the API's Code or, where it gave none, by what happened instead. Code credentials counts"
            " those that were not made, for there was no key.",
            "account",
            "code",
        )
        self._duration = self._histogram(
            "chatapp_api_request_duration_seconds",
            "Duration of an HTTP attempt, successful or failed.",
            _REQUEST_BUCKETS,
        )
        self._throttled = self._counter("chatapp_api_throttled", "Requests that the API throttled.", "account")
        self._unknown = self._counter(
            "chatapp_api_unknown_values",
            _UNKNOWN_HELP,
            "field",
            "value",
        )
        for field in WATCHED_FIELDS:  # from 0, so that the first one is an increase
            self._unknown.labels(field, _MISSING)
        self._delay = self._histogram(
            "chatapp_poll_delay_seconds", "How late a poll started after it was due.", _DELAY_BUCKETS
        )
        self.apply(accounts)

    def apply(self, accounts: Collection[str]) -> None:
        """These are the accounts from now on; the series of others are removed."""
        families = (self._requests, self._duration, self._throttled, self._delay)
        for gone in set(self._accounts) - set(accounts):
            self._codes.remove(gone)
            for family in families:
                family.remove_by_labels({"account": gone})
        for account in accounts:
            for family in families[1:]:
                family.labels(account)
        self._accounts = accounts

    def describe(self) -> Iterator[Metric]:
        """Every family without samples."""
        return iter([Metric(family.name, family.documentation, family.type) for family in self._registry.collect()])

    def collect(self, names: Collection[str] = ()) -> Iterator[Metric]:
        """The families, or those of these names. Without `_created` samples: prometheus_client could remove the quotes
        only for the complete process."""
        registry = self._registry.restricted_registry(names) if names else self._registry
        for family in registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def poll_started(self, account: str, delay_seconds: float) -> None:
        """A poll sends its first request, `delay_seconds` after it was due."""
        self._delay.labels(account).observe(delay_seconds)

    def request_ended(self, account: str, seconds: float, error: QueryError | None) -> None:
        """An HTTP attempt ended after `seconds`."""
        if account not in self._accounts:  # it was removed meanwhile, with its series
            return
        self._requests.labels(*self._codes(account, error.code if error else "OK")).inc()
        self._duration.labels(account).observe(seconds)
        if isinstance(error, ThrottledError):
            self._throttled.labels(account).inc()

    def answered(self, answer: Answer, limits: Mapping[str, float], lost: Iterable[str] = ()) -> None:
        """Count what is unknown in an answer; `limits` are the tiers that have a number, `lost` the fields that were
        reported in the answer before, one for each phone number."""
        for number in answer.phone_numbers:
            for field, value in unknown_values(number, limits):
                self._unknown.labels(*self._values(field, value)).inc()
        if answer.unnamed:
            self._unknown.labels("phone_number", _MISSING).inc(answer.unnamed)
        for field in lost:
            self._unknown.labels(field, _MISSING).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("account",), buckets=(*buckets, math.inf), registry=self._registry)
