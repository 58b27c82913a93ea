import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtual_time import VirtualClock, run

from exporter.polling.budget import Budget, Latency, Permits, Rate, reached_qps

YEAR = 365 * 86_400.0


# Permits: arithmetic


def test_sends_are_spaced_evenly() -> None:
    permits = Permits()
    assert permits.delay(now=100, qps=4) == 0
    permits.start_request(now=100, qps=4)
    assert permits.delay(now=100, qps=4) == 0.25
    assert permits.delay(now=100.125, qps=4) == 0.125
    assert permits.delay(now=100.25, qps=4) == 0


def test_a_permit_comes_back_one_second_after_the_answer() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=1)
    permits.end_request(now=103)
    assert permits.delay(now=103, qps=1) == 1
    assert permits.delay(now=103.75, qps=1) == 0.25
    assert permits.delay(now=104, qps=1) == 0


def test_only_an_answer_helps_while_every_permit_is_under_way() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=2)
    permits.start_request(now=100.5, qps=2)
    assert permits.delay(now=200, qps=2) == math.inf
    permits.end_request(now=200)
    assert permits.delay(now=200, qps=2) == 1
    assert permits.delay(now=201, qps=2) == 0


def test_a_fraction_has_one_permit_more_and_each_is_held_for_longer() -> None:
    permits = Permits()
    for sent in (100, 101):
        assert permits.delay(now=sent, qps=1.6) == 0
        permits.start_request(now=sent, qps=1.6)
    assert permits.delay(now=110, qps=1.6) == math.inf
    permits.end_request(now=110)
    assert permits.delay(now=110, qps=1.6) == 1.25
    assert permits.delay(now=110, qps=2) == 1


def test_a_higher_rate_shortens_the_wait_for_the_next_slot() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=0.01)
    permits.end_request(now=100)
    assert permits.delay(now=101, qps=0.01) == 99
    assert permits.delay(now=101, qps=5) == 0


def test_below_one_query_a_second_a_single_permit_is_held_for_longer() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=0.25)
    assert permits.delay(now=101, qps=0.25) == math.inf
    permits.end_request(now=102)
    assert permits.delay(now=102, qps=0.25) == 4
    assert permits.delay(now=106, qps=0.25) == 0


def test_a_lower_rate_waits_for_as_many_permits_as_it_lacks() -> None:
    permits = Permits()
    for sent in (100.0, 100.25, 100.5, 100.75):
        permits.start_request(now=sent, qps=4)
    for answered in (101.0, 101.25, 101.5):
        permits.end_request(now=answered)
    assert permits.delay(now=101.5, qps=4) == 0.5
    assert permits.delay(now=101.5, qps=2) == 1
    assert permits.delay(now=101.5, qps=1) == math.inf


# Rate: arithmetic


def test_the_rate_starts_at_the_limit_without_a_pause() -> None:
    rate = Rate(10)
    assert rate.current(now=0) == 10
    assert rate.pause_left(now=0) == 0


def test_throttling_pauses_as_long_as_asked_and_halves_the_rate() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=20)
    assert rate.pause_left(now=100) == 20
    assert rate.pause_left(now=115) == 5
    assert rate.pause_left(now=120) == 0
    assert rate.current(now=100) == 5


def test_the_rate_climbs_back_to_the_limit_and_no_further() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=0)
    assert [rate.current(now=now) for now in (100, 124, 160, 220, 500)] == [5, 6, 7.5, 10, 10]


def test_requests_under_way_when_the_rate_was_halved_do_not_halve_it_again() -> None:
    rate = Rate(10)
    for sent_at in (99.0, 99.5, 100.0):
        rate.on_throttled(now=100, sent_at=sent_at, wait_seconds=0)
    assert rate.current(now=100) == 5
    rate.on_throttled(now=124, sent_at=100.5, wait_seconds=0)
    assert rate.current(now=124) == 3


def test_the_rate_never_falls_below_a_sixteenth_of_the_limit() -> None:
    rate = Rate(16)
    for now in range(100, 120):
        rate.on_throttled(now=now, sent_at=now - 0.5, wait_seconds=0)
    assert rate.current(now=119) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(1, 300), st.floats(0, 60), st.booleans()), max_size=12), st.floats(1, 900))
def test_the_mean_rate_is_that_of_the_last_ten_minutes_with_pauses_as_zero(
    story: list[tuple[float, float, bool]], then: float
) -> None:
    rate, now, step = Rate(10), 1000.0, 0.25
    allowed: list[float] = []

    def look(until: float) -> None:
        nonlocal now
        while now < until:
            allowed.append(0.0 if rate.pause_left(now) else rate.current(now))
            now += step

    look(now + 700)
    for wait, pause, again in story:
        look(now + wait)
        rate.on_throttled(now, sent_at=now, wait_seconds=pause)
        if again:  # a request that was in flight
            rate.on_throttled(now, sent_at=now - 1, wait_seconds=pause)
    look(now + then)

    latest = allowed[-round(600 / step) :]
    assert rate.mean(now) == pytest.approx(sum(latest) / len(latest), abs=0.05)


