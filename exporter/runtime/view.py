"""The values of the running exporter, for HTTP handlers and embedding programs. Only `expire` changes them: it
removes old values."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter.clock import Clock
from exporter.config.effective import UNSHARDED, Shard
from exporter.config.settings import Settings
from exporter.metrics.catalogue import AccountView, ExporterView, SpaceView
from exporter.metrics.collector import ExporterCollector, Views
from exporter.runtime.service import Service


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The spaces and accounts of this `shard` at the time `at` (Unix seconds)."""

    at: float
    spaces: Sequence[SpaceView]
    accounts: Sequence[AccountView]
    shard: Shard = UNSHARDED

    @property
    def accounts_with_incomplete_spaces(self) -> list[str]:
        """The accounts with discovery that were not listed yet, or whose last attempt failed. Spaces can be missing."""
        return [
            account.account
            for account in self.accounts
            if account.spaces_unknown or (account.discovery and not account.discovery.up)
        ]


def account_views(service: Service) -> list[AccountView]:
    """Return the current state of all accounts of a service."""
    configured = {account.name for account in service.configured.accounts if account.spaces}
    return [runtime.view(configured=name in configured) for name, runtime in service.accounts.copy().items()]


@dataclass(slots=True)
class ReloadState:
    """The result of the last reload. `last_success` is the time of the last successful load or reload (Unix seconds).
    `space_files` maps each file to whether it is valid."""

    last_success: float
    successful: bool = True
    web_config_valid: bool = True
    space_files: Mapping[str, bool] = field(default_factory=dict)


class View:
    """The values that HTTP handlers and embedding programs read."""

    def __init__(self, service: Service, reloads: ReloadState, clock: Clock) -> None:
        self._service = service
        self._reloads = reloads
        self._clock = clock
        self._redacted: tuple[Settings, str] | None = None
        """Cache of `redacted_config`: the settings and their text."""
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def expire(self) -> Iterator[None]:
        """Remove the values that are older than `max_age`, one space at each step."""
        return self._service.recorder.expire()

    def exposition(self, *, openmetrics: bool, names: Collection[str] = ()) -> Iterator[bytes]:
        """Return all metric families, or only those with these `names`, in text format 0.0.4 or OpenMetrics 1.0. All
        steps show the spaces and accounts of the first step. Call `expire` first."""
        recorder = self._service.recorder
        yield from recorder.rendered.render(self.accounts(), self._exporter(), openmetrics=openmetrics, names=names)
        process = self._process.restricted_registry(names) if names else self._process
        families = _Families([*recorder.instruments.collect(names), *process.collect()])
        encode: Callable[[_Families], bytes] = generate_openmetrics if openmetrics else generate_latest
        yield encode(families)

    def collector(self) -> ExporterCollector:
        """Return the exporter's families, without the process metrics, as a prometheus_client collector."""
        return ExporterCollector(self._views, self._service.recorder.instruments)

    def accounts(self) -> list[AccountView]:
        """Return the current state of all accounts."""
        return account_views(self._service)

    def snapshot(self) -> Snapshot:
        """Return the current spaces and accounts. Safe to call from another thread."""
        spaces, accounts, _ = self._views()
        return Snapshot(self._clock.now(), spaces, accounts, self._service.shard)

    def unpolled(self) -> int:
        """Number of spaces that have no fresh stored values and were not polled since the start, or whose newest record
        is not shown yet (see `Recorder`)."""
        return self._service.recorder.unpolled

    def redacted_config(self) -> str:
        """Return the configuration in YAML, without secrets. Call it in another thread: with 10,000 spaces, the first
        call after a change of the configuration takes 1 second."""
        configured, cached = self._service.configured, self._redacted
        if not cached or cached[0] is not configured:
            document = configured.model_dump(mode="json", exclude_defaults=True)
            cached = self._redacted = configured, yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return cached[1]

    def _views(self) -> Views:
        return list(self._service.recorder.views()), self.accounts(), self._exporter()

    def _exporter(self) -> ExporterView:
        reloads, state_file = self._reloads, self._service.recorder.state_file
        return ExporterView(
            reloads.successful and reloads.web_config_valid,
            reloads.last_success,
            reloads.space_files,
            state_file.file if state_file else None,
            self._clock.now(),
            [account.name for account in self._service.configured.accounts],
        )


@dataclass(frozen=True, slots=True)
class _Families:
    """Collected families, in the form that `generate_latest` requires."""

    families: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        return iter(self.families)
