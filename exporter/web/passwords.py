"""Verifies passwords. Knows neither files nor HTTP."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import bcrypt

from exporter.clock import Clock

_MAX_PASSWORD_BYTES = 72
"""Bytes that bcrypt looks at."""
_CACHE_SECONDS = 300.0
_MAX_CACHED = 100
_MAX_CONCURRENT = 2
_MAX_PENDING = 50


class TooManyPending(Exception):
    """Too many passwords wait to be verified. This one was not verified."""


def matches(password: str, hashed: str) -> bool:
    """Whether it is the password that was hashed; takes a tenth of a second by design."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_MAX_PASSWORD_BYTES], hashed.encode())


class PasswordVerifier:
    """Passwords against bcrypt hashes, off the event loop. A success is remembered for five minutes after its last use.

    So a scraper does not wait while others try passwords. Whether a name exists changes neither the answer to a wrong
    password nor its time: all wait in one queue, and for as long as the most expensive hash takes.
    """

    def __init__(self, clock: Clock, matches: Callable[[str, str], bool] = matches) -> None:
        self._clock = clock
        self._matches = matches
        self._verified_until: OrderedDict[bytes, float] = OrderedDict()
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._pending = 0

    async def verify(self, users: Mapping[str, str], user: str, password: str) -> bool:
        """Whether it is the password of one of `users` (at least one).

        Raises:
            TooManyPending: it was not verified.
        """
        stored = users.get(user)
        most_expensive = max(users.values(), key=_cost)
        expected = stored or most_expensive
        digest = hashlib.sha256("\0".join((user, expected, password)).encode("utf-8", "surrogatepass")).digest()
        if stored and self._verified_until.get(digest, 0.0) > self._clock.monotonic():
            return self._cache(digest)
        if self._pending >= _MAX_PENDING:
            raise TooManyPending
        self._pending += 1
        try:
            async with self._slots:
                correct = await asyncio.to_thread(self._matches, password, expected)
                if not correct:
                    for hashed in _padding_hashes(expected, most_expensive):
                        await asyncio.to_thread(self._matches, password, hashed)
        finally:
            self._pending -= 1
        return bool(stored) and correct and self._cache(digest)

    def _cache(self, digest: bytes) -> bool:
        self._verified_until[digest] = self._clock.monotonic() + _CACHE_SECONDS
        self._verified_until.move_to_end(digest)
        while len(self._verified_until) > _MAX_CACHED:
            self._verified_until.popitem(last=False)
        return True


def _padding_hashes(hashed: str, most_expensive: str) -> list[str]:
    """Hashes that take, together with this one, as long as the most expensive: the cost is an exponent of 2."""
    return [f"{hashed[:4]}{cost:02}{hashed[6:]}" for cost in range(_cost(hashed), _cost(most_expensive))]


def _cost(hashed: str) -> int:
    """The two digits after $2b$: bcrypt takes 2 to the power of that many rounds."""
    return int(hashed[4:6])
