"""Several processes on one configuration: which spaces, and how much of each budget, are those of one process.

Where a space goes is a part of the contract, for a process forgets the spaces that are not its own. An account has
`permits(qps)` permits, floor(qps) and at least one, which go to the shards in turn, the first to the shard at
hash(account) modulo `count`; a space goes to the permit at hash(account, NUL, space) modulo their number. The hash is
the first 8 bytes of SHA-256 of the text in UTF-8, big-endian. So a space that comes or goes moves no other; another
number of shards, or another whole number of queries a second, does.
"""

import math
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from exporter.config.settings import Account, Settings

_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Shard:
    """The `index`th of `count` processes, counted from 1.

    A budget is dealt out in whole permits: shares below a query a second could arrive together, several within one
    second, and the fraction of a share above it would be lost to all.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that is written as 2/5.

        Raises:
            ValueError: it is none; the message says what was expected.
        """
        found = _SHARD.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"expected a shard such as 2/5, the second of five, found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, account: str, qps: float, space: str) -> bool:
        """Whether it polls this space; `qps` are what the account has for all shards together."""
        return self._holds(account, _hash(f"{account}\0{space}") % _permits(qps))

    def share(self, account: str, qps: float) -> float:
        """What it may use of the account's `qps`; 0 where it has no part in the account."""
        permits = range(_permits(qps))
        return qps * sum(self._holds(account, permit) for permit in permits) / len(permits)

    def of(self, settings: Settings) -> Settings:
        """The settings of this process: its spaces, its shares and a state file of its own. An account of which it has
        no space, and can discover none, is left out, and there may be none left."""
        if self.count == 1:
            return settings
        accounts = [part for account in settings.accounts if (part := self._part(account))]
        state_file = settings.state_file and f"{settings.state_file}.shard-{self.index}"
        return settings.model_copy(update={"accounts": accounts, "state_file": state_file})

    def _part(self, account: Account) -> Account | None:
        taken = [space for space in account.polled_spaces if self.takes(account.name, account.qps, space.id)]
        share = self.share(account.name, account.qps)
        if not taken and not (account.discover and share):
            return None
        spaces = None if account.polls_own_numbers else taken
        return account.model_copy(update={"qps": share, "spaces": spaces})

    def _holds(self, account: str, permit: int) -> bool:
        return (_hash(account) + permit) % self.count == self.index - 1


WHOLE = Shard(1, 1)
"""One process that polls everything."""


def _permits(qps: float) -> int:
    return max(1, math.floor(qps))


def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8])
