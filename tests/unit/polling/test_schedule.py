"""The times of the callbacks of a schedule."""

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest
from virtual_time import VirtualClock, run

from exporter.polling.schedule import Schedule


def calls_of(prepare: Callable[[Schedule, list[tuple[float, str]]], None], seconds: float) -> list[tuple[float, str]]:
    """Start a schedule, prepare its entries, and return the time and name of each callback within `seconds`."""

    async def main() -> list[tuple[float, str]]:
        schedule, calls = Schedule(VirtualClock()), list[tuple[float, str]]()
        schedule.start()
        prepare(schedule, calls)
        await asyncio.sleep(seconds)
        schedule.pause()
        await schedule.stop()
        return calls

    return run(main())


def recorder(calls: list[tuple[float, str]], name: str) -> Callable[[], None]:
    """Return a callback that appends the current time and `name` to `calls`."""
    return lambda: calls.append((round(asyncio.get_running_loop().time(), 3), name))


def test_a_callback_is_called_when_it_is_due_and_then_at_each_interval() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("b", due=2.5, interval=4, on_due=recorder(calls, "b"))
        schedule.add("a", due=1, interval=3, on_due=recorder(calls, "a"))

    assert calls_of(prepare, 8) == [(1, "a"), (2.5, "b"), (4, "a"), (6.5, "b"), (7, "a")]


def test_a_rescheduled_callback_is_called_only_at_its_new_time() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        for name, due in (("later", 1.0), ("sooner", 5.0)):
            schedule.add(name, due=due, interval=100, on_due=recorder(calls, name))
        schedule.reschedule("later", 3)
        schedule.reschedule("sooner", 2)

    assert calls_of(prepare, 50) == [(2, "sooner"), (3, "later")]


def test_a_removed_or_replaced_entry_is_not_called() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("removed", due=1, interval=1, on_due=recorder(calls, "removed"))
        schedule.add("replaced", due=1, interval=1, on_due=recorder(calls, "old"))
        schedule.remove("removed")
        schedule.add("replaced", due=2, interval=100, on_due=recorder(calls, "new"))

    assert calls_of(prepare, 50) == [(2, "new")]


def test_several_missed_times_result_in_one_callback() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("late", due=-1000, interval=10, on_due=recorder(calls, "late"))

    assert calls_of(prepare, 15) == [(0, "late"), (10, "late")]


def test_a_callback_is_called_after_days_without_a_due_entry() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("rare", due=3 * 86_400, interval=86_400, on_due=recorder(calls, "rare"))

    assert calls_of(prepare, 4.5 * 86_400) == [(3 * 86_400, "rare"), (4 * 86_400, "rare")]


def test_a_callback_can_reschedule_itself_to_the_current_time_or_later() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        def again() -> None:
            recorder(calls, "again")()
            now = asyncio.get_running_loop().time()
            due_by_call_count = {1: now, 2: now, 3: 7.0}
            schedule.reschedule("again", due_by_call_count.get(len(calls), 100))

        schedule.add("again", due=1, interval=100, on_due=again)

    assert calls_of(prepare, 10) == [(1, "again"), (1, "again"), (1, "again"), (7, "again")]


def test_100000_reschedule_calls_use_less_than_100_kb_of_memory() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        schedule.add("often", due=1e6, interval=1e6, on_due=recorder(calls, "often"))
        tracemalloc.start()
        for number in range(100_000):
            schedule.reschedule("often", 1e6 - number)
        memory, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert memory < 100_000

    assert calls_of(prepare, 10) == []


def test_an_out_of_range_time_raises_an_error_and_other_callbacks_are_called() -> None:
    def prepare(schedule: Schedule, calls: list[tuple[float, str]]) -> None:
        with pytest.raises(OverflowError):
            schedule.add("never", due=1e300, interval=1, on_due=recorder(calls, "never"))
        schedule.add("other", due=1, interval=100, on_due=recorder(calls, "other"))

    assert calls_of(prepare, 10) == [(1, "other")]
