"""Lists the spaces of an account at the start and once an hour. Does not poll them.

Only a complete list is applied. After a failure, the spaces do not change, and the list is retried with exponential
backoff.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import structlog

from exporter.clock import Clock
from exporter.model import AccountHealth, AccountState
from exporter.polling.access import is_account_failure
from exporter.polling.poller import Poller
from exporter.polling.timing import pause_after_failure
from exporter.source import MalformedError, QueryError, TemporaryError

LIST_INTERVAL_SECONDS = 3600.0
_FAILED_STATES = (AccountState.DENIED, AccountState.UNREACHABLE, AccountState.THROTTLED)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DiscoveryResult:
    """The result of space discovery: the names of the spaces by id, from the last complete list.

    `last_success` is the time of that list (Unix seconds). `up`: the last attempt succeeded. `failed`: the last attempt
    failed. `health` is the account state according to the attempts.
    """

    spaces: Mapping[str, str] = field(default_factory=dict)
    up: bool = False
    failed: bool = False
    health: AccountHealth | None = None
    last_success: float | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether no list is available, neither from the API nor from the state file."""
        return self.last_success is None and not self.spaces


class Discovery:
    """Lists the spaces of one account while enabled.

    `may_list` returns whether a scheduled attempt is allowed; `list_once` does not call it. `on_listed` is called after
    each complete list. `spaces` are the spaces from the state file. They are used until the first complete list.
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
        self.result = DiscoveryResult(spaces)
        self._poller = poller
        self._may_list = may_list
        self._clock = clock
        self._on_listed = on_listed
        self._random = random
        self._failures = 0
        self._max_pause = LIST_INTERVAL_SECONDS
        self._task: asyncio.Task[None] | None = None

    def set_enabled(self, *, enabled: bool, max_pause: float) -> None:
        """Start, or stop and clear the result. The backoff after failures is at most `max_pause` seconds."""
        self._max_pause = min(max_pause, LIST_INTERVAL_SECONDS)
        if not enabled:
            self.stop()
            self.result, self._failures = DiscoveryResult(), 0
        elif not self._task:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop listing. Keep the result."""
        if self._task:
            self._task.cancel()
            self._task = None

    async def list_once(self) -> QueryError | None:
        """List the spaces as soon as permits are available. Return the error if the list failed."""
        try:
            spaces = await self._poller.list_spaces()
            if self.result.spaces and not spaces:  # a reduced permission is more likely than the loss of all customers
                raise MalformedError("malformed", "expected spaces, found none")
            self._apply_list(dict(sorted(spaces.items())))
        except QueryError as error:
            return self._record_failure(error)
        except Exception as error:
            # a bug must not stop the polls
            event = "space discovery failed because of a bug, please report it"
            _log.exception(event, account=self._poller.account)
            return self._record_failure(MalformedError("internal", type(error).__name__))
        return None

    async def _run(self) -> None:
        while True:
            succeeded = self._may_list() and await self.list_once() is None
            pause = pause_after_failure(self._failures, self._max_pause, self._random)
            await asyncio.sleep(LIST_INTERVAL_SECONDS if succeeded else pause)

    def _apply_list(self, spaces: Mapping[str, str]) -> None:
        now = self._clock.now()
        health = AccountHealth(AccountState.OK, now)
        before, self.result = self.result, DiscoveryResult(spaces, up=True, health=health, last_success=now)
        self._on_listed()
        account, failures, self._failures = self._poller.account, self._failures, 0
        if failures:
            _log.info("space discovery recovered", account=account, failed_attempts=failures)
        added, removed = spaces.keys() - before.spaces.keys(), before.spaces.keys() - spaces.keys()
        if added or removed:
            _log.info("spaces discovered", account=account, spaces=len(spaces), added=len(added), removed=len(removed))

    def _record_failure(self, error: QueryError) -> QueryError:
        self.result = replace(self.result, up=False, failed=True, health=self._health_after(error))
        if not self._failures:
            ids = {"request_id": error.request_id} if error.request_id else {}
            fields = {"account": self._poller.account, "reason": error.reason.value, "code": error.code}
            _log.warning("space discovery failed", **fields, detail=error.detail, **ids)
        self._failures += 1
        return error

    def _health_after(self, error: QueryError) -> AccountHealth | None:
        """Return the account state after a failure. A temporary error does not end DENIED. An incomplete list does not
        change the state."""
        before = self.result.health
        denied = before is not None and before.state is AccountState.DENIED
        incomplete = isinstance(error, MalformedError) and error.from_api
        if incomplete or (denied and isinstance(error, TemporaryError)):
            return before
        state = next((state for state in _FAILED_STATES if is_account_failure(error, state)), AccountState.OK)
        since = before.since if before and before.state is state else self._clock.now()
        return AccountHealth(state, since, error.code, error.detail, error.request_id)
