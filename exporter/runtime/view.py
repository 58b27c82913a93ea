"""Read-only view of the running exporter, for HTTP and for programs that embed it. `expire` alone changes something."""

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
    """The spaces and accounts `at` a moment, in Unix seconds; if several processes share them, those of this
    `shard`."""

    at: float
    spaces: Sequence[SpaceView]
    accounts: Sequence[AccountView]
    shard: Shard = UNSHARDED

    @property
    def accounts_with_unknown_spaces(self) -> list[str]:
        """The accounts that may have spaces that are not known."""
        listed = ((account, account.discovery) for account in self.accounts)
        return [
            account.account
            for account, discovery in listed
            if account.spaces_unknown or (discovery and not discovery.up)
        ]


def account_views(service: Service) -> list[AccountView]:
    """The accounts of a service as they are now."""
    configured = {account.name for account in service.configured.accounts if account.spaces}
    return [running.view(configured=name in configured) for name, running in service.accounts.copy().items()]


@dataclass(slots=True)
class ReloadState:
    """The result of the last reload. `last_success` is the last successful one, in Unix seconds; `space_files` says of
    each file whether it is good."""

    last_success: float
    successful: bool = True
    web_config_good: bool = True
    space_files: Mapping[str, bool] = field(default_factory=dict)


class View:
    """See the module."""

    def __init__(self, service: Service, reloads: ReloadState, clock: Clock) -> None:
        self._service = service
        self._reloads = reloads
        self._clock = clock
        self._shown_config: tuple[Settings, str] | None = None
        """The last text of `redacted_config`, and what it shows."""
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def expire(self) -> Iterator[None]:
        """Remove the values that are too old to show, one space at each step."""
        return self._service.recorder.expire()

    def exposition(self, *, openmetrics: bool, names: Collection[str] = ()) -> Iterator[bytes]:
        """All families, or those of these names, in text 0.0.4 or OpenMetrics 1.0. Spaces and accounts are as at the
        first step. Call `expire` before."""
        recorder = self._service.recorder
        yield from recorder.page.render(self.accounts(), self._exporter(), openmetrics=openmetrics, names=names)
        process = self._process.restricted_registry(names) if names else self._process
        own = _Families([*recorder.instruments.collect(names), *process.collect()])
        encode: Callable[[_Families], bytes] = generate_openmetrics if openmetrics else generate_latest
        yield encode(own)

    def collector(self) -> ExporterCollector:
        """The families of the exporter as a prometheus_client collector, without those of the process."""
        return ExporterCollector(self._views, self._service.recorder.instruments)

    def accounts(self) -> list[AccountView]:
        """The accounts as they are now."""
        return account_views(self._service)

    def snapshot(self) -> Snapshot:
        """The spaces and accounts as they are now. Safe to call from another thread."""
        spaces, accounts, _ = self._views()
        return Snapshot(self._clock.now(), spaces, accounts, self._service.shard)

    def unpolled(self) -> int:
        """How many spaces have been neither polled since the start nor known from before."""
        return self._service.recorder.unpolled

    def redacted_config(self) -> str:
        """The configuration in YAML, without its secrets. Safe to call from another thread: the first
        call for a configuration takes a second for ten thousand spaces."""
        configured, shown = self._service.configured, self._shown_config
        if not shown or shown[0] is not configured:
            document = configured.model_dump(mode="json", exclude_defaults=True)
            shown = self._shown_config = configured, yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return shown[1]

    def _views(self) -> Views:
        return list(self._service.recorder.views()), self.accounts(), self._exporter()

    def _exporter(self) -> ExporterView:
        reloads, state_file = self._reloads, self._service.recorder.state_file
        return ExporterView(
            reloads.successful and reloads.web_config_good,
            reloads.last_success,
            reloads.space_files,
            state_file.file if state_file else None,
        )


@dataclass(frozen=True, slots=True)
class _Families:
    """Families that were collected, as `generate_latest` wants them."""

    families: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        return iter(self.families)
