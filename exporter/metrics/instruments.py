"""The exporter's own families: what happens between it and the API, and how it is itself."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from exporter import __version__
from exporter.config.shard import WHOLE, Shard
from exporter.model import Answer, unknown_values
from exporter.source import QueryError, ThrottledError
from exporter.state.state_file import Trouble

_MOST_VALUES = 50
"""Label values a family may take from the API before the rest are counted as "other"."""
_REQUEST_BUCKETS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_DELAY_BUCKETS = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)


class _Bounded:
    """Lets an account's or field's first values through, calls the rest "other": the API must not grow our memory."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def __call__(self, of: str, value: str) -> tuple[str, str]:
        seen = self._seen.setdefault(of, set())
        if value not in seen and len(seen) >= _MOST_VALUES:
            return of, "other"
        seen.add(value)
        return of, value

    def forget(self, of: str) -> None:
        self._seen.pop(of, None)


class Instruments:
    """Families in a registry of their own. An account's series exist from the start, at 0."""

    def __init__(self, accounts: Collection[str], shard: Shard = WHOLE) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._accounts: Collection[str] = ()
        self._space_files: Mapping[str, bool] = {}
        self._codes = _Bounded()
        self._values = _Bounded()
        self._add_api_families()
        self._add_exporter_families(shard)
        self.reconfigure(accounts)

    def reconfigure(self, accounts: Collection[str]) -> None:
        """These are the accounts from now on; the series of others leave."""
        families = (self._requests, self._duration, self._throttled, self._delay)
        for gone in set(self._accounts) - set(accounts):
            self._codes.forget(gone)
            for family in families:
                family.remove_by_labels({"account": gone})
        for account in accounts:
            for family in families[1:]:
                family.labels(account)
        self._accounts = accounts

    def _add_api_families(self) -> None:
        self._requests = self._counter(
            "chatapp_api_requests",
            "HTTP attempts, by the API's Code or, where it gave none, by what happened instead. Code credentials counts"
            " those that were not made, for there was no key.",
            "account",
            "code",
        )
        self._duration = self._histogram(
            "chatapp_api_request_duration_seconds", "How long an HTTP attempt took, well or badly.", _REQUEST_BUCKETS
        )
        self._throttled = self._counter("chatapp_api_throttled", "Answers that said: too fast.", "account")
        self._unknown = self._counter(
            "chatapp_api_unknown_values",
            "Values in answers that this version does not know, counted at every poll. Field phone_number counts"
            " entries that name no number.",
            "field",
            "value",
        )
        self._delay = self._histogram(
            "chatapp_poll_delay_seconds", "How late a poll started after it was due.", _DELAY_BUCKETS
        )

    def _add_exporter_families(self, shard: Shard) -> None:
        build = self._gauge("chatapp_exporter_build_info", "1, with the exporter's version.", "version")
        build.labels(__version__).set(1)
        part = self._gauge("chatapp_exporter_shard_info", "1, with which of how many shards it is.", "shard", "shards")
        part.labels(str(shard.index), str(shard.count)).set(1)
        self._reload_successful = self._gauge(
            "chatapp_exporter_config_last_reload_successful", "1 if the last configuration was taken over, else 0."
        )
        self._reload_timestamp = self._gauge(
            "chatapp_exporter_config_last_reload_success_timestamp_seconds", "When a configuration was taken over last."
        )
        self._space_file_up = self._gauge(
            "chatapp_exporter_space_file_up",
            "1 if the space file counts as it was read last, 0 while it is broken and its last good spaces stay.",
            "file",
        )
        self._state_file_up = self._gauge(
            "chatapp_exporter_state_file_up", "1 while what is known is kept in the state file, else 0.", "file"
        )
        self._state_file_failures = self._counter(
            "chatapp_exporter_state_file_failures",
            "Times that the state file could not be opened, read or written, by what is the matter with it.",
            "file",
            "reason",
        )
        for process_families in (ProcessCollector, PlatformCollector, GCCollector):
            process_families(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, ("account",), buckets=(*buckets, math.inf), registry=self.registry)

    def poll_started(self, account: str, delay_seconds: float) -> None:
        """A poll's first request goes out."""
        self._delay.labels(account).observe(delay_seconds)

    def request_ended(self, account: str, seconds: float, error: QueryError | None) -> None:
        """An HTTP attempt ended."""
        if account not in self._accounts:  # it has left meanwhile, and its series with it
            return
        self._requests.labels(*self._codes(account, error.code if error else "OK")).inc()
        self._duration.labels(account).observe(seconds)
        if isinstance(error, ThrottledError):
            self._throttled.labels(account).inc()

    def answered(self, answer: Answer, limits: Mapping[str, float]) -> None:
        """A poll succeeded: count what we do not know in its answer; `limits` are the tiers that have a number."""
        for number in answer.phone_numbers:
            for field, value in unknown_values(number, limits):
                self._unknown.labels(*self._values(field, value)).inc()
        if answer.unnamed:
            self._unknown.labels("phone_number", "missing").inc(answer.unnamed)

    def space_files(self, up: Mapping[str, bool]) -> None:
        """These are the space files, and whether each counts as it stands; the series of others leave."""
        if up == self._space_files:  # asked for every few seconds, of thousands of files
            return
        self._space_files = dict(up)
        self._space_file_up.clear()
        for file, good in up.items():
            self._space_file_up.labels(file).set(good)

    def state_file_up(self, file: Path, *, up: bool) -> None:
        """Whether what is known is being kept."""
        self._state_file_up.labels(str(file)).set(up)

    def state_file_failed(self, file: Path, trouble: Trouble) -> None:
        """The state file could not be opened, read or written."""
        self._state_file_failures.labels(str(file), trouble).inc()

    def state_file_left(self) -> None:
        """The configuration names another state file, or none."""
        self._state_file_up.clear()
        self._state_file_failures.clear()

    def config_refused(self) -> None:
        """A new configuration cannot be used, the old one goes on."""
        self._reload_successful.set(0)

    def config_loaded(self, at: float) -> None:
        """The configuration was taken over at `at`, in Unix seconds."""
        self._reload_successful.set(1)
        self._reload_timestamp.set(at)
