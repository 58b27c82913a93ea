"""Calculates when a space is due. Does not use a scheduler or a clock."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from exporter.polling.plan import Plan

_FIRST_PAUSE_SECONDS = 10.0
_MAX_INTERVALS = 6
_MAX_PAUSE_SECONDS = 3600.0
_SLOT_TOLERANCE = 1e-3
"""Rounding can put a due time before its slot by this share of the interval."""


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a space in the schedule: its first regular `slot`, and the time of its first poll (`due`)."""

    slot: float
    due: float


def start_times(spaces: Sequence[str], next_slots: Mapping[str, float], plan: Plan, now: float) -> dict[str, Start]:
    """Return the start of each space. `next_slots` has the next slots of the spaces with stored values.

    Spaces without a value are polled first. A space with a stored value keeps its slot. If the slot has passed, the
    space is polled as soon as the budget allows, earliest slot first.
    """
    slots = {space: now + plan.slot(index) for index, space in enumerate(spaces)}
    latest_slot = max(slots.values(), default=now)
    # ignore a slot after the latest possible one: the interval was longer, or the clock was wrong
    slots |= {space: next_slots[space] for space in spaces if next_slots.get(space, math.inf) <= latest_slot}
    ordered = sorted(spaces, key=lambda space: (space in next_slots, slots[space]))
    earliest = {space: now + rank / plan.qps for rank, space in enumerate(ordered)}
    return {
        space: Start(slots[space], max(slots[space], earliest[space]) if space in next_slots else earliest[space])
        for space in ordered
    }


def next_due(*, due: float, slot: float, interval: float, now: float) -> float:
    """Return the next due time of a space that was due at `due` and has been polled: its first slot after `due`, or now
    if that slot has passed. A late space is never skipped."""
    slots = max(0, math.floor((due - slot) / interval + _SLOT_TOLERANCE) + 1)
    return max(now, slot + slots * interval)


def pause_after_failure(failures: int, interval: float, random: Random) -> float:
    """Return the seconds until the next poll after `failures` consecutive temporary failures: exponential backoff up to
    the interval. Jitter distributes the next polls of spaces that failed together."""
    max_pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), interval)
    return max_pause * random.uniform(0.5, 1.0)


def pause_after_rejection(failures: int, interval: float, random: Random) -> float:
    """Return the seconds until the next poll after `failures` consecutive permanent failures: 1, 2, 4, then 6
    intervals, but at most an hour (or one interval, if longer), with jitter. Polls continue because a policy can be
    corrected."""
    intervals = min(2.0 ** min(failures - 1, 16), _MAX_INTERVALS)
    max_pause = max(interval, min(interval * intervals, _MAX_PAUSE_SECONDS))
    return max_pause * random.uniform(0.9, 1.0)
