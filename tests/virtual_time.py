"""Time for tests: an event loop whose clock jumps to the next timer instead of waiting for it.

`run(main())` takes a day of polling in the time that its arithmetic needs. For code that waits for timers, events and
queues; real sockets would find that their time-outs pass at once.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_800_000_000.0
"""What `VirtualClock.now` says when a loop starts: 15 January 2027, 08:00 UTC."""


class _JumpingSelector(selectors.DefaultSelector):
    """Polls, and where nothing happened lets the time pass at once."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("deadlock: every task waits, and no timer is set that could wake one")
        if not events and timeout is not None:
            self.elapsed += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at 0 seconds and never waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # The default of 1 ns is lost in the rounding after some weeks, and a due timer would never count as due.
        self._clock_resolution = 1e-7
        self.hangs: Callable[[Callable[..., Any]], bool] = lambda _: False
        """Which calls in a thread hang."""
        self._hanging: list[Callable[[], None]] = []

    def time(self) -> float:
        return self._jumping.elapsed

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """A timer in the future is at least two resolutions ahead: nearer ones would fire without any time passing."""
        if when > self.time():
            when = max(when, self.time() + 2 * self._clock_resolution)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, _: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """At once and here: in a thread it would take as much virtual time as the timers meanwhile allow. A call that
        `hangs` ends at `release`."""
        done: asyncio.Future[T] = self.create_future()

        def call() -> None:
            try:
                result = func(*args)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        if self.hangs(func):
            self._hanging.append(call)
        else:
            call()
        return done

    def release(self) -> None:
        """Let the calls that hang go on, and no other hang."""
        self.hangs = lambda _: False
        hanging, self._hanging = self._hanging, []
        for call in hanging:
            call()


class VirtualClock:
    """The running loop's time as an `exporter.clock.Clock`; set `offset` to make `now` jump, as people do."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def now(self) -> float:
        return START + self.offset + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run on a virtual loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
