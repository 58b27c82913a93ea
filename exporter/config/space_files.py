"""Reads the space files of accounts: each file once, all errors at once."""

import os
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

from exporter.config.document import Lines, read_document
from exporter.config.placeholders import expand
from exporter.config.problems import ConfigError, Place, Problem, merge_problems
from exporter.config.settings import Account, ConfiguredSpace
from exporter.config.validation import validate

Spaces = Mapping[int, list[ConfiguredSpace]]
"""The spaces of each account, by the account's index in the configuration file."""
_LocatedSpace = tuple[Lines, Place, ConfiguredSpace]


def files_of(account: Account) -> Mapping[str, list[str]]:
    """Map each pattern of the account to the matching files, sorted by name."""
    return {pattern: sorted(glob(pattern, recursive=True)) for pattern in account.space_files or ()}


def read_spaces(
    main: Path, accounts: Iterable[tuple[int, Account]], variables: Mapping[str, str] | None
) -> tuple[Spaces, list[Problem]]:
    """Return the spaces of the accounts and the errors. The spaces in the configuration file (`main`) are first, then
    those in space files.

    Placeholders in space files are replaced with these variables.
    """
    spaces_by_file: dict[tuple[str, type], list[ConfiguredSpace]] = {}
    spaces, main_lines = {}, Lines(main)
    problems: list[Problem] = []
    for index, account in accounts:
        located_spaces: list[_LocatedSpace] = [
            (main_lines, ("accounts", index, "spaces", position), space)
            for position, space in enumerate(account.spaces or ())
        ]
        matches = files_of(account)
        problems += _patterns_without_files(account, index, matches, main_lines)
        for file in _distinct_files(matches):
            key = file, account.space_type()
            if key not in spaces_by_file:
                spaces_by_file[key], file_problems = _read_file(Path(file), account, variables)
                problems += file_problems
            lines = Lines(Path(file))
            located_spaces += [(lines, (number,), space) for number, space in enumerate(spaces_by_file[key])]
        spaces[index] = [space for _, _, space in located_spaces]
        problems += _duplicate_problems(located_spaces)
    return spaces, problems


def _patterns_without_files(
    account: Account, index: int, matches: Mapping[str, list[str]], lines: Lines
) -> Iterator[Problem]:
    for position, pattern in enumerate(account.space_files or ()):
        if not matches[pattern]:
            place = ("accounts", index, "space_files", position)
            found = f"found none for {lines.quoted(place, pattern)}"
            yield lines.problem(place, f"expected at least one file, {found}")


def _distinct_files(matches: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield each file once, even if several patterns match it or a link to it."""
    real_paths: set[str] = set()
    for files in matches.values():
        for file in files:
            if (real_path := os.path.realpath(file)) not in real_paths:
                real_paths.add(real_path)
                yield file


def _read_file(
    path: Path, account: Account, variables: Mapping[str, str] | None
) -> tuple[list[ConfiguredSpace], list[Problem]]:
    try:
        schema: Any = list[account.space_type()]  # type: ignore[misc]  # known only at run time
        document, lines = read_document(path), Lines(path)
        placeholder_problems = expand(document, lines, variables)
        spaces, problems = validate(schema, document, lines)
    except ConfigError as error:
        return [], list(error.problems)
    return spaces or [], merge_problems(placeholder_problems, problems)


def _duplicate_problems(located_spaces: Iterable[_LocatedSpace]) -> Iterator[Problem]:
    first: dict[str, tuple[Lines, Place]] = {}
    for lines, place, space in located_spaces:
        if space.id in first:
            first_lines, first_place = first[space.id]
            where, quoted = first_lines.problem(first_place, "").where, lines.quoted((*place, "id"), space.id)
            yield lines.problem((*place, "id"), f"duplicate space id {quoted} (first defined at {where})")
        else:
            first[space.id] = lines, place
