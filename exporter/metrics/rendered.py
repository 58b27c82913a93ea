"""The rendered exposition: one block of sample lines for each space, updated after each poll and joined at a scrape.

prometheus_client needs 2.4 to 5.5 s to render 10,000 phone numbers, and blocks all threads in this time (GIL).
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
    Labeled,
    SpaceView,
)
from exporter.metrics.lines import format_labels, header, is_selected, sample_lines
from exporter.state.store import Key

_BLOCK_FAMILIES: tuple[Family[Any], ...] = (*NUMBER_FAMILIES, *SPACE_FAMILIES)
"""The families in the block of a space."""
_SPACES_PER_STEP = 1000
"""Blocks that are joined in one step. A step takes about a millisecond."""


@dataclass(frozen=True, slots=True)
class _Block:
    """The values of a space, and their sample lines for each of `_BLOCK_FAMILIES`."""

    view: SpaceView
    lines: tuple[bytes, ...]


class RenderedMetrics:
    """The values of all spaces, and their rendered sample lines."""

    def __init__(self) -> None:
        self._blocks: dict[Key, _Block] = {}

    def update(self, view: SpaceView) -> None:
        """Render the new values of a space."""
        self._blocks[view.account, view.space.id] = _Block(view, tuple(_lines_by_family(view)))

    def retain(self, keys: Collection[Key]) -> None:
        """Remove all spaces except these."""
        for key in self._blocks.keys() - set(keys):
            del self._blocks[key]

    def expire(self, now: Now, max_age: float) -> Iterator[None]:
        """Remove the phone numbers of spaces whose values are older than `max_age` seconds. Each step updates one
        space, because there can be thousands."""
        for key, block in list(self._blocks.items()):
            fresh = block.view.record.is_fresh(now, max_age)
            if fresh != block.view.fresh and self._blocks.get(key) is block:
                # values can become fresh again when a wrong system clock is corrected
                self.update(replace(block.view, fresh=fresh))
                yield

    def render(
        self, accounts: Sequence[AccountView], exporter: ExporterView, *, openmetrics: bool, names: Collection[str] = ()
    ) -> Iterator[bytes]:
        """Render the exposition in steps, each with at most 1000 spaces. All steps show the spaces of the first step;
        accounts and exporter are rendered in the last two steps. `names` selects families by the name of the family or
        of its samples. Omits the `# EOF` line of OpenMetrics."""
        blocks = [block.lines for block in self._blocks.values()]
        for index, family in enumerate(_BLOCK_FAMILIES):
            if is_selected(family, names):
                yield header(family, openmetrics=openmetrics)
                for start in range(0, len(blocks), _SPACES_PER_STEP):
                    yield b"".join([block[index] for block in blocks[start : start + _SPACES_PER_STEP]])
        for families, subjects in ((ACCOUNT_FAMILIES, accounts), (EXPORTER_FAMILIES, [exporter])):
            yield _render_families(families, subjects, openmetrics=openmetrics, names=names)

    def views(self, now: Now, max_age: float) -> Iterator[SpaceView]:
        """Return the values of all spaces. Safe to call from another thread."""
        for block in self._blocks.copy().values():
            record = block.view.record
            yield replace(
                block.view, fresh=record.is_fresh(now, max_age), seconds_since_success=record.seconds_since_success(now)
            )


def _lines_by_family(view: SpaceView) -> Iterator[bytes]:
    """Return the sample lines of a space for each of `_BLOCK_FAMILIES`."""
    numbers = [(number, format_labels(number.labels)) for number in view.numbers]
    yield from (sample_lines(family, numbers) for family in NUMBER_FAMILIES)
    space = [(view, format_labels(view.labels))]
    yield from (sample_lines(family, space) for family in SPACE_FAMILIES)


def _render_families(
    families: Sequence[Family[Any]], subjects: Sequence[Labeled], *, openmetrics: bool, names: Collection[str]
) -> bytes:
    labeled = [(subject, format_labels(subject.labels)) for subject in subjects]
    selected = [family for family in families if is_selected(family, names)]
    return b"".join([header(family, openmetrics=openmetrics) + sample_lines(family, labeled) for family in selected])
