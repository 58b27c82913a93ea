"""The families as a prometheus_client collector, for embedding. Tests compare the rendered exposition with it."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    EXPORTER_FAMILIES,
    FAMILIES,
    NUMBER_FAMILIES,
    SPACE_FAMILIES,
    AccountView,
    ExporterView,
    Family,
    SpaceView,
    Subject,
)
from exporter.metrics.instruments import Instruments
from exporter.metrics.lines import sample_name

Views = tuple[Sequence[SpaceView], Sequence[AccountView], ExporterView]


class ExporterCollector(Collector):
    """Collects all families with the prefix `chatapp_`. Safe to collect from another thread. A registry
    accepts only one of these collectors, because family names must be unique."""

    def __init__(self, views: Callable[[], Views], instruments: Instruments) -> None:
        self._views = views
        self._instruments = instruments

    def describe(self) -> Iterator[Metric]:
        """Return all families without samples. A registry needs this method to select families by `name[]`."""
        yield from (Metric(family.name, family.help, family.type) for family in FAMILIES)
        yield from self._instruments.describe()

    def collect(self) -> Iterator[Metric]:
        spaces, accounts, exporter = self._views()
        numbers = [number for space in spaces for number in space.numbers]
        yield from (_metric(family, numbers) for family in NUMBER_FAMILIES)
        yield from (_metric(family, spaces) for family in SPACE_FAMILIES)
        yield from (_metric(family, accounts) for family in ACCOUNT_FAMILIES)
        yield from (_metric(family, [exporter]) for family in EXPORTER_FAMILIES)
        yield from self._instruments.collect()


def _metric(family: Family[Subject], subjects: Iterable[Subject]) -> Metric:
    metric = Metric(family.name, family.help, family.type)
    for subject in subjects:
        for labels, value in family.samples(subject):
            metric.add_sample(sample_name(family), dict(subject.labels + labels), value)
    return metric
