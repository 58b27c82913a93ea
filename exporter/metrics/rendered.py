"""The rendered page: a block of sample lines for each space, replaced when a poll changes it, and joined at a scrape.

prometheus_client needs seconds for ten thousand numbers and holds the interpreter meanwhile.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.clock import Now
from exporter.metrics.catalogue import (
    ACCOUNT_FAMILIES,
    EXPORTER_FAMILIES,
    NUMBER_FAMILIES,
    SPACE_FAMILIES,
    AccountView,
    ExporterView,
    Family,
    Named,
    SpaceView,
)
from exporter.metrics.lines import header, is_wanted, lines, spell
from exporter.state.store import Key

_BLOCK_FAMILIES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES)
"""The families of a space's block."""
_SPACES_AT_ONCE = 1000
"""Joined in one step, in about a millisecond."""


@dataclass(frozen=True, slots=True)
class _Block:
    """What the page shows of a space, as values and as lines by family."""

    view: SpaceView
    lines: tuple[bytes, ...]


class RenderedMetrics:
    """The blocks of all spaces."""

    def __init__(self) -> None:
        self._blocks: dict[Key, _Block] = {}

    def update(self, view: SpaceView) -> None:
        """Render a space's new state."""
        self._blocks[view.account, view.space.id] = _Block(view, tuple(_lines_of(view)))

    def retain(self, keys: Collection[Key]) -> None:
        """Remove all other spaces."""
        for key in self._blocks.keys() - set(keys):
            del self._blocks[key]

    def expire(self, now: Now, max_age: float) -> Iterator[None]:
        """Remove the numbers that are too old at `now`, one space at each step, for there can be thousands."""
        for key, block in list(self._blocks.items()):
            fresh = block.view.record.is_fresh(now, max_age)
            if fresh != block.view.fresh and self._blocks.get(key) is block:
                # old ones return where the clock was wrong and is corrected
                self.update(replace(block.view, fresh=fresh))
                yield

    def render(
        self,
        accounts: Sequence[AccountView],
        exporter: ExporterView,
        *,
        openmetrics: bool,
        names: Collection[str] = (),
    ) -> Iterator[bytes]:
        """The page as it is at the first step, a part of a family at each step, without OpenMetrics' last line; `names`
        selects families or samples."""
        blocks = [block.lines for block in self._blocks.values()]
        for index, family in enumerate(_BLOCK_FAMILIES):
            if is_wanted(family, names):
                yield header(family, openmetrics=openmetrics)
                for start in range(0, len(blocks), _SPACES_AT_ONCE):
                    yield b"".join([block[index] for block in blocks[start : start + _SPACES_AT_ONCE]])
        for families, subjects in ((ACCOUNT_FAMILIES, accounts), (EXPORTER_FAMILIES, [exporter])):
            yield _rendered(families, subjects, openmetrics=openmetrics, names=names)

    def views(self, now: Now, max_age: float) -> Iterator[SpaceView]:
        """What the page shows, as values. Safe to call from another thread."""
        for block in self._blocks.copy().values():
            record = block.view.record
            yield replace(
                block.view, fresh=record.is_fresh(now, max_age), seconds_since_success=record.seconds_since_success(now)
            )


def _lines_of(view: SpaceView) -> Iterator[bytes]:
    """A space's lines, by family."""
    numbers = [(number, spell(number.labels)) for number in view.numbers]
    yield from (lines(family, numbers) for family in NUMBER_FAMILIES)
    space = [(view, spell(view.labels))]
    yield from (lines(family, space) for family in SPACE_FAMILIES)


def _rendered(
    families: Sequence[Family[Any]], subjects: Sequence[Named], *, openmetrics: bool, names: Collection[str]
) -> bytes:
    spelled = [(subject, spell(subject.labels)) for subject in subjects]
    wanted = [family for family in families if is_wanted(family, names)]
    return b"".join([header(family, openmetrics=openmetrics) + lines(family, spelled) for family in wanted])
