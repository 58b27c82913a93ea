"""Checks of accounts that share one rate limit of the API: total budget, and spaces that several accounts poll."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

from exporter.config.document import Lines
from exporter.config.problems import Problem
from exporter.config.settings import API_LIMIT_QPS, Account

_MAX_LISTED_SPACES = 5
_Indexed = tuple[int, Account]
"""An account with its index in the file."""


def rate_limit_problems(accounts: Iterable[_Indexed], lines: Lines, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield an error for each group of accounts with a total budget above the rate limit of the API."""
    for group in _groups_with_one_limit(accounts, environ):
        total = round(sum(account.qps for _, account in group), 6)
        if total > API_LIMIT_QPS:
            names = (lines.quoted(("accounts", index, "name"), account.name) for index, account in group)
            each = ", ".join(f"{name} {account.qps:g}" for name, (_, account) in zip(names, group, strict=True))
            yield lines.problem(
                ("accounts", group[-1][0], "qps"),
                f"expected a total of at most {API_LIMIT_QPS:g} for all accounts with the same access key,"
                f" found {total:.9g} ({each})",
            )


def shared_space_warnings(accounts: Iterable[Account], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each group of accounts that poll the same spaces with the same access key."""
    for group in _groups_with_one_limit(enumerate(accounts), environ):
        members = [account for _, account in group if not account.polls_own_numbers]
        discovering = [account.name for account in members if account.discover]
        if discovering and len(members) > 1:
            names = ", ".join(account.name for account in members)
            yield (
                f"accounts {names} have the same access key, and may all poll the spaces that are discovered for"
                f" {' and '.join(discovering)}; configure each space in one account only"
            )
        for polling, spaces in _shared_spaces(account for _, account in group).items():
            yield (
                f"accounts {', '.join(polling)} have the same access key and poll the same {_space_list(spaces)};"
                " configure each space in one account only"
            )


def key_digests(accounts: Iterable[Account], environ: Mapping[str, str]) -> Mapping[str, str]:
    """Map each account to a digest that is equal for accounts with the same access key.

    Accounts whose key cannot be read are not in the result.
    """
    keys = {account.name: account.rate_limit_id(environ) for account in accounts}
    return {name: sha256(key.encode()).hexdigest()[:16] for name, key in keys.items() if key}


def _groups_with_one_limit(accounts: Iterable[_Indexed], environ: Mapping[str, str]) -> Iterator[list[_Indexed]]:
    """Return the groups of two or more accounts that share a rate limit."""
    groups = defaultdict(list)
    for index, account in accounts:
        groups[account.rate_limit_id(environ)].append((index, account))
    groups.pop(None, None)
    return (group for group in groups.values() if len(group) > 1)


def _shared_spaces(accounts: Iterable[Account]) -> Mapping[tuple[str, ...], list[str]]:
    """Map the names of each group of accounts to the spaces that all of them poll."""
    names = defaultdict(list)
    for account in accounts:
        for space in account.polled_spaces:
            names[space.id].append(account.name)
    shared = defaultdict(list)
    for space_id, polling in names.items():
        if len(polling) > 1:
            shared[tuple(polling)].append(space_id)
    return shared


def _space_list(spaces: Sequence[str]) -> str:
    more = len(spaces) - _MAX_LISTED_SPACES
    shown = ", ".join(spaces[:_MAX_LISTED_SPACES])
    return f"space{'s' if len(spaces) > 1 else ''} {shown}{f' and {more} more' if more > 0 else ''}"
