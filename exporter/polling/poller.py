"""One poll of one space: a permit, an attempt, at most one attempt more, and the outcome as a value.

A page of the account's instances takes a permit like any other attempt.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

import structlog

from exporter.clock import Clock
from exporter.config.settings import Account, Space
from exporter.model import Answer, InstancePage
from exporter.polling.budget import Budget
from exporter.source import MalformedError, QueryError, ThrottledError
from exporter.sources.cams.client import Client

_MENDED_BY_A_FRESH_ATTEMPT = ("InvalidTimeStamp.Expired", "InvalidSecurityToken*")
"""A stalled request's date, and a token that has been renewed since."""
_UNASKED_PAUSE_SECONDS = 1.0

Result = TypeVar("Result")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a poll gave: an answer or an error, never both. `at` is when it ended, `next_slot` when the space is due by
    its place in the schedule, both in Unix seconds."""

    account: str
    space: str
    at: float
    answer: Answer | None = None
    error: QueryError | None = None
    next_slot: float | None = None


class PollObserver(Protocol):
    """Who counts what happens on the way."""

    def poll_started(self, account: str, delay_seconds: float) -> None:
        """A poll's first request goes out, `delay_seconds` after it was due."""

    def request_ended(self, account: str, seconds: float, error: QueryError | None) -> None:
        """An HTTP attempt ended after `seconds`, well or with `error`."""


class Poller:
    """Polls the spaces of one account. A poll never raises: a failure is an outcome too."""

    def __init__(self, account: Account, client: Client, budget: Budget, clock: Clock, observer: PollObserver) -> None:
        self.account = account
        self._client = client
        self._budget = budget
        self._clock = clock
        self._observer = observer
        self.under_way: set[asyncio.Task[object] | None] = set()
        """The tasks that have a request under way, and do not only wait for a permit."""

    async def poll(self, space: Space, *, due: float, retry: bool) -> Outcome:
        """Poll now; `due` (monotonic seconds) is when it should have been, `retry` allows a second attempt."""
        try:
            answer = await self._query(space, due=due, retry=retry)
        except QueryError as error:
            return Outcome(self.account.name, space.id, self._clock.now(), error=error)
        except Exception as error:
            # a bug of ours costs this poll, is told, and stops no other space
            _log.exception("poll failed by a bug, please report it", account=self.account.name, space=space.id)
            bug = MalformedError("internal", type(error).__name__)
            return Outcome(self.account.name, space.id, self._clock.now(), error=bug)
        return Outcome(self.account.name, space.id, self._clock.now(), answer)

    async def list_instances(self, page: int) -> InstancePage:
        """A page of the account's instances, in one attempt.

        Raises:
            QueryError: none; its class says why.
        """
        return await self._attempt(lambda: self._client.list_instances(page))

    async def _query(self, space: Space, *, due: float, retry: bool) -> Answer:
        space_id = None if self.account.polls_own_numbers else space.id

        def ask() -> Awaitable[Answer]:
            return self._client.query_phone_numbers(space_id, space.isv_code or self.account.isv_code)

        try:
            return await self._attempt(ask, due)
        except QueryError as error:
            if not (retry and any(fnmatchcase(error.code, code) for code in _MENDED_BY_A_FRESH_ATTEMPT)):
                raise
        return await self._attempt(ask)

    async def _attempt(self, ask: Callable[[], Awaitable[Result]], due: float | None = None) -> Result:
        async with self._budget.permit():
            sent_at, task = self._clock.monotonic(), asyncio.current_task()
            self.under_way.add(task)
            if due is not None:
                self._observer.poll_started(self.account.name, max(0.0, sent_at - due))
            try:
                answer = await ask()
            except QueryError as error:
                self._ended(sent_at, error)
                raise
            finally:
                self.under_way.discard(task)
            self._ended(sent_at, None)
            return answer

    def _ended(self, sent_at: float, error: QueryError | None) -> None:
        self._observer.request_ended(self.account.name, self._clock.monotonic() - sent_at, error)
        if isinstance(error, ThrottledError):
            wait = _UNASKED_PAUSE_SECONDS if error.wait_seconds is None else error.wait_seconds
            self._budget.throttled(sent_at=sent_at, wait_seconds=wait)
