"""Threads for calls that block, such as the system's resolver or a read of a file on a network mount. A stop of the
program waits for none of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any, ParamSpec, TypeVar

READ_SECONDS = 2.0
"""How long a request, or a look at credentials, waits for their files."""
LOAD_SECONDS = 60.0
"""How long a start and a reload wait for the files of the configuration."""

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """An event loop's executor without a pool: a thread for each call.

    In the usual one, a resolver that hangs for one endpoint takes the few threads that the names of all others need,
    and a stop waits until it gives up, which can take half a minute. The budgets bound the number of calls.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread of its own, at once."""
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
    """Calls in threads, one at a time, each with a time limit.

    A call that hangs keeps its thread, because nothing can end it. Until it ends, all later calls fail at their limit:
    the number of threads stays bounded.
    """

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None
        self._hang = False

    @property
    def hangs(self) -> bool:
        """Whether a call has passed its limit and not ended."""
        return self._hang and self.busy

    @property
    def busy(self) -> bool:
        """Whether a call has not ended."""
        return self._last is not None and not self._last.done()

    async def run(self, call: Callable[[], T], *, seconds: float) -> T:
        """The result of `call`.

        Raises:
            TimeoutError: it did not end within so many `seconds`, and may still end; or an earlier call did not, and
                it was not started.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._last and self.busy:
                    await asyncio.wait([self._last])
                self._hang = False
                running: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(None, call)
                running.add_done_callback(_retrieve)
                self._last = running
                return await asyncio.shield(running)
        except TimeoutError:
            self._hang = True
            raise


def _retrieve(ended: asyncio.Future[Any]) -> None:
    """For a call whose caller gave up: nobody else looks at its exception, and asyncio would log that."""
    if not ended.cancelled():
        ended.exception()
