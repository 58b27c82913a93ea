"""Another client uses the same rate limit: the API throttles both, and the exporter adapts its rate."""

import asyncio
from collections.abc import Callable

import pytest
from virtual_time import run
from world import World, scenario

MINUTE = 60
START, DURATION = 5 * MINUTE, 20 * MINUTE
END = START + DURATION


async def compete(world: World, burst: int) -> None:
    """Send 5 requests per second, half of the account's rate limit, in bursts of `burst` requests."""
    while True:
        for _ in range(burst):
            world.send_competing_request()
        await asyncio.sleep(burst / 5)


def counter(world: World, name: str) -> float:
    return sum(float(line.split(" ")[-1]) for line in world.samples(name))


@pytest.mark.parametrize("burst", [1, 5])
def test_few_requests_are_throttled_by_competition_and_the_rate_recovers_after_it(burst: int) -> None:
    async def main() -> tuple[Callable[[int, int], float], Callable[[int, int], float]]:
        world = World(scenario(3000, qps=10, poll_interval="5m", latency="50ms"))
        await world.exporter.start()
        requests, throttled = [0.0], [0.0]
        competing: asyncio.Task[None] | None = None
        for minute in range((END + 10 * MINUTE) // MINUTE):
            if minute * MINUTE == START:
                competing = asyncio.create_task(compete(world, burst))
            if minute * MINUTE == END and competing:
                competing.cancel()
            await asyncio.sleep(MINUTE)
            requests.append(counter(world, "chatapp_api_requests_total"))
            throttled.append(counter(world, "chatapp_api_throttled_total"))
        await world.exporter.stop()

        def rate(start: int, end: int) -> float:
            return (requests[end // MINUTE] - requests[start // MINUTE]) / (end - start)

        def share(start: int, end: int) -> float:
            return (throttled[end // MINUTE] - throttled[start // MINUTE]) / (rate(start, end) * (end - start))

        return rate, share

    rate, share = run(main())
    alone, shared = rate(MINUTE, START), rate(START + 5 * MINUTE, END)
    recovered = rate(END + 5 * MINUTE, END + 10 * MINUTE)
    throttled = share(START + 5 * MINUTE, END)
    print(
        f"\nbursts of {burst}: {alone:.2f}/s before, {shared:.2f}/s during, {recovered:.2f}/s 5 minutes later;"
        f" throttled {share(START, START + 5 * MINUTE):.2%} in the first 5 minutes, {throttled:.2%} after"
    )

    assert throttled < 0.02
    assert shared > 0.5 * 5  # the exporter uses the remaining rate
    assert recovered > 0.99 * alone
