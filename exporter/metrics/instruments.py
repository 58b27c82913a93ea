"""Counters and histograms of API requests and polls."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.model import WATCHED_FIELDS, Answer, unknown_values
from exporter.source import QueryError, ThrottledError

_MAX_VALUES = 50
"""Maximum number of label values from the API per account or field. Further values are counted as "other"."""
_MISSING = "missing"
_UNKNOWN_HELP = (
    "Total number of unknown values in API responses, counted at every poll. The value missing counts fields that the"
    " API no longer reports, once for each phone number, and entries without a phone number (field phone_number)."
)
_REQUEST_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_DELAY_BUCKETS = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)


class _LabelLimiter:
    """Limits the number of different label values per account or field, because each new value uses memory."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def limit(self, group: str, value: str) -> tuple[str, str]:
        """Return the label values of a sample: the value is "other" if the group already has `_MAX_VALUES` values."""
        seen = self._seen.setdefault(group, set())
        if value not in seen and len(seen) >= _MAX_VALUES:
            return group, "other"
        seen.add(value)
        return group, value

    def remove(self, group: str) -> None:
        self._seen.pop(group, None)


class Instruments(Collector):
    """The counters and histograms, in a separate registry. `apply` creates the series of each account with the value 0,
    except `chatapp_api_requests_total`: its codes are known only after requests."""

    def __init__(self, accounts: Collection[str] = ()) -> None:
        self._registry = CollectorRegistry()
        self._accounts: Collection[str] = ()
        self._codes = _LabelLimiter()
        self._values = _LabelLimiter()
        self._requests = self._counter(
            "chatapp_api_requests",
            "Total number of HTTP requests to the API, by code: OK, the error code of the API, timeout, transport,"
            " malformed, http_ with the HTTP status, or credentials (not sent, no access key available).",
            "account",
            "code",
        )
        self._duration = self._histogram(
            "chatapp_api_request_duration_seconds",
            "Duration of HTTP requests to the API in seconds, successful or failed.",
            _REQUEST_BUCKETS,
        )
        self._throttled = self._counter(
            "chatapp_api_throttled", "Total number of requests that the API throttled.", "account"
        )
        self._unknown_values = self._counter("chatapp_api_unknown_values", _UNKNOWN_HELP, "field", "value")
        for field in WATCHED_FIELDS:  # start at 0, so that increase() includes the first count
            self._unknown_values.labels(field, _MISSING)
        self._delay = self._histogram(
            "chatapp_poll_delay_seconds",
            "Delay from the due time of a poll to its first request, in seconds.",
            _DELAY_BUCKETS,
        )
        self.apply(accounts)

    def apply(self, accounts: Collection[str]) -> None:
        """Add the series of these accounts, and remove the series of all others."""
        families = (self._requests, self._duration, self._throttled, self._delay)
        for removed in set(self._accounts) - set(accounts):
            self._codes.remove(removed)
            for family in families:
                family.remove_by_labels({"account": removed})
        for account in accounts:
            for family in families[1:]:
                family.labels(account)
        self._accounts = accounts

    def describe(self) -> Iterator[Metric]:
        """Return all families without samples."""
        return iter([Metric(family.name, family.documentation, family.type) for family in self._registry.collect()])

    def collect(self, names: Collection[str] = ()) -> Iterator[Metric]:
        """Return all families, or only those with these names. Removes `_created` samples, because prometheus_client
        can only disable them for the complete process."""
        registry = self._registry.restricted_registry(names) if names else self._registry
        for family in registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def poll_started(self, account: str, delay_seconds: float) -> None:
        """Record that a poll sends its first request, `delay_seconds` after it was due."""
        self._delay.labels(account).observe(delay_seconds)

    def request_ended(self, account: str, seconds: float, error: QueryError | None) -> None:
        """Record an HTTP request that ended after `seconds`."""
        if account not in self._accounts:  # removed by a reload during the request
            return
        self._requests.labels(*self._codes.limit(account, error.code if error else "OK")).inc()
        self._duration.labels(account).observe(seconds)
        if isinstance(error, ThrottledError):
            self._throttled.labels(account).inc()

    def count_unknown_values(
        self, answer: Answer, limits: Mapping[str, float], newly_missing: Iterable[str] = ()
    ) -> None:
        """Count the unknown values of an answer. `limits` has the known messaging limit tiers. `newly_missing` has one
        entry for each phone number and field that the API stopped reporting."""
        for number in answer.phone_numbers:
            for field, value in unknown_values(number, limits):
                self._unknown_values.labels(*self._values.limit(field, value)).inc()
        if answer.entries_without_number:
            self._unknown_values.labels("phone_number", _MISSING).inc(answer.entries_without_number)
        for field in newly_missing:
            self._unknown_values.labels(field, _MISSING).inc()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, ("account",), buckets=(*buckets, math.inf), registry=self._registry)
