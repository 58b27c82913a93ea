"""The space files that accounts name: every file read once, all errors at once."""

import os
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from exporter.config.document import Lines, read_document
from exporter.config.placeholders import expand
from exporter.config.problems import ConfigError, Place, Problem, at_one_place
from exporter.config.settings import Account, ConfiguredSpace
from exporter.config.validation import validate

Spaces = Mapping[int, list[ConfiguredSpace]]
"""The spaces of each account, by its index in the file."""
_Listed = tuple[Lines, Place, ConfiguredSpace]


def files_of(account: Account) -> Mapping[str, list[str]]:
    """The files that each of the account's patterns finds now, in order."""
    return {pattern: sorted(glob(pattern, recursive=True)) for pattern in account.space_files or ()}


def read_spaces(
    main: Path, accounts: Iterable[tuple[int, Account]], variables: Mapping[str, str] | None
) -> tuple[Spaces, list[Problem]]:
    """The spaces of the accounts: those of the main file, then those of their space files, with these variables for
    their placeholders."""
    read: dict[tuple[str, type], list[ConfiguredSpace]] = {}
    spaces, problems, in_main = {}, [], Lines(main)
    for index, account in accounts:
        listed: list[_Listed] = [
            (in_main, ("accounts", index, "spaces", position), space)
            for position, space in enumerate(account.spaces or ())
        ]
        found, taken = files_of(account), set()
        for position, pattern in enumerate(account.space_files or ()):
            if not found[pattern]:
                place = ("accounts", index, "space_files", position)
                shown = in_main.shown(place, pattern)
                problems.append(in_main.problem(place, f"expected at least one file, found none for {shown}"))
            for file in found[pattern]:
                if (real := os.path.realpath(file)) in taken:  # an earlier pattern found it too
                    continue
                taken.add(real)
                key = file, account.space_type()
                if key not in read:
                    read[key], wrong = _read(Path(file), account, variables)
                    problems += wrong
                lines = Lines(Path(file))
                listed += [(lines, (number,), space) for number, space in enumerate(read[key])]
        spaces[index] = [space for _, _, space in listed]
        problems += _duplicates(listed)
    return spaces, problems


def _read(
    path: Path, account: Account, variables: Mapping[str, str] | None
) -> tuple[list[ConfiguredSpace], list[Problem]]:
    try:
        shape: Any = list[account.space_type()]  # type: ignore[misc]  # a type that is known when it runs
        document, lines = read_document(path), Lines(path)
        unexpanded = expand(document, lines, variables)
        spaces, problems = validate(shape, document, lines)
    except ConfigError as error:
        return [], list(error.problems)
    return spaces or [], at_one_place(unexpanded, problems)


def _duplicates(listed: Iterable[_Listed]) -> Iterator[Problem]:
    first: dict[str, tuple[Lines, Place]] = {}
    for lines, place, space in listed:
        if space.id in first:
            in_lines, there = first[space.id]
            where, shown = in_lines.problem(there, "").where, lines.shown((*place, "id"), space.id)
            yield lines.problem((*place, "id"), f"duplicate space id {shown} (first defined at {where})")
        else:
            first[space.id] = lines, place
