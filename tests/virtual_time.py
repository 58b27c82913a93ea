"""Virtual time for tests: an event loop whose clock jumps to the next timer without waiting.

`run(main())` simulates a day of polling in seconds. Use it for code that waits for timers, events and queues. Do
not use it for code with real sockets, because timeouts expire immediately.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_800_000_000.0
"""The value of `VirtualClock.now` when a loop starts: 15 January 2027, 08:00 UTC."""


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the virtual time by the timeout if no event is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.elapsed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("deadlock: all tasks wait, and no timer is set")
        if not events and timeout is not None:
            self.elapsed += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at 0 seconds and never waits."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # After weeks of virtual time, rounding errors exceed the default of 1 ns, and a due timer would never run.
        self._clock_resolution = 1e-7
        self.hangs: Callable[[Callable[..., Any]], bool] = lambda _: False
        """Whether a call in a thread hangs until `release`."""
        self._hanging_calls: list[Callable[[], None]] = []

    def time(self) -> float:
        return self._jumping.elapsed

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Set a timer at least two clock resolutions ahead. An earlier timer would run before the time advances."""
        if when > self.time():
            when = max(when, self.time() + 2 * self._clock_resolution)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(self, _: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run the function immediately in this thread, because virtual time would advance while another thread runs.

        A call that `hangs` runs at `release`.
        """
        done: asyncio.Future[T] = self.create_future()

        def call() -> None:
            try:
                result = func(*args)
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        if self.hangs(func):
            self._hanging_calls.append(call)
        else:
            call()
        return done

    def release(self) -> None:
        """Run the hanging calls. Later calls do not hang."""
        self.hangs = lambda _: False
        calls, self._hanging_calls = self._hanging_calls, []
        for call in calls:
            call()


class VirtualClock:
    """An `exporter.clock.Clock` with the time of the running loop. Set `offset` to change the system time."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def now(self) -> float:
        return START + self.offset + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def virtual_loop() -> VirtualLoop:
    """Return the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new virtual loop and return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
