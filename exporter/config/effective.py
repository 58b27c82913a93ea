"""The settings of one process: the accounts of its shard, with their discovered spaces."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from exporter.config.settings import Settings

_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")

DiscoveredSpaces = Mapping[str, Mapping[str, str]]
"""Maps each account to its discovered spaces, as names by id."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` processes that share one configuration. `index` starts at 1.

    Each account is polled by one shard: `index` = hash(name) modulo `count` + 1. The hash is the first 8 bytes of the
    SHA-256 of the name in UTF-8, big-endian. Accounts with the same access key are polled by the shard of the first
    account with this key, because the API's rate limit applies to the key.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse INDEX/COUNT, for example 2/5.

        Raises:
            ValueError: the text is not a shard.
        """
        match = _SHARD.fullmatch(text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"expected INDEX/COUNT with INDEX from 1 to COUNT, such as 2/5, found {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def polls(self, account: str) -> bool:
        """Whether the hash of this account name selects this shard. For accounts with the same access key, the name of
        the first account must be used."""
        return int.from_bytes(sha256(account.encode()).digest()[:8]) % self.count == self.index - 1

    def state_file(self, path: str | None) -> str | None:
        """Return the path of this shard's state file. With several shards, each has its own file."""
        return f"{path}.shard-{self.index}" if path and self.count > 1 else path


UNSHARDED = Shard(1, 1)


def effective_settings(configured: Settings, discovered: DiscoveredSpaces, shard: Shard) -> Settings:
    """Return the settings of this shard: only its accounts, with their discovered spaces, and its state file. The list
    of accounts can be empty."""
    first = configured.first_account_with_key
    accounts = [
        account.with_discovered_spaces(discovered.get(account.name, {}))
        for account in configured.accounts
        if shard.polls(first[account.name])
    ]
    return configured.model_copy(update={"accounts": accounts, "state_file": shard.state_file(configured.state_file)})
