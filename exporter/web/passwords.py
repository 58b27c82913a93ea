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


class TooManyPending(Exception):
    """Too many passwords wait to be verified. This one was not verified."""


def matches(password: str, hashed: str) -> bool:
    """Whether it is the password that was hashed; takes a tenth of a second by design."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_LONGEST_PASSWORD], hashed.encode())


class PasswordVerifier:
    """Passwords against bcrypt hashes, off the event loop. A success is remembered for five minutes after its last use.

    So a scraper does not wait while others try passwords. Whether a name exists changes neither the answer to a wrong
    password nor its time: all wait in one queue, and for as long as the costliest hash takes.
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
            TooManyPending: it was not verified.
        """
        known = users.get(user)
        costliest = max(users.values(), key=_cost)
        expected = known or costliest
        digest = hashlib.sha256("\0".join((user, expected, password)).encode("utf-8", "surrogatepass")).digest()
        if known and self._remembered.get(digest, 0.0) > self._clock.monotonic():
            return self._remember(digest)
        if self._waiting >= _MAX_WAITING:
            raise TooManyPending
        self._waiting += 1
        try:
            async with self._slots:
                right = await asyncio.to_thread(self._matches, password, expected)
                if not right:
                    for hashed in _as_costly(expected, costliest):
                        await asyncio.to_thread(self._matches, password, hashed)
        finally:
            self._waiting -= 1
        return bool(known) and right and self._remember(digest)

    def _remember(self, digest: bytes) -> bool:
        self._remembered[digest] = self._clock.monotonic() + _REMEMBERED_SECONDS
        self._remembered.move_to_end(digest)
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return True


def _as_costly(hashed: str, costliest: str) -> list[str]:
    """Hashes that take, together with this one, as long as the costliest: the cost is an exponent of 2."""
    return [f"{hashed[:4]}{cost:02}{hashed[6:]}" for cost in range(_cost(hashed), _cost(costliest))]


def _cost(hashed: str) -> int:
    """The two digits after $2b$: bcrypt takes 2 to the power of that many rounds."""
    return int(hashed[4:6])
