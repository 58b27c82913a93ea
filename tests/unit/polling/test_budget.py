"""The rate limit of an account: permits, throttling, latency, and arrivals at the server."""

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

from exporter.polling.budget import Budget, Latency, Permits, Rate, possible_qps

YEAR = 365 * 86_400.0


# Permits: calculations without waiting


def test_the_time_between_two_sends_is_1_second_divided_by_qps() -> None:
    permits = Permits()
    assert permits.delay(now=100, qps=4) == 0
    permits.start_request(now=100, qps=4)
    assert permits.delay(now=100, qps=4) == 0.25
    assert permits.delay(now=100.125, qps=4) == 0.125
    assert permits.delay(now=100.25, qps=4) == 0


def test_a_permit_is_released_one_second_after_the_response() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=1)
    permits.end_request(now=103)
    assert permits.delay(now=103, qps=1) == 1
    assert permits.delay(now=103.75, qps=1) == 0.25
    assert permits.delay(now=104, qps=1) == 0


def test_without_a_free_permit_the_delay_is_infinite_until_a_request_ends() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=2)
    permits.start_request(now=100.5, qps=2)
    assert permits.delay(now=200, qps=2) == math.inf
    permits.end_request(now=200)
    assert permits.delay(now=200, qps=2) == 1
    assert permits.delay(now=201, qps=2) == 0


def test_permits_are_rounded_up_and_the_hold_time_is_longer_for_a_fractional_qps() -> None:
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


def test_below_1_qps_the_single_permit_has_a_longer_hold_time() -> None:
    permits = Permits()
    permits.start_request(now=100, qps=0.25)
    assert permits.delay(now=101, qps=0.25) == math.inf
    permits.end_request(now=102)
    assert permits.delay(now=102, qps=0.25) == 4
    assert permits.delay(now=106, qps=0.25) == 0


def test_after_a_rate_reduction_the_delay_lasts_until_enough_permits_are_released() -> None:
    permits = Permits()
    for sent in (100.0, 100.25, 100.5, 100.75):
        permits.start_request(now=sent, qps=4)
    for answered in (101.0, 101.25, 101.5):
        permits.end_request(now=answered)
    assert permits.delay(now=101.5, qps=4) == 0.5
    assert permits.delay(now=101.5, qps=2) == 1
    assert permits.delay(now=101.5, qps=1) == math.inf


def test_hold_off_delays_the_first_request_by_one_hold_time() -> None:
    permits = Permits()
    permits.hold_off(now=100)
    assert permits.delay(now=100, qps=0.01) == 100
    assert permits.delay(now=100, qps=5) == 1
    assert permits.delay(now=101, qps=5) == 0


def test_a_request_slightly_after_its_slot_does_not_move_the_next_slot() -> None:
    permits = Permits()
    permits.start_request(now=0, qps=10)  # slots at 0.1, 0.2, …
    permits.start_request(now=0.14, qps=10)
    assert permits.delay(now=0.14, qps=10) == pytest.approx(0.06)


def test_a_request_late_by_more_than_half_of_the_spacing_moves_the_next_slot() -> None:
    permits = Permits()
    permits.start_request(now=0, qps=10)
    permits.start_request(now=0.16, qps=10)
    assert permits.delay(now=0.16, qps=10) == pytest.approx(0.1)


# Rate: calculations without waiting


def test_the_rate_starts_at_the_limit_without_a_pause() -> None:
    rate = Rate(10)
    assert rate.current(now=0) == 10
    assert rate.pause_left(now=0) == 0


def test_throttling_pauses_for_the_retry_after_value_and_halves_the_rate() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=20)
    assert rate.pause_left(now=100) == 20
    assert rate.pause_left(now=115) == 5
    assert rate.pause_left(now=120) == 0
    assert rate.current(now=100) == 5


def test_the_rate_rises_to_the_limit_and_stays_there() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=0)
    assert [rate.current(now=now) for now in (100, 124, 160, 220, 500)] == [5, 6, 7.5, 10, 10]


def test_requests_in_flight_at_a_reduction_do_not_halve_the_rate_again() -> None:
    rate = Rate(10)
    for sent_at in (99.0, 99.5, 100.0):
        rate.on_throttled(now=100, sent_at=sent_at, wait_seconds=0)
    assert rate.current(now=100) == 5
    rate.on_throttled(now=124, sent_at=100.5, wait_seconds=0)
    assert rate.current(now=124) == 3


def test_the_minimum_rate_is_a_sixteenth_of_the_limit() -> None:
    rate = Rate(16)
    for now in range(100, 120):
        rate.on_throttled(now=now, sent_at=now - 0.5, wait_seconds=0)
    assert rate.current(now=119) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(1, 300), st.floats(0, 60), st.booleans()), max_size=12), st.floats(1, 900))
