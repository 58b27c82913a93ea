"""When a space is due, as arithmetic. Knows no scheduler and no clock."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from exporter.polling.plan import Plan

_FIRST_PAUSE_SECONDS = 10.0
_MAX_INTERVALS = 6
_MAX_PAUSE_SECONDS = 3600.0
_SAME_SLOT = 1e-3
"""A due time can be this share of an interval before its slot, by rounding."""


@dataclass(frozen=True, slots=True)
class Start:
    """A space's start in the schedule: `slot` is its first regular time, `due` when it is polled first."""

    slot: float
    due: float


def starts(spaces: Sequence[str], known: Mapping[str, float], plan: Plan, now: float) -> dict[str, Start]:
    """The start of each space; `known` has the next slots of the spaces whose values are known.

    Spaces without a value are first. A known space keeps its slot; if that has passed, it is polled as soon as the
    budget allows, the one that waits longest first.
    """
    slots = {space: now + plan.slot(index) for index, space in enumerate(spaces)}
    farthest = max(slots.values(), default=now)
    # a slot farther ahead than any can be is from a longer interval, or from a clock that was wrong
    slots |= {space: known[space] for space in spaces if known.get(space, math.inf) <= farthest}
    ordered = sorted(spaces, key=lambda space: (space in known, slots[space]))
    earliest = {space: now + rank / plan.qps for rank, space in enumerate(ordered)}
    return {
        space: Start(slots[space], max(slots[space], earliest[space]) if space in known else earliest[space])
        for space in ordered
    }


def next_due(*, due: float, slot: float, interval: float, now: float) -> float:
    """When a space is due again that was due at `due` and has been polled: its first slot after that, or now if that
    has passed, so that a late space is late but never skipped."""
    slots = max(0, math.floor((due - slot) / interval + _SAME_SLOT) + 1)
    return max(now, slot + slots * interval)


def pause_after_failure(failures: int, interval: float, random: Random) -> float:
    """Seconds until a space is due again after `failures` temporary failures in a row: exponential backoff up to the
    interval, with jitter, so that spaces that failed together are not polled together."""
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), interval)
    return longest * random.uniform(0.5, 1.0)


def pause_after_rejection(failures: int, interval: float, random: Random) -> float:
    """Seconds until a space is due again after `failures` permanent failures in a row: 1, 2, 4, then 6 intervals, at
    most an hour (or one interval, if that is longer), with jitter. It is never given up: policies get corrected."""
    intervals = min(2.0 ** min(failures - 1, 16), _MAX_INTERVALS)
    longest = max(interval, min(interval * intervals, _MAX_PAUSE_SECONDS))
    return longest * random.uniform(0.9, 1.0)
