"""What is due, and when it is called: one timer for all."""

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest
from virtual_time import VirtualClock, run

from exporter.polling.schedule import Schedule


def called(play: Callable[[Schedule, list[tuple[float, str]]], None], seconds: float) -> list[tuple[float, str]]:
    """When each was called by a schedule that someone played with before it ran so long."""

    async def main() -> list[tuple[float, str]]:
        schedule, calls = Schedule(VirtualClock()), list[tuple[float, str]]()
        schedule.start()
        play(schedule, calls)
        await asyncio.sleep(seconds)
        schedule.pause()
        await schedule.stop()
        return calls

    return run(main())


def noting(calls: list[tuple[float, str]], name: str) -> Callable[[], None]:
    return lambda: calls.append((round(asyncio.get_running_loop().time(), 3), name))


def test_each_is_called_when_it_is_due_and_every_interval_from_then_on() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("b", due=2.5, interval=4, on_due=noting(calls, "b"))
        schedule.add("a", due=1, interval=3, on_due=noting(calls, "a"))

    assert called(play, 8) == [(1, "a"), (2.5, "b"), (4, "a"), (6.5, "b"), (7, "a")]


def test_what_is_postponed_or_hurried_counts_from_its_new_time() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        for name, due in (("later", 1.0), ("sooner", 5.0)):
            schedule.add(name, due=due, interval=100, on_due=noting(calls, name))
        schedule.reschedule("later", 3)
        schedule.reschedule("sooner", 2)

    assert called(play, 50) == [(2, "sooner"), (3, "later")]


def test_what_is_removed_or_added_anew_is_not_called_for_what_was_said_before() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("gone", due=1, interval=1, on_due=noting(calls, "gone"))
        schedule.add("anew", due=1, interval=1, on_due=noting(calls, "before"))
        schedule.remove("gone")
        schedule.add("anew", due=2, interval=100, on_due=noting(calls, "anew"))

    assert called(play, 50) == [(2, "anew")]


def test_several_times_that_passed_are_one_call() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("late", due=-1000, interval=10, on_due=noting(calls, "late"))

    assert called(play, 15) == [(0, "late"), (10, "late")]


def test_days_without_anything_due_end_when_something_is() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("rare", due=3 * 86_400, interval=86_400, on_due=noting(calls, "rare"))

    assert called(play, 4.5 * 86_400) == [(3 * 86_400, "rare"), (4 * 86_400, "rare")]


def test_a_call_may_put_itself_off_to_now_or_to_any_other_time() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        def again() -> None:
            noting(calls, "again")()
            now = asyncio.get_running_loop().time()
            schedule.reschedule("again", {1: now, 2: now, 3: 7}.get(len(calls), 100))

        schedule.add("again", due=1, interval=100, on_due=again)

    assert called(play, 10) == [(1, "again"), (1, "again"), (1, "again"), (7, "again")]


def test_what_is_postponed_a_hundred_thousand_times_takes_no_room() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("often", due=1e6, interval=1e6, on_due=noting(calls, "often"))
        tracemalloc.start()
        for number in range(100_000):
            schedule.reschedule("often", 1e6 - number)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 100_000

    assert called(play, 10) == []


def test_a_time_that_no_schedule_can_hold_is_refused_where_it_is_said_and_stops_nobody() -> None:
    def play(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        with pytest.raises(OverflowError):
            schedule.add("never", due=1e300, interval=1, on_due=noting(calls, "never"))
        schedule.add("other", due=1, interval=100, on_due=noting(calls, "other"))

    assert called(play, 10) == [(1, "other")]
