"""Lists the spaces of an account: at the start, then once an hour. Polls none of them.

Only a complete list counts. A failure changes nothing, and is retried with exponential backoff.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import structlog

from exporter.clock import Clock
from exporter.model import AccountHealth, AccountState
from exporter.polling.access import explains
from exporter.polling.poller import Poller
from exporter.polling.timing import pause_after_failure
from exporter.source import MalformedError, QueryError, TemporaryError

LIST_INTERVAL_SECONDS = 3600.0
_FAILED_STATES = (AccountState.DENIED, AccountState.UNREACHABLE, AccountState.THROTTLED)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Discovered:
    """The spaces of the last complete list, as names by id, and when it was read (Unix seconds). `up` and `failed` are
    about the last attempt; `health` is what the attempts say about the account."""

    spaces: Mapping[str, str] = field(default_factory=dict)
    up: bool = False
    failed: bool = False
    health: AccountHealth | None = None
    last_success: float | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it is not known yet which spaces there are."""
        return self.last_success is None and not self.spaces


class Discovery:
    """Lists one account's spaces while it is on and `may_list`. `on_listed` is called when `found` is new.

    Before the first list, `spaces` count as found: those that were known before a restart.
    """

    def __init__(
        self,
        poller: Poller,
        may_list: Callable[[], bool],
        clock: Clock,
        on_listed: Callable[[], None],
        random: Random,
        spaces: Mapping[str, str],
    ) -> None:
        self.found = Discovered(spaces)
        self._poller = poller
        self._may_list = may_list
        self._clock = clock
        self._on_listed = on_listed
        self._random = random
        self._failures = 0
        self._max_pause = LIST_INTERVAL_SECONDS
        self._task: asyncio.Task[None] | None = None

    def switch(self, *, on: bool, max_pause: float) -> None:
        """Start, or stop and forget what was found. Pauses after failures grow up to `max_pause` seconds."""
        self._max_pause = min(max_pause, LIST_INTERVAL_SECONDS)
        if not on:
            self.stop()
            self.found, self._failures = Discovered(), 0
        elif not self._task:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Do not list any more."""
        if self._task:
            self._task.cancel()
            self._task = None

    async def list_once(self) -> QueryError | None:
        """List the spaces now; the error if that failed."""
        try:
            spaces = await self._poller.list_spaces()
            if self.found.spaces and not spaces:  # a narrowed permission, rather than no customers any more
                raise MalformedError("malformed", "expected spaces, found none")
            self._apply(dict(sorted(spaces.items())))
        except QueryError as error:
            return self._failed(error)
        except Exception as error:
            # a bug fails this list, is logged, and stops no poll
            _log.exception("listing failed by a bug, please report it", account=self._poller.account)
            return self._failed(MalformedError("internal", type(error).__name__))
        return None

    async def _run(self) -> None:
        while True:
            listed = self._may_list() and await self.list_once() is None
            pause = pause_after_failure(self._failures, self._max_pause, self._random)
            await asyncio.sleep(LIST_INTERVAL_SECONDS if listed else pause)

    def _apply(self, spaces: Mapping[str, str]) -> None:
        now = self._clock.now()
        health = AccountHealth(AccountState.OK, now)
        before, self.found = self.found, Discovered(spaces, up=True, health=health, last_success=now)
        self._on_listed()
        account, failures, self._failures = self._poller.account, self._failures, 0
        if failures:
            _log.info("spaces listed again", account=account, failed_attempts=failures)
        added, removed = spaces.keys() - before.spaces.keys(), before.spaces.keys() - spaces.keys()
        if added or removed:
            _log.info("spaces discovered", account=account, spaces=len(spaces), added=len(added), removed=len(removed))

    def _failed(self, error: QueryError) -> QueryError:
        self.found = replace(self.found, up=False, failed=True, health=self._health_after(error))
        if not self._failures:
            ids = {"request_id": error.request_id} if error.request_id else {}
            where = {"account": self._poller.account, "reason": error.reason.value, "code": error.code}
            _log.warning("spaces not listed", **where, detail=error.detail, **ids)
        self._failures += 1
        return error

    def _health_after(self, error: QueryError) -> AccountHealth | None:
        """As with polls, only an answer from the API ends a denial. A list that is not complete says nothing."""
        before = self.found.health
        denied = before is not None and before.state is AccountState.DENIED
        incomplete = isinstance(error, MalformedError) and error.from_api
        if incomplete or (denied and isinstance(error, TemporaryError)):
            return before
        state = next((state for state in _FAILED_STATES if explains(error, state)), AccountState.OK)
        since = before.since if before and before.state is state else self._clock.now()
        return AccountHealth(state, since, error.code, error.detail, error.request_id)
