"""Which spaces an account has, by listing them: at the start, then hourly. Polls none of them.

Only a whole listing counts. One that fails changes nothing, and is tried again after a growing pause.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from random import Random

import structlog

from exporter.clock import Clock
from exporter.config.settings import Space
from exporter.model import Instance
from exporter.polling.plan import pause_after_failure
from exporter.polling.poller import Poller
from exporter.source import DeniedError, MalformedError, PassingError, QueryError

LISTING_INTERVAL_SECONDS = 3600.0
_MOST_PAGES = 400

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Discovered:
    """What is known by listing: the spaces of the last whole listing, and when that was, in Unix seconds. `up` tells
    whether the last attempt was one, `failed` that it was not, `denied` that they are refused for all that is known."""

    spaces: tuple[Space, ...] = ()
    up: bool = False
    failed: bool = False
    denied: bool = False
    last_success: float | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nobody knows yet what spaces there are."""
        return self.last_success is None and not self.spaces


class Discovery:
    """Lists one account's spaces while it is switched on and `may_ask`; `on_listed` is told when `found` is new.

    Until then `spaces` count as found, those that were known before a restart.
    """

    def __init__(
        self,
        poller: Poller,
        may_ask: Callable[[], bool],
        clock: Clock,
        on_listed: Callable[[], None],
        random: Random,
        spaces: tuple[Space, ...] = (),
    ) -> None:
        self.found = Discovered(spaces)
        self._poller = poller
        self._may_ask = may_ask
        self._clock = clock
        self._on_listed = on_listed
        self._random = random
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    def switch(self, *, on: bool) -> None:
        """Begin to list, if that has not begun; or stop, and forget what was found."""
        if not on:
            self.stop()
            self.found, self._failures = Discovered(), 0
        elif not self._task:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """List no more."""
        if self._task:
            self._task.cancel()
            self._task = None

    async def list_once(self) -> QueryError | None:
        """List the spaces now; the error, where that failed."""
        try:
            self._take(await self._listing())
        except QueryError as error:
            return self._failed(error)
        except Exception as error:
            # a bug of ours costs this listing, is told, and stops no poll
            _log.exception("listing failed by a bug, please report it", account=self._poller.account.name)
            return self._failed(MalformedError("internal", type(error).__name__))
        return None

    async def _run(self) -> None:
        while True:
            listed = self._may_ask() and await self.list_once() is None
            await asyncio.sleep(LISTING_INTERVAL_SECONDS if listed else self._pause())

    def _pause(self) -> float:
        longest = min(self._poller.account.poll_interval, LISTING_INTERVAL_SECONDS)
        return pause_after_failure(self._failures, longest, self._random)

    async def _listing(self) -> tuple[Space, ...]:
        """The spaces of a whole listing, in order. Raises QueryError."""
        instances = await self._instances()
        spaces = {instance.space_id: Space(id=instance.space_id, name=instance.name) for instance in instances}
        spaces.pop("", None)
        # rather a permission that was narrowed, or an answer that we misread, than all customers gone at once
        if not spaces and (instances or self.found.spaces):
            raise MalformedError("malformed", f"expected spaces, found none among {len(instances)} instances")
        return tuple(spaces[name] for name in sorted(spaces))

    async def _instances(self) -> Collection[Instance]:
        """All pages. Where instances come, go or change places meanwhile, some may be on none of them: then the
        different ones are not as many as every page says that there are."""
        found: dict[str, Instance] = {}
        totals: set[int] = set()
        for number in range(1, _MOST_PAGES + 1):
            page, before = await self._poller.list_instances(number), len(found)
            found |= {instance.id: instance for instance in page.instances}
            totals.add(page.total)
            if totals == {len(found)}:
                return found.values()
            if len(totals) > 1 or len(found) == before:
                break
        raise MalformedError("malformed", f"expected {max(totals)} instances, found {len(found)}")

    def _take(self, spaces: tuple[Space, ...]) -> None:
        before, self.found = self.found, Discovered(spaces, up=True, last_success=self._clock.now())
        self._on_listed()
        account, failures, self._failures = self._poller.account.name, self._failures, 0
        if failures:
            _log.info("spaces listed again", account=account, failed_listings=failures)
        new, old = {space.id for space in spaces}, {space.id for space in before.spaces}
        if new != old:
            _log.info("spaces discovered", account=account, spaces=len(new), come=len(new - old), gone=len(old - new))

    def _failed(self, error: QueryError) -> QueryError:
        # as with polls, only an answer that was let in ends a refusal
        denied = isinstance(error, DeniedError) or (self.found.denied and isinstance(error, PassingError))
        self.found = replace(self.found, up=False, failed=True, denied=denied)
        if not self._failures:
            account, reason = self._poller.account.name, error.reason.value
            ids = {"request_id": error.request_id} if error.request_id else {}
            _log.warning(
                "spaces not listed", account=account, reason=reason, code=error.code, detail=error.detail, **ids
            )
        self._failures += 1
        return error
