"""The same families for prometheus_client: for people who embed the exporter, and the oracle for the rendered page."""

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
    """Every family whose name starts with `chatapp_`. Safe to collect from another thread. Register one in a registry:
    a second one has families of the same names."""

    def __init__(self, views: Callable[[], Views], instruments: Instruments) -> None:
        self._views = views
        self._instruments = instruments

    def describe(self) -> Iterator[Metric]:
        """Every family without samples; without this a registry answers nothing to `name[]`."""
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