def test_a_rest_is_one_hold_time_of_the_limit_now() -> None:
    permits = Permits()
    permits.hold_off(now=100)

    assert (permits.delay(now=100, qps=0.01), permits.delay(now=100, qps=5), permits.delay(now=101, qps=5)) == (
        100,
        1,
        0,
    )


def test_another_limit_keeps_the_share_that_throttling_left() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=0)
    rate.limit = 4

    assert [rate.current(now=now) for now in (100, 160, 220)] == [2, 3, 4]


def test_the_rate_does_not_climb_while_nothing_may_be_sent() -> None:
    rate = Rate(limit=10)
    rate.on_throttled(now=100, sent_at=100, wait_seconds=60)

    assert (rate.current(now=160), rate.current(now=208)) == (5, 7)


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(60, 60), (61, 60), (YEAR, 60), (math.inf, 60), (0, 0), (-5, 0), (-math.inf, 0), (math.nan, 0)],
)
def test_an_absurd_wait_pauses_for_nothing_to_a_minute(asked: float, granted: float) -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=asked)
    assert rate.pause_left(now=100) == granted
    assert rate.current(now=100) == 5


@pytest.mark.parametrize("second", [0.0, 5.0, -5.0, math.nan])
def test_a_shorter_wait_does_not_shorten_the_pause(second: float) -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=30)
    rate.on_throttled(now=101, sent_at=99, wait_seconds=second)
    assert rate.pause_left(now=101) == 29


# Latency and what a budget reaches: arithmetic


@pytest.mark.parametrize(
    ("qps", "latency", "reached"),
    [(10, 0, 10), (10, 0.25, 8), (5, 0.5, 10 / 3), (1.6, 0.25, 4 / 3), (0.5, 0.5, 0.4), (0.01, 0, 0.01)],
)
def test_a_budget_reaches_its_permits_by_the_time_that_each_is_held(qps: float, latency: float, reached: float) -> None:
    assert reached_qps(qps, latency) == pytest.approx(reached)


def latency_of(*requests: float | None) -> float:
    """The mean after requests of so many seconds; None is a timeout after 10 s."""
    latency = Latency()
    for seconds in requests:
        latency.add(10 if seconds is None else seconds, answered=seconds is not None)
    return latency.mean


def test_200_ms_are_assumed_until_a_request_was_measured() -> None:
    assert (latency_of(), latency_of(0.5)) == (0.2, 0.5)


def test_the_latest_hundred_requests_count() -> None:
    assert latency_of(*[8] * 500, *[0.25] * 100) == 0.25


def test_a_request_without_an_answer_counts_for_it_holds_a_permit() -> None:
    assert latency_of(1, None, 1, None, 1, None) == 5.5


def test_an_outage_does_not_lengthen_the_interval_by_which_it_is_noticed() -> None:
    assert latency_of(*[1] * 97, *[None] * 1000) == pytest.approx(1.27)


def test_requests_without_an_answer_do_not_count_before_the_first_answer() -> None:
    assert (latency_of(None, None), latency_of(None, None, 0.5)) == (0.2, 0.5)


def test_after_an_outage_requests_without_an_answer_count_again() -> None:
    assert latency_of(1, None, None, None, None, 1, None) == pytest.approx(7)


# Budget: waiting, in virtual time


def moments(*expected: float) -> object:
    """Within what a loop may round a timer."""
    return pytest.approx(list(expected), abs=1e-6)


async def request(budget: Budget, sends: list[float], *, lasts: float) -> None:
    async with budget.permit():
        sends.append(VirtualClock().monotonic())
        await asyncio.sleep(lasts)


def sends_of(budget_qps: float, story: Callable[[Budget, list[float]], Awaitable[None]]) -> list[float]:
    """When requests were sent while the story ran."""
    sends: list[float] = []

    async def main() -> None:
        await story(Budget(budget_qps, VirtualClock()), sends)

    run(main())
    return sends


def test_the_budget_waits_for_the_slot_and_for_the_permit() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        await asyncio.gather(*(request(budget, sends, lasts=0.7) for _ in range(5)))

    assert sends_of(2, story) == moments(0, 0.5, 1.7, 2.2, 3.4)


def test_waiting_is_first_come_first_served() -> None:
    async def main() -> list[int]:
        budget = Budget(2.5, VirtualClock())
        served: list[int] = []

        async def caller(number: int) -> None:
            await asyncio.sleep(number / 100)
            async with budget.permit():
                served.append(number)
                await asyncio.sleep(3 - number % 3)

        await asyncio.gather(*(caller(number) for number in reversed(range(30))))
        return served

    assert run(main()) == list(range(30))


