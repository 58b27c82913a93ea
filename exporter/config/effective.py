"""What one process polls: the accounts of its shard, with the spaces that they discovered."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from exporter.config.settings import Settings

_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")

Discovered = Mapping[str, Mapping[str, str]]
"""By account, the names of its discovered spaces by id."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The process with this index, counted from 1, of `count` processes that share one configuration.

    Each polls complete accounts. An account is polled by the shard with the index hash(name) modulo `count`, plus 1;
    the hash is the first 8 bytes of SHA-256 of the name in UTF-8, big-endian. Accounts with one access key are polled
    by the shard of the first of them, because the API's limit belongs to the key.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that is written as 2/5.

        Raises:
            ValueError: it is no shard; the message says what was expected.
        """
        found = _SHARD.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"expected a shard such as 2/5, the second of five, found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def polls(self, account: str) -> bool:
        """Whether this process polls the account."""
        return int.from_bytes(sha256(account.encode()).digest()[:8]) % self.count == self.index - 1

    def state_file(self, path: str | None) -> str | None:
        """The state file of this process."""
        return f"{path}.shard-{self.index}" if path and self.count > 1 else path


UNSHARDED = Shard(1, 1)


def effective_settings(configured: Settings, discovered: Discovered, shard: Shard) -> Settings:
    """The settings of this process. There can be no account left."""
    first = configured.first_with_key
    accounts = [
        account.with_discovered(discovered.get(account.name, {}))
        for account in configured.accounts
        if shard.polls(first[account.name])
    ]
    return configured.model_copy(update={"accounts": accounts, "state_file": shard.state_file(configured.state_file)})
