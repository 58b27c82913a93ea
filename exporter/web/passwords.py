"""Verifies passwords. Independent of files and HTTP."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping

import bcrypt

from exporter.clock import Clock

_MAX_PASSWORD_BYTES = 72
"""bcrypt ignores further bytes."""
_CACHE_SECONDS = 300.0
_MAX_CACHED = 100
_MAX_CONCURRENT = 2
_MAX_PENDING = 50


class TooManyPending(Exception):
    """Too many passwords wait for verification, so this password was not verified."""


def matches(password: str, hashed: str) -> bool:
    """Whether the hash is a hash of the password. Takes about 0.1 s, by the design of bcrypt."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_MAX_PASSWORD_BYTES], hashed.encode())


class PasswordVerifier:
    """Verifies passwords with bcrypt in threads. A success is cached until 5 minutes after its last use, so that a
    scraper does not wait behind other clients.

    The response time does not show whether a user name exists: all verifications share a queue, and each failure takes
    as long as the verification of the most expensive hash.
    """

    def __init__(self, clock: Clock, matches: Callable[[str, str], bool] = matches) -> None:
        self._clock = clock
        self._matches = matches
        self._verified_until: OrderedDict[bytes, float] = OrderedDict()
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._pending = 0

    async def verify(self, users: Mapping[str, str], user: str, password: str) -> bool:
        """Whether the password is the password of `user`. `users` maps user names to hashes and is not empty.

        Raises:
            TooManyPending: the password was not verified.
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
    """Return hashes that take, together with `hashed`, as long as the most expensive hash: cost is an exponent of 2."""
    return [f"{hashed[:4]}{cost:02}{hashed[6:]}" for cost in range(_cost(hashed), _cost(most_expensive))]


def _cost(hashed: str) -> int:
    """Return the two digits after $2b$: bcrypt runs 2 to the power of this cost rounds."""
    return int(hashed[4:6])
