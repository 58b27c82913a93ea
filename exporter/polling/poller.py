"""Polls one space: waits for a permit before each request, and returns the result as an `Outcome`.

A failed query is repeated at most once (the source itself can repeat a request on a new connection). If a response has
no phone numbers and the space had some, the space is queried again, and the second result is used.
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
"""Pause after a throttled request whose response has no Retry-After value."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class _SourceReplaced(Exception):
    """The source was replaced while a poll waited for its permit. The poll must start again."""


@dataclass(slots=True, eq=False)
class _SourceHandle:
    """An open source. `limit`: the rate limit of its access key. `requests`: the number of requests in flight."""

    source: Source
    limit: Budget
    requests: int = 0


class Poller:
    """Polls the spaces of one account. A poll never raises an exception: a failure is an `Outcome` with an error.

    A request needs a permit of the account's `budget` and a permit of `limit`, the rate limit that accounts with the
    same access key share. `has_numbers` returns whether phone numbers of a space id are stored.
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
        self.tasks_in_flight: set[asyncio.Task[object] | None] = set()
        """Tasks with a request in flight (not waiting for a permit)."""
        self._current = _SourceHandle(source, limit)
        self._replaced: set[_SourceHandle] = set()
        self._budget = budget
        self._clock = clock
        self._instruments = instruments
        self._reads = BlockingCalls()
        self._has_numbers = has_numbers

    def replace_source(self, source: Source, limit: Budget) -> None:
        """Use another source for all new requests. Requests in flight are not interrupted."""
        self._replaced.add(self._current)
        self._current = _SourceHandle(source, limit)

    async def close_replaced(self) -> None:
        """Close the replaced sources without requests in flight. The other replaced sources are closed after their last
        request."""
        unused = {handle for handle in self._replaced if not handle.requests}
        self._replaced -= unused
        await self._close(unused)

    async def close(self) -> None:
        """Close all sources."""
        await self._close({self._current, *self._replaced})

    async def _close(self, sources: set[_SourceHandle]) -> None:
        for handle in sources:
            try:
                await handle.source.aclose()
            except Exception:
                event = "API client cannot be closed because of a bug, please report it"
                _log.exception(event, account=self.account)

    async def credentials_changed(self) -> bool:
        """Return whether the credentials differ from those of the last request."""
        try:
            return await self._reads.run(self._current.source.credentials_changed, seconds=READ_SECONDS)
        except TimeoutError:
            return False

    async def poll(self, space: Space, *, due: float, retry: bool) -> Outcome:
        """Poll the space as soon as permits are available. `due` is the time when the space was due (monotonic
        seconds). `retry`: repeat a failed query once if its error has `retry_at_once`."""
        due_times = [due]
        try:
            answer = await self._with_current_source(
                lambda handle: self._query_confirmed(handle, space, due_times, retry=retry)
            )
        except QueryError as error:
            return self._outcome(space, error=error)
        except Exception as error:
            # a bug must not stop the polls of other spaces
            event = "poll failed because of a bug, please report it"
            _log.exception(event, account=self.account, space=space.id)
            return self._outcome(space, error=MalformedError("internal", type(error).__name__))
        return self._outcome(space, answer)

    def _outcome(self, space: Space, answer: Answer | None = None, error: QueryError | None = None) -> Outcome:
        unix, monotonic = Now.of(self._clock)
        return Outcome(self.account, space.id, unix, answer, error, monotonic=monotonic)

    async def list_spaces(self) -> Mapping[str, str]:
        """Return the names of the account's spaces by id.

        Raises:
            QueryError: the list is not complete; its class gives the reason.
        """
        return await self._with_current_source(lambda handle: handle.source.list_spaces(self._attempt(handle, [])))

    async def _with_current_source(self, work: Callable[[_SourceHandle], Awaitable[Result]]) -> Result:
        while True:
            try:
                return await work(self._current)
            except _SourceReplaced:
                continue

    async def _query_confirmed(
        self, handle: _SourceHandle, space: Space, due_times: list[float], *, retry: bool
    ) -> Answer:
        answer = await self._query_with_retry(handle, space, due_times, retry=retry)
        if answer.phone_numbers or not self._has_numbers(space.id):
            return answer
        # an empty response removes all numbers and ends their alerts: one wrong response must not do that
        return await self._query_with_retry(handle, space, due_times, retry=retry)

    async def _query_with_retry(
        self, handle: _SourceHandle, space: Space, due_times: list[float], *, retry: bool
    ) -> Answer:
        try:
            return await handle.source.query(space, self._attempt(handle, due_times))
        except QueryError as error:
            if not (retry and error.retry_at_once):
                raise
        return await handle.source.query(space, self._attempt(handle, due_times))

    def _attempt(self, handle: _SourceHandle, due_times: list[float]) -> Attempt:
        """Return a function that returns the context manager for each request. `due_times` has the due time of the
        poll; the first request removes the due time and records the delay."""

        def require_current() -> None:
            if handle is not self._current:
                raise _SourceReplaced

        @asynccontextmanager
        async def attempt() -> AsyncIterator[None]:
            async with self._budget.permit(require_current), handle.limit.permit(require_current):
                sent_at = self._clock.monotonic()
                if due_times:
                    self._instruments.poll_started(self.account, max(0.0, sent_at - due_times.pop()))
                try:
                    async with self._track_request(handle):
                        yield
                except QueryError as error:
                    self._record_request(sent_at, error)
                    raise
                self._record_request(sent_at, None)

        return attempt

    @asynccontextmanager
    async def _track_request(self, handle: _SourceHandle) -> AsyncIterator[None]:
        task = asyncio.current_task()
        self.tasks_in_flight.add(task)
        handle.requests += 1
        try:
            yield
        finally:
            self.tasks_in_flight.discard(task)
            handle.requests -= 1
            if self._replaced:
                await self.close_replaced()

    def _record_request(self, sent_at: float, error: QueryError | None) -> None:
        seconds = self._clock.monotonic() - sent_at
        self._instruments.request_ended(self.account, seconds, error)
        self._budget.latency.add(seconds, answered=not isinstance(error, RequestTimeout | TransportError))
        if isinstance(error, ThrottledError):
            wait = _DEFAULT_PAUSE_SECONDS if error.wait_seconds is None else error.wait_seconds
            self._budget.on_throttled(sent_at=sent_at, wait_seconds=wait)
