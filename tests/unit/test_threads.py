"""Blocking calls run one at a time, each with a time limit, and do not block the event loop."""

import asyncio
from threading import Event

import pytest
from virtual_time import run, virtual_loop

from exporter.threads import BlockingCalls, DaemonThreads


def test_a_hanging_call_times_out_and_later_calls_time_out_without_being_started() -> None:
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


def test_a_call_waits_for_the_previous_call() -> None:
    order: list[str] = []

    async def main() -> float:
        calls, loop = BlockingCalls(), virtual_loop()
        loop.hangs = lambda call: call is first
        calls_done = asyncio.gather(
            calls.run(first, seconds=5), calls.run(lambda: order.append("second"), seconds=5), return_exceptions=True
        )
        await asyncio.sleep(1)
        loop.release()
        await calls_done
        return loop.time()

    def first() -> None:
        order.append("first")

    assert run(main()) == 1
    assert order == ["first", "second"]


def test_an_exception_of_a_call_is_raised_to_its_caller_only() -> None:
    async def main() -> str:
        calls = BlockingCalls()
        with pytest.raises(ValueError, match="broken"):
            await calls.run(lambda: int("broken"), seconds=5)
        return await calls.run(lambda: "next", seconds=5)

    assert run(main()) == "next"


def test_the_event_loop_keeps_running_while_a_call_hangs_in_a_thread() -> None:
    release = Event()

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(DaemonThreads())
        calls = BlockingCalls()
        with pytest.raises(TimeoutError):
            await calls.run(release.wait, seconds=0.01)
        release.set()
        return await calls.run(lambda: "next", seconds=30)

    assert asyncio.run(main()) == "next"