def test_the_mean_rate_covers_the_last_ten_minutes_and_pauses_count_as_zero(
    reductions: list[tuple[float, float, bool]], seconds_after: float
) -> None:
    rate, now, step = Rate(10), 1000.0, 0.25
    sampled: list[float] = []

    def sample(until: float) -> None:
        nonlocal now
        while now < until:
            sampled.append(0.0 if rate.pause_left(now) else rate.current(now))
            now += step

    sample(now + 700)
    for seconds_before, pause, with_request_in_flight in reductions:
        sample(now + seconds_before)
        rate.on_throttled(now, sent_at=now, wait_seconds=pause)
        if with_request_in_flight:
            rate.on_throttled(now, sent_at=now - 1, wait_seconds=pause)
    sample(now + seconds_after)

    latest = sampled[-round(600 / step) :]
    assert rate.mean(now) == pytest.approx(sum(latest) / len(latest), abs=0.05)


def test_a_new_limit_does_not_end_the_reduction_after_throttling() -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=0)
    rate.limit = 4

    assert [rate.current(now=now) for now in (100, 160, 220)] == [2, 3, 4]


def test_the_rate_does_not_rise_in_a_pause() -> None:
    rate = Rate(limit=10)
    rate.on_throttled(now=100, sent_at=100, wait_seconds=60)

    assert (rate.current(now=160), rate.current(now=208)) == (5, 7)


@pytest.mark.parametrize(
    ("wait_seconds", "pause"),
    [(60, 60), (61, 60), (YEAR, 60), (math.inf, 60), (0, 0), (-5, 0), (-math.inf, 0), (math.nan, 0)],
)
def test_a_pause_is_limited_to_0_to_60_seconds(wait_seconds: float, pause: float) -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=wait_seconds)
    assert rate.pause_left(now=100) == pause
    assert rate.current(now=100) == 5


@pytest.mark.parametrize("later_value", [0.0, 5.0, -5.0, math.nan])
def test_a_later_and_shorter_retry_after_value_does_not_shorten_the_pause(later_value: float) -> None:
    rate = Rate(10)
    rate.on_throttled(now=100, sent_at=99, wait_seconds=30)
    rate.on_throttled(now=101, sent_at=99, wait_seconds=later_value)
    assert rate.pause_left(now=101) == 29


# Latency and the possible rate: calculations without waiting


@pytest.mark.parametrize(
    ("qps", "latency", "possible"),
    [(10, 0, 10), (10, 0.25, 8), (5, 0.5, 10 / 3), (1.6, 0.25, 4 / 3), (0.5, 0.5, 0.4), (0.01, 0, 0.01)],
)
def test_the_possible_rate_depends_on_the_budget_and_the_latency(qps: float, latency: float, possible: float) -> None:
    assert possible_qps(qps, latency) == pytest.approx(possible)


def latency_of(*requests: float | None) -> float:
    """Return the mean latency after requests with these durations in seconds; None is a timeout after 10 s."""
    latency = Latency()
    for seconds in requests:
        latency.add(10 if seconds is None else seconds, answered=seconds is not None)
    return latency.mean


def test_the_latency_is_200_ms_before_the_first_measurement() -> None:
    assert (latency_of(), latency_of(0.5)) == (0.2, 0.5)


def test_the_mean_latency_covers_the_last_100_requests() -> None:
    assert latency_of(*[8] * 500, *[0.25] * 100) == 0.25


def test_the_mean_latency_includes_a_request_without_a_response() -> None:
    assert latency_of(1, None, 1, None, 1, None) == 5.5


def test_the_mean_latency_includes_only_the_first_three_requests_of_an_outage() -> None:
    assert latency_of(*[1] * 97, *[None] * 1000) == pytest.approx(1.27)


def test_the_mean_latency_excludes_timeouts_before_the_first_response() -> None:
    assert (latency_of(None, None), latency_of(None, None, 0.5)) == (0.2, 0.5)


def test_the_mean_latency_includes_timeouts_again_after_an_outage() -> None:
    assert latency_of(1, None, None, None, None, 1, None) == pytest.approx(7)


# Budget: waiting, in virtual time


def times(*expected: float) -> object:
    """Match these times within the rounding of timers."""
    return pytest.approx(list(expected), abs=1e-6)


async def send_request(budget: Budget, sends: list[float], *, duration: float) -> None:
    async with budget.permit():
        sends.append(VirtualClock().monotonic())
        await asyncio.sleep(duration)


def send_times(qps: float, scenario: Callable[[Budget, list[float]], Awaitable[None]]) -> list[float]:
    """Return the times at which the scenario sent requests."""
    sends: list[float] = []

    async def main() -> None:
        await scenario(Budget(qps, VirtualClock()), sends)

    run(main())
    return sends


