"""One poll of one space: a permit for each request, and the outcome as a value.

A poll has one retry at most. If an answer lists no numbers and the space had some, the space is queried once more.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import structlog

from exporter.clock import Clock, Now
from exporter.metrics.instruments import Instruments
from exporter.model import Answer, Space
from exporter.polling.budget import Budget
from exporter.source import (
    Attempt,
    MalformedError,
    Outcome,
    QueryError,
    RequestTimeout,
    Source,
    ThrottledError,
    TransportError,
)
from exporter.threads import READ_SECONDS, BlockingCalls

_DEFAULT_PAUSE_SECONDS = 1.0
"""After a throttled request, where the API names no pause."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class _SourceReplaced(Exception):
    """The account got another source while a poll waited for its permit: the poll starts again."""


@dataclass(slots=True, eq=False)
class _Opened:
    """A source, the API's limit that its requests count against, and the number of its requests in flight."""

    source: Source
    limit: Budget
    requests: int = 0


class Poller:
    """Polls the spaces of one account. A poll never raises: a failure is an outcome too.

    A request takes a permit of the account's `budget`, and one of the API's `limit`, which accounts with the same
    access key share. `has_numbers` says whether numbers of a space are known.
    """

    def __init__(
        self,
        account: str,
        source: Source,
        budget: Budget,
        limit: Budget,
        clock: Clock,
        instruments: Instruments,
        has_numbers: Callable[[str], bool],
    ) -> None:
        self.account = account
        self.in_flight: set[asyncio.Task[object] | None] = set()
        """Tasks with a request in flight (not waiting for a permit)."""
        self._current = _Opened(source, limit)
        self._replaced: set[_Opened] = set()
        self._budget = budget
        self._clock = clock
        self._instruments = instruments
        self._reads = BlockingCalls()
        self._has_numbers = has_numbers

    def replace(self, source: Source, limit: Budget) -> None:
        """Use another source for all requests that are not in flight."""
        self._replaced.add(self._current)
        self._current = _Opened(source, limit)

    async def close_replaced(self) -> None:
        """Close the replaced sources that have no request in flight. The others are closed when their last one ends."""
        unused = {opened for opened in self._replaced if not opened.requests}
        self._replaced -= unused
        await self._close(unused)

    async def close(self) -> None:
        """Close all sources."""
        await self._close({self._current, *self._replaced})

    async def _close(self, sources: set[_Opened]) -> None:
        for opened in sources:
            try:
                await opened.source.aclose()
            except Exception:
                _log.exception("source not closed by a bug, please report it", account=self.account)

    async def credentials_changed(self) -> bool:
        """Whether the credentials differ from those of the last request."""
        try:
            return await self._reads.run(self._current.source.credentials_changed, seconds=READ_SECONDS)
        except TimeoutError:
            return False

    async def poll(self, space: Space, *, due: float, retry: bool) -> Outcome:
        """Poll now. The space was due at `due` (monotonic seconds); `retry` allows a second attempt."""
        waiting = [due]
        try:
            answer = await self._with_source(lambda opened: self._believed(opened, space, waiting, retry=retry))
        except QueryError as error:
            return self._outcome(space, error=error)
        except Exception as error:
            # a bug fails this poll, is logged, and stops no other space
            _log.exception("poll failed by a bug, please report it", account=self.account, space=space.id)
            return self._outcome(space, error=MalformedError("internal", type(error).__name__))
        return self._outcome(space, answer)

    def _outcome(self, space: Space, answer: Answer | None = None, error: QueryError | None = None) -> Outcome:
        unix, monotonic = Now.of(self._clock)
        return Outcome(self.account, space.id, unix, answer, error, monotonic=monotonic)

    async def list_spaces(self) -> Mapping[str, str]:
        """The spaces of the account, as names by id.

        Raises:
            QueryError: no complete list; its class says why.
        """
        return await self._with_source(lambda opened: opened.source.list_spaces(self._attempt(opened, [])))

    async def _with_source(self, work: Callable[[_Opened], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await work(self._current)
            except _SourceReplaced:
                continue

    async def _believed(self, opened: _Opened, space: Space, waiting: list[float], *, retry: bool) -> Answer:
        answer = await self._query(opened, space, waiting, retry=retry)
        if answer.phone_numbers or not self._has_numbers(space.id):
            return answer
        # it removes all numbers and ends their alerts: one wrong answer must not do that
        return await self._query(opened, space, waiting, retry=retry)

    async def _query(self, opened: _Opened, space: Space, waiting: list[float], *, retry: bool) -> Answer:
        try:
            return await opened.source.query(space, self._attempt(opened, waiting))
        except QueryError as error:
            if not (retry and error.retry_at_once):
                raise
        return await opened.source.query(space, self._attempt(opened, waiting))

    def _attempt(self, opened: _Opened, waiting: list[float]) -> Attempt:
        """What the source enters around each request. `waiting` has the due time of a poll. Its first
        request removes the time, and records the delay."""

        def require_current() -> None:
            if opened is not self._current:
                raise _SourceReplaced

        @asynccontextmanager
        async def attempt() -> AsyncIterator[None]:
            async with self._budget.permit(require_current), opened.limit.permit(require_current):
                sent_at = self._clock.monotonic()
                if waiting:
                    self._instruments.poll_started(self.account, max(0.0, sent_at - waiting.pop()))
                try:
                    async with self._in_flight(opened):
                        yield
                except QueryError as error:
                    self._ended(sent_at, error)
                    raise
                self._ended(sent_at, None)

        return attempt

    @asynccontextmanager
    async def _in_flight(self, opened: _Opened) -> AsyncIterator[None]:
        task = asyncio.current_task()
        self.in_flight.add(task)
        opened.requests += 1
        try:
            yield
        finally:
            self.in_flight.discard(task)
            opened.requests -= 1
            if self._replaced:
                await self.close_replaced()

    def _ended(self, sent_at: float, error: QueryError | None) -> None:
        seconds = self._clock.monotonic() - sent_at
        self._instruments.request_ended(self.account, seconds, error)
        self._budget.latency.add(seconds, answered=not isinstance(error, RequestTimeout | TransportError))
        if isinstance(error, ThrottledError):
            wait = _DEFAULT_PAUSE_SECONDS if error.wait_seconds is None else error.wait_seconds
            self._budget.throttled(sent_at=sent_at, wait_seconds=wait)
