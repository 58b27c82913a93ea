"""Threads for calls that block, such as the system's resolver: one for each, and none that an exit waits for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """An event loop's executor without a pool.

    In the usual one, a resolver that hangs for one endpoint takes the few threads that the names of all others need,
    and a stop waits until it gives up, which can take half a minute. How many calls there are, the budgets bound.
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
