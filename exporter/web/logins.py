"""Verifies passwords. Knows neither files nor HTTP."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import bcrypt

from exporter.clock import Clock

_LONGEST_PASSWORD = 72
"""Bytes that bcrypt looks at."""
_REMEMBERED_SECONDS = 300.0
_MOST_REMEMBERED = 100
_VERIFIED_AT_ONCE = 2
_MAX_WAITING = 50


class TooManyWaiting(Exception):
    """Too many passwords wait to be verified. This one was not verified."""


def matches(password: str, hashed: str) -> bool:
    """Whether it is the password that was hashed; takes a tenth of a second by design."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_LONGEST_PASSWORD], hashed.encode())


class Logins:
    """Passwords against bcrypt hashes, off the event loop. A success is remembered for five minutes after its last use.

    So a scraper does not wait while others try passwords. An unknown name takes as long as a known one.
    """

    def __init__(self, clock: Clock, matches: Callable[[str, str], bool] = matches) -> None:
        self._clock = clock
        self._matches = matches
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._slots = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        self._waiting = 0

    async def verify(self, users: Mapping[str, str], user: str, password: str) -> bool:
        """Whether it is the password of one of `users` (at least one).

        Raises:
            TooManyWaiting: it was not verified.
        """
        known = users.get(user)
        expected = known or max(users.values(), key=_cost)
        digest = hashlib.sha256("\0".join((user, expected, password)).encode("utf-8", "surrogatepass")).digest()
        if known and self._remembered.get(digest, 0.0) > self._clock.monotonic():
            return self._remember(digest)
        if self._waiting >= _MAX_WAITING:
            raise TooManyWaiting
        self._waiting += 1
        try:
            async with self._slots:
                right = await asyncio.to_thread(self._matches, password, expected)
        finally:
            self._waiting -= 1
        return bool(known) and right and self._remember(digest)

    def _remember(self, digest: bytes) -> bool:
        self._remembered[digest] = self._clock.monotonic() + _REMEMBERED_SECONDS
        self._remembered.move_to_end(digest)
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return True


def _cost(hashed: str) -> str:
    """The two digits after $2b$: bcrypt takes 2 to the power of that many rounds."""
    return hashed[4:6]
