"""Calls that block: one at a time, each with a time limit, and none holds up what does not wait for it."""

import asyncio
from threading import Event

import pytest
from virtual_time import run, virtual_loop

from exporter.threads import BlockingCalls, DaemonThreads


def test_a_call_that_hangs_fails_at_its_limit_and_those_behind_it_too_without_a_thread_of_their_own() -> None:
    started: list[str] = []

    async def main() -> list[object]:
        calls, loop = BlockingCalls(), virtual_loop()
        loop.hangs = lambda _: True
        for name in ("first", "second"):
            with pytest.raises(TimeoutError):
                await calls.run(lambda name=name: started.append(name), seconds=2)  # type: ignore[misc]
        seen: list[object] = [loop.time(), calls.hangs, list(started)]
        loop.release()
        await calls.run(lambda: started.append("third"), seconds=2)
        return [*seen, calls.hangs, started]

    assert run(main()) == [4, True, [], False, ["first", "third"]]


def test_a_call_waits_for_the_one_before_it() -> None:
    order: list[str] = []

    async def main() -> float:
        calls, loop = BlockingCalls(), virtual_loop()
        loop.hangs = lambda call: call is first
        both = asyncio.gather(
            calls.run(first, seconds=5), calls.run(lambda: order.append("second"), seconds=5), return_exceptions=True
        )
        await asyncio.sleep(1)
        loop.release()
        await both
        return loop.time()

    def first() -> None:
        order.append("first")

    assert run(main()) == 1
    assert order == ["first", "second"]


def test_an_error_of_a_call_reaches_its_caller_and_not_the_next_one() -> None:
    async def main() -> str:
        calls = BlockingCalls()
        with pytest.raises(ValueError, match="broken"):
            await calls.run(lambda: int("broken"), seconds=5)
        return await calls.run(lambda: "next", seconds=5)

    assert run(main()) == "next"


def test_while_a_call_hangs_in_a_real_thread_the_event_loop_goes_on() -> None:
    release = Event()

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        calls = BlockingCalls()
        with pytest.raises(TimeoutError):
            await calls.run(release.wait, seconds=0.01)
        release.set()
        return await calls.run(lambda: "next", seconds=30)

    assert asyncio.run(main()) == "next"