def test_a_cancelled_waiter_gives_its_turn_up_and_costs_nothing() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        first, second, third, fourth = (asyncio.create_task(request(budget, sends, lasts=0.5)) for _ in range(4))
        await asyncio.sleep(0.25)
        second.cancel()  # its turn is next
        third.cancel()  # it waits for its turn
        await asyncio.gather(first, fourth)

    assert sends_of(1, story) == moments(0, 1.5)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_waiter_cancelled_at_the_moment_of_its_turn_holds_nobody_up(victim: int) -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        tasks = [asyncio.create_task(request(budget, sends, lasts=0.5)) for _ in range(4)]
        asyncio.get_running_loop().call_at(1.5, tasks[victim].cancel)
        await asyncio.wait(tasks)

    assert sends_of(1, story) == moments(0, 1.5, 3)


def test_a_request_cancelled_under_way_gives_its_permit_back_a_second_later() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        first, second = (asyncio.create_task(request(budget, sends, lasts=100)) for _ in range(2))
        await asyncio.sleep(0.25)
        first.cancel()
        await asyncio.sleep(2)
        second.cancel()

    assert sends_of(1, story) == moments(0, 1.25)


def test_a_request_that_times_out_or_fails_gives_its_permit_back_a_second_later() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        async def attempt() -> None:
            async with asyncio.timeout(0.25):
                await request(budget, sends, lasts=0.5)

        async def failing() -> None:
            async with budget.permit():
                sends.append(VirtualClock().monotonic())
                raise ConnectionError

        with pytest.raises(TimeoutError):
            await attempt()
        with pytest.raises(ConnectionError):
            await asyncio.create_task(failing())
        await request(budget, sends, lasts=0)

    assert sends_of(1, story) == moments(0, 1.25, 2.25)


def test_a_pause_applies_to_those_who_already_wait() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        requests = [asyncio.create_task(request(budget, sends, lasts=0.25)) for _ in range(3)]
        await asyncio.sleep(0.75)
        budget.on_throttled(sent_at=0.5, wait_seconds=30)
        await asyncio.gather(*requests)

    sent = sends_of(2, story)
    assert sent[:2] == moments(0, 0.5)
    assert sent[2:] == moments(30.75)


def test_a_request_that_waits_is_sent_at_once_when_the_limit_is_raised() -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        requests = [asyncio.create_task(request(budget, sends, lasts=0)) for _ in range(3)]
        await asyncio.sleep(2)
        budget.set_limit(5)
        await asyncio.gather(*requests)

    assert sends_of(0.01, story) == moments(0, 2, 2.2)


def test_what_is_sustained_counts_the_pauses_of_the_last_ten_minutes() -> None:
    async def main() -> list[tuple[float, float]]:
        budget = Budget(10, VirtualClock())
        await asyncio.sleep(1000)
        budget.on_throttled(sent_at=999, wait_seconds=60)
        seen = []
        for seconds in (0, 300, 600):
            await asyncio.sleep(seconds)
            seen.append((budget.current_qps(), round(budget.sustained_qps(), 6)))
        return seen

    assert run(main()) == [(5, 5), (10, 8.5), (10, 10)]


def test_throttling_lowers_the_rate_of_what_is_sent_and_leaves_the_limit() -> None:
    async def main() -> tuple[float, int]:
        budget = Budget(10, VirtualClock())
        await asyncio.sleep(1)
        budget.on_throttled(sent_at=0.5, wait_seconds=0)
        budget.on_throttled(sent_at=0.75, wait_seconds=0)
        return budget.current_qps(), budget.concurrency

    assert run(main()) == (5, 10)


@pytest.mark.parametrize(("qps", "concurrency"), [(0.1, 1), (1, 1), (1.9, 2), (10, 10)])
def test_as_many_requests_are_under_way_at_once_as_there_are_permits(qps: float, concurrency: int) -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        assert budget.concurrency == concurrency
        requests = [asyncio.create_task(request(budget, sends, lasts=100)) for _ in range(20)]
        await asyncio.sleep(99)
        for waiting in requests:
            waiting.cancel()

    assert len(sends_of(qps, story)) == concurrency


@pytest.mark.parametrize("latency", [0.0, 0.005, 0.025, 0.2, 1.0, 3.0])
def test_the_budget_is_used(latency: float) -> None:
    async def story(budget: Budget, sends: list[float]) -> None:
        async def caller() -> None:
            while True:
                await request(budget, sends, lasts=latency)

        callers = [asyncio.create_task(caller()) for _ in range(300)]
        await asyncio.sleep(120)
        for running in callers:
            running.cancel()
        await asyncio.wait(callers)

    sent = [moment for moment in sends_of(10, story) if moment >= 20]
    assert len(sent) / 100 >= 0.93 * 10 / (1 + latency)


