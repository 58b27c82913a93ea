"""The rendered page: the lines of the spaces are kept, a few spaces' together, and replaced when a poll changes them.

prometheus_client needs seconds for ten thousand numbers and holds the interpreter meanwhile; a scrape of kept lines
costs little more than sending them.
"""

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    FAMILIES,
    NUMBER_FAMILIES,
    SPACE_FAMILIES,
    AccountView,
    Family,
    SpaceView,
    Subject,
)
from exporter.metrics.lines import header, is_wanted, lines, sample_name, spell
from exporter.state.store import Key, SpaceState

_GROUP = 16
"""Spaces whose lines stand together: more, and a change copies much; fewer, and a scrape collects many."""
_PIECES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES)
"""The families of which a space has a piece."""


class _Text:
    """Pieces of text, joined; each can be replaced."""

    __slots__ = ("_lengths", "joined")

    def __init__(self) -> None:
        self.joined = b""
        self._lengths = array("L")

    def append(self, piece: bytes) -> None:
        self.joined += piece
        self._lengths.append(len(piece))

    def replace(self, position: int, piece: bytes) -> None:
        start = sum(self._lengths[:position])
        end = start + self._lengths[position]
        if self.joined[start:end] != piece:  # most polls change next to nothing
            self.joined = self.joined[:start] + piece + self.joined[end:]
            self._lengths[position] = len(piece)

    def remove(self, position: int) -> None:
        self.replace(position, b"")
        del self._lengths[position]


class _Group:
    """A few spaces, and their lines: a text a family."""

    __slots__ = ("keys", "texts")

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.texts = tuple(_Text() for _ in _PIECES)

    def put(self, key: Key, pieces: Iterable[bytes]) -> None:
        """The lines of a space, in the place of those that it had."""
        if key not in self.keys:
            self.keys.append(key)
            for text, piece in zip(self.texts, pieces, strict=True):
                text.append(piece)
            return
        position = self.keys.index(key)
        for text, piece in zip(self.texts, pieces, strict=True):
            text.replace(position, piece)

    def remove(self, key: Key) -> None:
        position = self.keys.index(key)
        del self.keys[position]
        for text in self.texts:
            text.remove(position)


class Size(NamedTuple):
    """What some spaces take in a scrape; bytes in text, not packed."""

    spaces: int = 0
    series: int = 0
    bytes: int = 0


_NOTHING = Size()


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the page shows of a space: its state, and its numbers while they are fresh."""

    state: SpaceState
    fresh: bool
    group: _Group
    size: Size


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
        self._shown: dict[Key, _Shown] = {}
        self._groups: list[_Group] = []
        self._roomy: list[_Group] = []
        self._sizes: dict[str, Size] = {}

    def update(self, key: Key, state: SpaceState) -> None:
        """A space's state is new."""
        self._show(key, state, fresh=state.last_success is not None)

    def retain(self, keys: Collection[Key]) -> None:
        """Show these spaces only."""
        for key in self._shown.keys() - set(keys):
            gone = self._shown.pop(key)
            gone.group.remove(key)
            self._count(key[0], _NOTHING, before=gone.size)
        self._groups = [group for group in self._groups if group.keys]
        self._roomy = [group for group in self._groups if len(group.keys) < _GROUP]

    def expire(self, now: float) -> Iterator[None]:
        """Take off what is too old at `now`, a step for each space that changes, for they can be thousands."""
        wrong = [key for key, shown in self._shown.items() if shown.fresh != shown.state.is_fresh(now, self.max_age)]
        for key in wrong:
            if shown := self._shown.get(key):
                # old ones return where the clock is put right
                self._show(key, shown.state, fresh=shown.state.is_fresh(now, self.max_age))
                yield

    def render(self, now: float, *, openmetrics: bool, names: Collection[str] = ()) -> Iterator[bytes]:
        """The page in pieces, without OpenMetrics' closing line; `names` keeps the families or samples of that name."""
        for _ in self.expire(now):
            pass
        for index, family in enumerate(_PIECES):
            if is_wanted(family, names):
                yield header(family, openmetrics=openmetrics)
                for group in self._groups:
                    yield group.texts[index].joined
        accounts = [(view, spell(view.labels)) for view in self._accounts()]
        for account_family in ACCOUNT_FAMILIES:
            if is_wanted(account_family, names):
                yield header(account_family, openmetrics=openmetrics)
                yield lines(account_family, accounts)

    def size(self, account: str) -> Size:
        """Of the account's spaces whose numbers are shown."""
        return self._sizes.get(account, _NOTHING)

    def views(self, now: float) -> Iterator[SpaceView]:
        """What the page shows, as values."""
        for key, shown in self._shown.items():
            yield self._view(key, shown.state, shown.state.is_fresh(now, self.max_age))

    def _show(self, key: Key, state: SpaceState, *, fresh: bool) -> None:
        shown = self._shown.get(key)
        group = shown.group if shown else self._group_with_room()
        pieces = tuple(_pieces(self._view(key, state, fresh)))
        size = _size(pieces) if fresh else _NOTHING
        self._count(key[0], size, before=shown.size if shown else _NOTHING)
        self._shown[key] = _Shown(state, fresh, group, size)
        group.put(key, pieces)

    def _count(self, account: str, size: Size, *, before: Size) -> None:
        sums = zip(self.size(account), size, before, strict=True)
        self._sizes[account] = Size(*(total + now - then for total, now, then in sums))

    def _group_with_room(self) -> _Group:
        while self._roomy and len(self._roomy[-1].keys) >= _GROUP:
            self._roomy.pop()
        if not self._roomy:
            self._roomy.append(_Group())
            self._groups.append(self._roomy[-1])
        return self._roomy[-1]


def _pieces(view: SpaceView) -> Iterator[bytes]:
    """A space's lines, a piece a family."""
    numbers = [(number, spell(number.labels)) for number in view.numbers]
    yield from (lines(family, numbers) for family in NUMBER_FAMILIES)
    space = [(view, spell(view.labels))]
    yield from (lines(family, space) for family in SPACE_FAMILIES)


def size_of(view: SpaceView) -> Size:
    """What a scrape has of one space."""
    return _size(_pieces(view))


def _size(pieces: Iterable[bytes]) -> Size:
    text = b"".join(pieces)
    return Size(1, text.count(b"\n"), len(text))


class CatalogueCollector(Collector):
    """The same rows for prometheus_client: slower, and the oracle for the page."""

    def __init__(
        self, spaces: Callable[[], Iterable[SpaceView]], accounts: Callable[[], Iterable[AccountView]]
    ) -> None:
        self._spaces = spaces
        self._accounts = accounts

    def describe(self) -> Iterator[Metric]:
        """Every family without samples; without this a registry answers nothing to `name[]`."""
        yield from (Metric(family.name, family.help, family.type) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        spaces, accounts = tuple(self._spaces()), tuple(self._accounts())
        numbers = tuple(number for space in spaces for number in space.numbers)
        yield from (_metric(family, numbers) for family in NUMBER_FAMILIES)
        yield from (_metric(family, spaces) for family in SPACE_FAMILIES)
        yield from (_metric(family, accounts) for family in ACCOUNT_FAMILIES)


def _metric(family: Family[Subject], subjects: Iterable[Subject]) -> Metric:
    metric = Metric(family.name, family.help, family.type)
    for subject in subjects:
        for labels, value in family.samples(subject):
            metric.add_sample(sample_name(family), dict(subject.labels + labels), value)
    return metric
