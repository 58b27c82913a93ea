"""Whose password is right. Knows neither files nor HTTP."""

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
_MOST_WAITING = 50
"""Of known names, and as many of others: who tries names takes no place from those who have one."""


class TooManyWaiting(Exception):
    """So many passwords wait to be verified that this one is not: it may be right."""


def matches(password: str, hashed: str) -> bool:
    """Whether it is the password that was hashed; takes a tenth of a second by design."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_LONGEST_PASSWORD], hashed.encode())


class Logins:
    """Passwords against bcrypt hashes, off the event loop; a success is remembered for five minutes after its last use.

    So a scraper does not wait behind someone who tries passwords. A name that is unknown costs as much as one that is.
    """

    def __init__(self, clock: Clock, matches: Callable[[str, str], bool] = matches) -> None:
        self._clock = clock
        self._matches = matches
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._turns = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        self._waiting = {True: 0, False: 0}

    async def verify(self, users: Mapping[str, str], user: str, password: str) -> bool:
        """Whether it is the password of one of `users` (at least one).

        Raises:
            TooManyWaiting: nobody knows, for too many wait to be told.
        """
        known = users.get(user)
        expected = known or max(users.values(), key=_cost)
        digest = hashlib.sha256("\0".join((user, expected, password)).encode("utf-8", "surrogatepass")).digest()
        if known and self._remembered.get(digest, 0.0) > self._clock.monotonic():
            return self._remember(digest)
        if self._waiting[bool(known)] >= _MOST_WAITING:
            raise TooManyWaiting
        self._waiting[bool(known)] += 1
        try:
            async with self._turns:
                right = await asyncio.to_thread(self._matches, password, expected)
        finally:
            self._waiting[bool(known)] -= 1
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
