"""Threads for blocking calls, such as the system's resolver or a read from a network mount. The program does not wait
for these threads when it exits."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any, ParamSpec, TypeVar

READ_SECONDS = 2.0
"""Time limit for reading credential files, for a request or to detect a change."""
LOAD_SECONDS = 60.0
"""Time limit for reading the configuration files at startup and at a reload."""

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """Executor that starts a new daemon thread for each call. The number of threads is not limited here; budgets, locks
    and `BlockingCalls` limit the concurrent calls.

    asyncio's default thread pool has two problems if DNS queries for one endpoint hang: they use all threads, so that
    other endpoints cannot be resolved, and the exit waits for them, which can take 30 s.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start `fn` in a new thread without waiting."""
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        Thread(target=call, daemon=True).start()
        return future


class BlockingCalls:
    """Runs blocking calls in threads, one at a time, each with a time limit.

    A call that hangs cannot be stopped and keeps its thread. Until it ends, later calls are not started and fail at
    their time limit. Therefore, at most one thread is in use.
    """

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None
        self._timed_out = False

    @property
    def hangs(self) -> bool:
        """Whether a call has exceeded its time limit and is still running."""
        return self._timed_out and self.busy

    @property
    def busy(self) -> bool:
        """Whether a call is running."""
        return self._last is not None and not self._last.done()

    async def run(self, call: Callable[[], T], *, seconds: float) -> T:
        """Run a call in a thread and return its result.

        Raises:
            TimeoutError: the call did not end within `seconds` and is still running, or it was not started because an
                earlier call is still running.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._last and self.busy:
                    await asyncio.wait([self._last])
                self._timed_out = False
                running: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(None, call)
                running.add_done_callback(_retrieve_exception)
                self._last = running
                return await asyncio.shield(running)
        except TimeoutError:
            self._timed_out = True
            raise


def _retrieve_exception(ended: asyncio.Future[Any]) -> None:
    """Read the exception of a call after its caller timed out. Otherwise asyncio logs it as never retrieved."""
    if not ended.cancelled():
        ended.exception()
