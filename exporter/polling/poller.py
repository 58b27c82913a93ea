"""One poll of one space: a permit for each request, at most one retry, and the outcome as a value."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

from exporter.clock import Clock
from exporter.metrics.instruments import Instruments
from exporter.model import Answer, Space
from exporter.polling.budget import Budget
from exporter.source import Attempt, MalformedError, Outcome, QueryError, Source, ThrottledError

_DEFAULT_PAUSE_SECONDS = 1.0
"""After a throttled request, where the API names no pause."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class _SourceReplaced(Exception):
    """The account got another source while a poll waited for its permit: the poll starts again."""


class Poller:
    """Polls the spaces of one account. A poll never raises: a failure is an outcome too."""

    def __init__(self, account: str, source: Source, budget: Budget, clock: Clock, instruments: Instruments) -> None:
        self.account = account
        self.source = source
        self.in_flight: set[asyncio.Task[object] | None] = set()
        """Tasks with a request in flight (not waiting for a permit)."""
        self._requests: Counter[Source] = Counter()
        self._replaced: set[Source] = set()
        self._budget = budget
        self._clock = clock
        self._instruments = instruments

    def replace(self, source: Source) -> None:
        """Use another source for all requests that are not in flight."""
        self._replaced.add(self.source)
        self.source = source

    async def close_replaced(self) -> None:
        """Close the replaced sources that have no request in flight. The others are closed when their last one ends."""
        unused = {source for source in self._replaced if not self._requests[source]}
        self._replaced -= unused
        for source in unused:
            await source.aclose()

    async def close(self) -> None:
        """Close all sources."""
        for source in (self.source, *self._replaced):
            await source.aclose()

    async def poll(self, space: Space, *, due: float, retry: bool) -> Outcome:
        """Poll now. The space was due at `due` (monotonic seconds); `retry` allows a second attempt."""
        try:
            answer = await self._with_source(lambda source: self._query(source, space, due=due, retry=retry))
        except QueryError as error:
            return Outcome(self.account, space.id, self._clock.now(), error=error)
        except Exception as error:
            # a bug fails this poll, is logged, and stops no other space
            _log.exception("poll failed by a bug, please report it", account=self.account, space=space.id)
            bug = MalformedError("internal", type(error).__name__)
            return Outcome(self.account, space.id, self._clock.now(), error=bug)
        return Outcome(self.account, space.id, self._clock.now(), answer)

    async def list_spaces(self) -> Mapping[str, str]:
        """The spaces of the account, as names by id.

        Raises:
            QueryError: no complete list; its class says why.
        """
        return await self._with_source(lambda source: source.list_spaces(self._attempt(source, None)))

    async def _with_source(self, work: Callable[[Source], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await work(self.source)
            except _SourceReplaced:
                continue

    async def _query(self, source: Source, space: Space, *, due: float, retry: bool) -> Answer:
        try:
            return await source.query(space, self._attempt(source, due))
        except QueryError as error:
            if not (retry and error.retry_at_once):
                raise
        return await source.query(space, self._attempt(source, None))

    def _attempt(self, source: Source, due: float | None) -> Attempt:
        """What the source enters around each request; the first one ends the delay since `due`."""
        waiting = [] if due is None else [due]

        @asynccontextmanager
        async def attempt() -> AsyncIterator[None]:
            async with self._budget.permit():
                if source is not self.source:
                    raise _SourceReplaced
                sent_at = self._clock.monotonic()
                if waiting:
                    self._instruments.poll_started(self.account, max(0.0, sent_at - waiting.pop()))
                try:
                    async with self._in_flight(source):
                        yield
                except QueryError as error:
                    self._ended(sent_at, error)
                    raise
                self._ended(sent_at, None)

        return attempt

    @asynccontextmanager
    async def _in_flight(self, source: Source) -> AsyncIterator[None]:
        task = asyncio.current_task()
        self.in_flight.add(task)
        self._requests[source] += 1
        try:
            yield
        finally:
            self.in_flight.discard(task)
            self._requests[source] -= 1
            if self._replaced:
                await self.close_replaced()

    def _ended(self, sent_at: float, error: QueryError | None) -> None:
        self._instruments.request_ended(self.account, self._clock.monotonic() - sent_at, error)
        if isinstance(error, ThrottledError):
            wait = _DEFAULT_PAUSE_SECONDS if error.wait_seconds is None else error.wait_seconds
            self._budget.throttled(sent_at=sent_at, wait_seconds=wait)