def test_a_request_waits_for_the_next_slot_and_a_permit() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        await asyncio.gather(*(send_request(budget, sends, duration=0.7) for _ in range(5)))

    assert send_times(2, scenario) == times(0, 0.5, 1.7, 2.2, 3.4)


def test_requests_are_served_in_the_order_of_arrival() -> None:
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


def test_a_cancelled_waiting_request_uses_no_permit() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        first, second, third, fourth = (
            asyncio.create_task(send_request(budget, sends, duration=0.5)) for _ in range(4)
        )
        await asyncio.sleep(0.25)
        second.cancel()  # first in the queue
        third.cancel()  # second in the queue
        await asyncio.gather(first, fourth)

    assert send_times(1, scenario) == times(0, 1.5)


@pytest.mark.parametrize("index", [1, 2])
def test_a_request_cancelled_at_the_time_of_its_send_does_not_delay_other_requests(index: int) -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        tasks = [asyncio.create_task(send_request(budget, sends, duration=0.5)) for _ in range(4)]
        asyncio.get_running_loop().call_at(1.5, tasks[index].cancel)
        await asyncio.wait(tasks)

    assert send_times(1, scenario) == times(0, 1.5, 3)


def test_the_permit_of_a_request_cancelled_in_flight_is_released_after_a_second() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        first, second = (asyncio.create_task(send_request(budget, sends, duration=100)) for _ in range(2))
        await asyncio.sleep(0.25)
        first.cancel()
        await asyncio.sleep(2)
        second.cancel()

    assert send_times(1, scenario) == times(0, 1.25)


def test_the_permit_of_a_failed_request_is_released_after_a_second() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        async def time_out() -> None:
            async with asyncio.timeout(0.25):
                await send_request(budget, sends, duration=0.5)

        async def fail() -> None:
            async with budget.permit():
                sends.append(VirtualClock().monotonic())
                raise ConnectionError

        with pytest.raises(TimeoutError):
            await time_out()
        with pytest.raises(ConnectionError):
            await asyncio.create_task(fail())
        await send_request(budget, sends, duration=0)

    assert send_times(1, scenario) == times(0, 1.25, 2.25)


def test_a_pause_applies_to_requests_that_already_wait() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        requests = [asyncio.create_task(send_request(budget, sends, duration=0.25)) for _ in range(3)]
        await asyncio.sleep(0.75)
        budget.on_throttled(sent_at=0.5, wait_seconds=30)
        await asyncio.gather(*requests)

    sent = send_times(2, scenario)
    assert sent[:2] == times(0, 0.5)
    assert sent[2:] == times(30.75)


def test_a_waiting_request_is_sent_at_once_when_the_limit_is_raised() -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        requests = [asyncio.create_task(send_request(budget, sends, duration=0)) for _ in range(3)]
        await asyncio.sleep(2)
        budget.set_limit(5)
        await asyncio.gather(*requests)

    assert send_times(0.01, scenario) == times(0, 2, 2.2)


def test_the_sustained_rate_includes_the_pauses_of_the_last_ten_minutes() -> None:
    async def main() -> list[tuple[float, float]]:
        budget = Budget(10, VirtualClock())
        await asyncio.sleep(1000)
        budget.on_throttled(sent_at=999, wait_seconds=60)
        rates = []
        for seconds in (0, 300, 600):
            await asyncio.sleep(seconds)
            rates.append((budget.current_qps(), round(budget.sustained_qps(), 6)))
        return rates

    assert run(main()) == [(5, 5), (10, 8.5), (10, 10)]


def test_throttling_lowers_the_current_rate_but_not_the_concurrency() -> None:
    async def main() -> tuple[float, int]:
        budget = Budget(10, VirtualClock())
        await asyncio.sleep(1)
        budget.on_throttled(sent_at=0.5, wait_seconds=0)
        budget.on_throttled(sent_at=0.75, wait_seconds=0)
        return budget.current_qps(), budget.concurrency

    assert run(main()) == (5, 10)


@pytest.mark.parametrize(("qps", "concurrency"), [(0.1, 1), (1, 1), (1.9, 2), (10, 10)])
def test_the_number_of_requests_in_flight_is_limited_by_the_permits(qps: float, concurrency: int) -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        assert budget.concurrency == concurrency
        requests = [asyncio.create_task(send_request(budget, sends, duration=100)) for _ in range(20)]
        await asyncio.sleep(99)
        for task in requests:
            task.cancel()

    assert len(send_times(qps, scenario)) == concurrency


