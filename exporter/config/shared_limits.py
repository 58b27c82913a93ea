"""Accounts whose queries count against one limit of the API: their budgets together, and the spaces that they poll
twice."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

from exporter.config.document import Lines
from exporter.config.problems import Problem
from exporter.config.settings import API_LIMIT_QPS, Account

_MOST_SPACES_IN_A_LINE = 5
_Indexed = tuple[int, Account]
"""An account with its index in the file."""


def over_limit(accounts: Iterable[_Indexed], lines: Lines, environ: Mapping[str, str]) -> Iterator[Problem]:
    """An error for each group of accounts that would send more queries than the API's limit, together."""
    for group in _sharing(accounts, environ):
        total = round(sum(account.qps for _, account in group), 6)
        if total > API_LIMIT_QPS:
            names = (lines.shown(("accounts", index, "name"), account.name) for index, account in group)
            each = ", ".join(f"{name} {account.qps:g}" for name, (_, account) in zip(names, group, strict=True))
            yield lines.problem(
                ("accounts", group[-1][0], "qps"),
                f"expected at most {API_LIMIT_QPS:g} for all accounts with the same access key together,"
                f" found {total:.9g} ({each})",
            )


def polled_twice(accounts: Iterable[Account], environ: Mapping[str, str]) -> Iterator[str]:
    """A warning for each group of accounts that poll the same spaces with the same access key."""
    for group in _sharing(enumerate(accounts), environ):
        members = [account for _, account in group if not account.polls_own_numbers]
        discovering = [account.name for account in members if account.discover]
        if discovering and len(members) > 1:
            names = ", ".join(account.name for account in members)
            yield (
                f"accounts {names} have the same access key, and spaces that are discovered for"
                f" {' and '.join(discovering)} can be polled twice; keep each space in one account"
            )
        for polling, spaces in _spaces_alike(account for _, account in group).items():
            yield (
                f"accounts {', '.join(polling)} have the same access key, and each polls {_listed(spaces)};"
                " keep each space in one account"
            )


def key_digests(accounts: Iterable[Account], environ: Mapping[str, str]) -> Mapping[str, str]:
    """By account, a digest of what its limit belongs to: the same for accounts with the same access key. Accounts with
    an unknown key are left out."""
    keys = {account.name: account.shared_limit(environ) for account in accounts}
    return {name: sha256(key.encode()).hexdigest()[:16] for name, key in keys.items() if key}


def _sharing(accounts: Iterable[_Indexed], environ: Mapping[str, str]) -> Iterator[list[_Indexed]]:
    """The groups of accounts that share a limit."""
    groups = defaultdict(list)
    for index, account in accounts:
        groups[account.shared_limit(environ)].append((index, account))
    groups.pop(None, None)
    return (group for group in groups.values() if len(group) > 1)


def _spaces_alike(accounts: Iterable[Account]) -> Mapping[tuple[str, ...], list[str]]:
    """The spaces that several of the accounts poll, by the names of these accounts."""
    names = defaultdict(list)
    for account in accounts:
        for space in account.polled_spaces:
            names[space.id].append(account.name)
    alike = defaultdict(list)
    for space_id, polling in names.items():
        if len(polling) > 1:
            alike[tuple(polling)].append(space_id)
    return alike


def _listed(spaces: Sequence[str]) -> str:
    more = len(spaces) - _MOST_SPACES_IN_A_LINE
    shown = ", ".join(spaces[:_MOST_SPACES_IN_A_LINE])
    return f"the space{'s' if len(spaces) > 1 else ''} {shown}{f' and {more} more' if more > 0 else ''}"
