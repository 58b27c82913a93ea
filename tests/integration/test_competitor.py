"""Someone else uses the account's limit too: the API throttles both, and we find the rate that is left to us."""

import asyncio
from collections.abc import Callable

import pytest
from virtual_time import run
from world import World, scenario

MINUTE = 60
COMES, STAYS = 5 * MINUTE, 20 * MINUTE
GOES = COMES + STAYS


async def compete(world: World, burst: int) -> None:
    """Half of the account's limit of 10 a second, from here on: `burst` requests at once, as often as it takes."""
    while True:
        for _ in range(burst):
            world.send_competing_request()
        await asyncio.sleep(burst / 5)


def counter(world: World, name: str) -> float:
    return sum(float(line.split(" ")[-1]) for line in world.samples(name))


@pytest.mark.parametrize("burst", [1, 5])
def test_beside_a_competitor_few_requests_are_throttled_and_its_share_is_won_back(burst: int) -> None:
    async def main() -> tuple[Callable[[int, int], float], Callable[[int, int], float]]:
        world = World(scenario(3000, qps=10, poll_interval="5m", latency="50ms"))
        await world.exporter.start()
        requests, throttled = [0.0], [0.0]
        competing: asyncio.Task[None] | None = None
        for minute in range((GOES + 10 * MINUTE) // MINUTE):
            if minute * MINUTE == COMES:
                competing = asyncio.create_task(compete(world, burst))
            if minute * MINUTE == GOES and competing:
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
    alone, beside = rate(MINUTE, COMES), rate(COMES + 5 * MINUTE, GOES)
    again = rate(GOES + 5 * MINUTE, GOES + 10 * MINUTE)
    throttled = share(COMES + 5 * MINUTE, GOES)
    print(
        f"\nbursts of {burst}: {alone:.2f}/s alone, {beside:.2f}/s beside it, {again:.2f}/s five minutes after it left;"
        f" throttled {share(COMES, COMES + 5 * MINUTE):.2%} in the first five minutes, {throttled:.2%} after"
    )

    assert throttled < 0.02
    assert beside > 0.5 * 5  # what is left is used
    assert again > 0.99 * alone
