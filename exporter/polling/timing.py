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
"""Maximum rounding error, as a share of the interval: a due time can be this much before its slot."""


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a space in the schedule: its first regular `slot`, and the time of its first poll (`due`). Both are
    in monotonic seconds."""

    slot: float
    due: float


def start_times(spaces: Sequence[str], next_slots: Mapping[str, float], plan: Plan, now: float) -> dict[str, Start]:
    """Return the start of each space. `next_slots` maps spaces to their stored next slots.

    Spaces without a stored slot are due first, one every 1/qps seconds. The other spaces keep their slots and are due
    at their slots, but not before the spaces without a slot and the spaces with earlier slots (1/qps seconds for each).
    A stored slot that is later than all new slots is replaced with a new slot.
    """
    slots = {space: now + plan.slot(index) for index, space in enumerate(spaces)}
    latest_slot = max(slots.values(), default=now)
    # a later stored slot is wrong: the interval was longer, or the system clock was wrong
    slots |= {space: next_slots[space] for space in spaces if next_slots.get(space, math.inf) <= latest_slot}
    ordered = sorted(spaces, key=lambda space: (space in next_slots, slots[space]))
    earliest = {space: now + rank / plan.qps for rank, space in enumerate(ordered)}
    return {
        space: Start(slots[space], max(slots[space], earliest[space]) if space in next_slots else earliest[space])
        for space in ordered
    }


def next_due(*, due: float, slot: float, interval: float, now: float) -> float:
    """Return the next due time of a space that was due at `due` and has been polled: its first slot after `due`, or now
    if that slot has passed: then the space is polled immediately instead of skipped."""
    slots = max(0, math.floor((due - slot) / interval + _SLOT_TOLERANCE) + 1)
    return max(now, slot + slots * interval)


def pause_after_failure(failures: int, interval: float, random: Random) -> float:
    """Return the seconds until the next attempt after `failures` consecutive failures, if the last one is temporary:
    exponential backoff from 10 s up to the interval. Jitter (50 to 100 %) spreads the spaces that failed together."""
    max_pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 16), interval)
    return max_pause * random.uniform(0.5, 1.0)


def pause_after_rejection(failures: int, interval: float, random: Random) -> float:
    """Return the seconds until the next poll after `failures` consecutive failures, if the last one is permanent (a
    rejection or denial): 1, 2, 4, then 6 intervals, but at most an hour (or one interval, if longer). Jitter is 90 to
    100 %. Polls continue, because a permission or setting can be corrected."""
    intervals = min(2.0 ** min(failures - 1, 16), _MAX_INTERVALS)
    max_pause = max(interval, min(interval * intervals, _MAX_PAUSE_SECONDS))
    return max_pause * random.uniform(0.9, 1.0)