@pytest.mark.parametrize("latency", [0.0, 0.005, 0.025, 0.2, 1.0, 3.0])
def test_at_least_93_percent_of_the_possible_rate_is_used(latency: float) -> None:
    async def scenario(budget: Budget, sends: list[float]) -> None:
        async def caller() -> None:
            while True:
                await send_request(budget, sends, duration=latency)

        callers = [asyncio.create_task(caller()) for _ in range(300)]
        await asyncio.sleep(120)
        for task in callers:
            task.cancel()
        await asyncio.wait(callers)

    sent = [at for at in send_times(10, scenario) if at >= 20]
    assert len(sent) / 100 >= 0.93 * 10 / (1 + latency)


# The arrivals at the server never exceed the limit


class Result(StrEnum):
    ANSWERED = "answered"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request, its result and its duration."""

    result: Result
    latency: float
    arrival_share: float
    """When the request arrives at the server, as a share of the latency: 0 is the send, 1 is the response."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A task that makes these attempts in order until an attempt is answered. The task starts after `starts_after`
    seconds and is cancelled `cancelled_after` seconds after the start of the test (None: never)."""

    starts_after: float
    attempts: tuple[Attempt, ...]
    cancelled_after: float | None


SHARES = st.sampled_from((0.0, 1.0)) | st.floats(0, 1)
LATENCIES = st.sampled_from((0.0, 0.005, 0.1, 1.0, 5.0)) | st.floats(0, 5)
ATTEMPTS = st.builds(Attempt, st.sampled_from(Result), LATENCIES, SHARES)
CALLERS = st.builds(
    Caller,
    starts_after=st.just(0.0) | st.floats(0, 5),
    attempts=st.lists(ATTEMPTS, min_size=1, max_size=3).map(tuple),
    cancelled_after=st.none() | st.floats(0, 20),
)
RATES = st.sampled_from((0.1, 0.5, 1.0, 1.9, 2.5, 10.0)) | st.floats(0.1, 10)


def arrivals_at_server(qps: float, callers: list[Caller]) -> list[float]:
    """Return the sorted times at which the requests of the callers arrived at the server."""
    arrivals: list[float] = []

    async def attempt(budget: Budget, planned: Attempt) -> None:
        clock = VirtualClock()
        async with budget.permit():
            sent_at = clock.monotonic()
            try:
                await asyncio.sleep(planned.latency)
                if planned.result is Result.TIMED_OUT:
                    raise TimeoutError
                if planned.result is Result.THROTTLED:
                    budget.on_throttled(sent_at=sent_at, wait_seconds=planned.latency / 2)
                if planned.result is not Result.ANSWERED:
                    raise ConnectionError
            finally:  # a cancelled request may have arrived, too
                ended_at = clock.monotonic()
                arrivals.append(min(ended_at, sent_at + planned.arrival_share * (ended_at - sent_at)))

    async def call(budget: Budget, caller: Caller) -> None:
        await asyncio.sleep(caller.starts_after)
        for planned in caller.attempts:
            with suppress(TimeoutError, ConnectionError):
                await attempt(budget, planned)
                return

    async def main() -> None:
        budget = Budget(qps, VirtualClock())
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(call(budget, caller)) for caller in callers]
        for task, caller in zip(tasks, callers, strict=True):
            if caller.cancelled_after is not None:
                loop.call_later(caller.cancelled_after, task.cancel)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)

    run(main())
    return sorted(arrivals)


def excess_arrivals(arrivals: list[float], qps: float) -> Iterator[tuple[float, float]]:
    """Yield the first and the last time of each group of ceil(qps) + 1 arrivals within one hold time."""
    permits = math.ceil(qps)
    hold_seconds = permits / qps
    for first, last in zip(arrivals, arrivals[permits:], strict=False):
        if last < first + hold_seconds - 1e-9:
            yield first, last


def identical_callers(count: int, *, latency: float, share: float) -> list[Caller]:
    return [Caller(0, (Attempt(Result.ANSWERED, latency, share),), None)] * count


@settings(max_examples=300)
@given(qps=RATES, callers=st.lists(CALLERS, min_size=1, max_size=40))
@example(qps=10, callers=identical_callers(5, latency=1, share=1) + identical_callers(35, latency=0.005, share=0))
@example(qps=1, callers=identical_callers(1, latency=1, share=1) + identical_callers(1, latency=0, share=0))
@example(qps=10, callers=identical_callers(60, latency=0.005, share=0))
def test_at_most_ceil_qps_requests_arrive_in_any_hold_time(qps: float, callers: list[Caller]) -> None:
    """The hold time is ceil(qps)/qps seconds: at least one second, and exactly one second if qps is an integer."""
    assert list(excess_arrivals(arrivals_at_server(qps, callers), qps)) == []


def test_every_caller_that_is_not_cancelled_is_served() -> None:
    cancelled = Caller(0, (Attempt(Result.ANSWERED, 1, 0.5),), cancelled_after=0.75)
    served = identical_callers(10, latency=0.5, share=0.5)
    assert len(arrivals_at_server(2, served + [cancelled] * 20 + served)) == 20