# Whatever happens, the server never sees more than the limit


class End(StrEnum):
    ANSWERED = "answered"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request: what happens to it, after how long, and at what share of that time it reaches the server."""

    end: End
    latency: float
    arrives_at_share: float


@dataclass(frozen=True, slots=True)
class Caller:
    """Tries until an attempt is answered; may be cancelled, wherever it then is."""

    starts_after: float
    attempts: tuple[Attempt, ...]
    cancelled_after: float | None


shares = st.sampled_from((0.0, 1.0)) | st.floats(0, 1)
latencies = st.sampled_from((0.0, 0.005, 0.1, 1.0, 5.0)) | st.floats(0, 5)
attempts = st.builds(Attempt, st.sampled_from(End), latencies, shares)
callers = st.builds(
    Caller,
    starts_after=st.just(0.0) | st.floats(0, 5),
    attempts=st.lists(attempts, min_size=1, max_size=3).map(tuple),
    cancelled_after=st.none() | st.floats(0, 20),
)
rates = st.sampled_from((0.1, 0.5, 1.0, 1.9, 2.5, 10.0)) | st.floats(0.1, 10)


def arrivals_at_server(qps: float, fleet: list[Caller]) -> list[float]:
    """The moments at which the fleet's requests reached the server, in order."""
    arrivals: list[float] = []

    async def attempt(budget: Budget, planned: Attempt) -> None:
        clock = VirtualClock()
        async with budget.permit():
            sent_at = clock.monotonic()
            try:
                await asyncio.sleep(planned.latency)
                if planned.end is End.TIMED_OUT:
                    raise TimeoutError
                if planned.end is End.THROTTLED:
                    budget.on_throttled(sent_at=sent_at, wait_seconds=planned.latency / 2)
                if planned.end is not End.ANSWERED:
                    raise ConnectionError
            finally:  # also where the caller was cancelled: what was sent may have arrived until then
                over_at = clock.monotonic()
                arrivals.append(min(over_at, sent_at + planned.arrives_at_share * (over_at - sent_at)))

    async def call(budget: Budget, caller: Caller) -> None:
        await asyncio.sleep(caller.starts_after)
        for planned in caller.attempts:
            with suppress(TimeoutError, ConnectionError):
                await attempt(budget, planned)
                return

    async def main() -> None:
        budget = Budget(qps, VirtualClock())
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(call(budget, caller)) for caller in fleet]
        for task, caller in zip(tasks, fleet, strict=True):
            if caller.cancelled_after is not None:
                loop.call_later(caller.cancelled_after, task.cancel)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)

    run(main())
    return sorted(arrivals)


def too_early(arrivals: list[float], qps: float) -> Iterator[tuple[float, float]]:
    """Arrivals that are too near to the one that had their permit before: ceil(qps)/qps seconds, a second or more."""
    size = math.ceil(qps)
    window = size / qps
    for earlier, later in zip(arrivals, arrivals[size:], strict=False):
        if later < earlier + window - 1e-9:
            yield earlier, later


def steady(count: int, *, latency: float, share: float) -> list[Caller]:
    return [Caller(0, (Attempt(End.ANSWERED, latency, share),), None)] * count


@settings(max_examples=300)
@given(qps=rates, fleet=st.lists(callers, min_size=1, max_size=40))
@example(qps=10, fleet=steady(5, latency=1, share=1) + steady(35, latency=0.005, share=0))
@example(qps=1, fleet=steady(1, latency=1, share=1) + steady(1, latency=0, share=0))
@example(qps=10, fleet=steady(60, latency=0.005, share=0))
def test_no_second_ever_holds_more_arrivals_than_the_limit(qps: float, fleet: list[Caller]) -> None:
    assert list(too_early(arrivals_at_server(qps, fleet), qps)) == []


def test_every_caller_that_was_not_cancelled_is_served() -> None:
    cancelled = Caller(0, (Attempt(End.ANSWERED, 1, 0.5),), cancelled_after=0.75)
    fleet = steady(10, latency=0.5, share=0.5) + [cancelled] * 20 + steady(10, latency=0.5, share=0.5)
    assert len(arrivals_at_server(2, fleet)) == 20


def test_a_request_that_is_a_little_late_for_its_slot_makes_the_next_one_no_later() -> None:
    permits = Permits()
    permits.start_request(0.0, 10)  # slots at 0.1, 0.2, …
    permits.start_request(0.14, 10)

    assert permits.delay(0.14, 10) == pytest.approx(0.06)


def test_one_that_is_late_by_half_a_gap_or_more_begins_anew_so_that_nothing_bursts() -> None:
    permits = Permits()
    permits.start_request(0.0, 10)
    permits.start_request(0.16, 10)

    assert permits.delay(0.16, 10) == pytest.approx(0.1)
