"""The rendered page: the lines of every space are kept, replaced when its poll changes them, and joined at a scrape.

prometheus_client needs seconds for ten thousand numbers and holds the interpreter meanwhile; joining kept lines takes
a hundredth of that. Text 0.0.4 and OpenMetrics 1.0 differ in the families' headers only, so the lines serve both.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from exporter.metrics.catalogue import ACCOUNT_FAMILIES, SPACE_FAMILIES, AccountView, Family, Sample, SpaceView, Subject
from exporter.state.store import Key, SpaceState

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render_lines(family: Family[Subject], subject: Subject) -> bytes:
    """The sample lines of one subject; b"" where it has none."""
    name = _sample_name(family)
    return "".join(_line(name, sample) for sample in family.samples(subject)).encode()


def _line(name: str, sample: Sample) -> str:
    labels, value = sample
    pairs = ",".join([f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items()])
    return f"{name}{{{pairs}}} {_number(value)}\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _sample_name(family: Family[Subject]) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _header(family: Family[Subject], *, openmetrics: bool) -> bytes:
    name = family.name if openmetrics else _sample_name(family)
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n".encode()


def _wanted(family: Family[Subject], names: Collection[str]) -> bool:
    return not names or family.name in names or _sample_name(family) in names


@dataclass(frozen=True, slots=True)
class _Block:
    """A space's state, its lines, a piece a family, and whether they show its numbers."""

    state: SpaceState
    pieces: tuple[bytes, ...]
    fresh: bool


class Page:
    """What a scrape of the spaces and accounts shows. `view` and `accounts` give the views as they are now."""

    def __init__(
        self,
        view: Callable[[Key, SpaceState, bool], SpaceView],
        accounts: Callable[[], Iterable[AccountView]],
        max_age: float,
    ) -> None:
        self._view = view
        self._accounts = accounts
        self.max_age = max_age
        self._blocks: dict[Key, _Block] = {}

    def update(self, key: Key, state: SpaceState) -> None:
        """A space's state is new."""
        self._blocks[key] = self._block(key, state, fresh=state.last_success is not None)

    def retain(self, keys: Collection[Key]) -> None:
        """Show these spaces only."""
        for key in self._blocks.keys() - set(keys):
            del self._blocks[key]

    def render(self, now: float, *, openmetrics: bool, names: Collection[str] = ()) -> Iterator[bytes]:
        """The page in pieces, without OpenMetrics' closing line; `names` keeps the families or samples of that name."""
        self._expire(now)
        for index, family in enumerate(SPACE_FAMILIES):
            if _wanted(family, names):
                yield _header(family, openmetrics=openmetrics)
                for block in self._blocks.values():
                    yield block.pieces[index]
        accounts = tuple(self._accounts())
        for account_family in ACCOUNT_FAMILIES:
            if _wanted(account_family, names):
                yield _header(account_family, openmetrics=openmetrics)
                for account in accounts:
                    yield render_lines(account_family, account)

    def views(self, now: float) -> Iterator[SpaceView]:
        """What the page shows, as values."""
        for key, block in self._blocks.items():
            yield self._view(key, block.state, block.state.is_fresh(now, self.max_age))

    def _expire(self, now: float) -> None:
        for key, block in self._blocks.items():
            if block.fresh != block.state.is_fresh(now, self.max_age):  # old ones return where the clock is put right
                self._blocks[key] = self._block(key, block.state, fresh=not block.fresh)

    def _block(self, key: Key, state: SpaceState, *, fresh: bool) -> _Block:
        view = self._view(key, state, fresh)
        return _Block(state, tuple(render_lines(family, view) for family in SPACE_FAMILIES), fresh)


class CatalogueCollector(Collector):
    """The same rows for prometheus_client: slower, and the oracle for the page."""

    def __init__(
        self, spaces: Callable[[], Iterable[SpaceView]], accounts: Callable[[], Iterable[AccountView]]
    ) -> None:
        self._spaces = spaces
        self._accounts = accounts

    def describe(self) -> Iterator[Metric]:
        """Every family without samples; without this a registry answers nothing to `name[]`."""
        yield from (Metric(family.name, family.help, family.type) for family in SPACE_FAMILIES)
        yield from (Metric(family.name, family.help, family.type) for family in ACCOUNT_FAMILIES)

    def collect(self) -> Iterator[Metric]:
        spaces, accounts = tuple(self._spaces()), tuple(self._accounts())
        yield from (_metric(family, spaces) for family in SPACE_FAMILIES)
        yield from (_metric(family, accounts) for family in ACCOUNT_FAMILIES)


def _metric(family: Family[Subject], subjects: Iterable[Subject]) -> Metric:
    metric = Metric(family.name, family.help, family.type)
    for subject in subjects:
        for labels, value in family.samples(subject):
            metric.add_sample(_sample_name(family), dict(labels), value)
    return metric
