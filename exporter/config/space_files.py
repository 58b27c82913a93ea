"""The space files of a configuration: each is followed on its own, and a broken one keeps what counted before."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import glob
from itertools import groupby
from pathlib import Path

import structlog

from exporter.config.document import Lines, read_document
from exporter.config.following import version_of
from exporter.config.problems import ConfigError, Place, Problem
from exporter.config.settings import Account, Space
from exporter.config.validation import validate

_Locate = Callable[[Place, str], Problem]
"""Makes a problem of a place in a file, and of what is wrong there."""
_Listing = tuple[_Locate, Place, Sequence[Space]]
"""Spaces that stand in one list, and where."""
_Version = tuple[int, int, int] | None

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _SpaceFile:
    """The spaces of a file that count, the version that was read last, and what is wrong with that version."""

    spaces: tuple[Space, ...] = ()
    version: _Version = None
    problems: tuple[Problem, ...] = ()
    again: bool = False
    """Whether it can become good without being changed, so that it is read at every look."""


_Files = Mapping[str, _SpaceFile]
_NOT_READ = _SpaceFile(again=True)
_NEVER_SEEN = -1


class SpaceFiles:
    """The files that the accounts' patterns lead to: all are read at first, and at each look those that changed."""

    def __init__(self, main: Path, accounts: Iterable[tuple[int, Account]]) -> None:
        self._main = main
        self._accounts = list(accounts)
        self._names = self._found()
        """Of the files, by pattern."""
        names = {name for names in self._names.values() for name in names}
        self._files: _Files = {name: _read(name, _NOT_READ, _version(name)) for name in sorted(names)}
        self._sizes: Mapping[str, int | None] = {}
        """Of the files, when they were looked at last."""

    def problems(self) -> list[Problem]:
        """All that is wrong with the files and the patterns that lead to them, and the spaces that stand twice."""
        in_main = Lines(self._main).problem
        unmatched = [problem for _, problem in self._unmatched(self._names, in_main)]
        broken = [problem for file in self._files.values() for problem in file.problems]
        return [*unmatched, *broken, *self._repeated(self._files, in_main)]

    def spaces_of(self, account: Account) -> list[Space]:
        """The account's spaces that count, in the order in which they are listed."""
        files = [self._files[name] for name in self._names_of(account)]
        return [*(account.spaces or ()), *(space for file in files for space in file.spaces)]

    def up(self) -> dict[str, bool]:
        """By file, whether what was read there last is what counts."""
        # a name that is no UTF-8 could not be shown
        return {name.encode(errors="replace").decode(): not file.problems for name, file in self._files.items()}

    def blame(self, refused: "SpaceFiles") -> None:
        """Count as broken what another reading of the same patterns found so, until a look finds it good."""
        found = groupby(refused.problems(), key=_file_of)
        broken = {
            name: replace(self._files.get(name, _NOT_READ), problems=tuple(problems), again=True)
            for name, problems in found
            if name != str(self._main)
        }
        self._files = {**self._files, **broken, **self._lost(refused._names)}

    def look(self) -> bool:
        """Take over what changed and has kept its size since the last look; whether other spaces count than before.

        A file that is gone takes its spaces along, unless its pattern finds none at all: a mount may be gone.
        """
        found, before = self._found(), self._files
        files = self._looked_at(found)
        self._names = {
            pattern: sorted(files.keys() & {*names, *self._names[pattern]}) for pattern, names in found.items()
        }
        self._files = self._without_repeats(files)
        for name, file in self._files.items():
            _tell(name, before.get(name, _NOT_READ), file)
        return _spaces(self._files) != _spaces(before)

    def _looked_at(self, found: Mapping[str, Sequence[str]]) -> dict[str, _SpaceFile]:
        there, lost = {name for names in found.values() for name in names}, self._lost(found)
        versions = {name: _version(name) for name in sorted({*self._files, *there})}
        before, self._sizes = self._sizes, {name: version and version[-1] for name, version in versions.items()}
        files = {}
        for name, version in versions.items():
            file = self._files.get(name)
            if self._sizes[name] == before.get(name, _NEVER_SEEN):  # else it may be half written, or half replaced
                file = _read(name, file or _NOT_READ, version) if name in there else lost.get(name)
            if file:
                files[name] = file
        return files

    def _lost(self, found: Mapping[str, Sequence[str]]) -> _Files:
        """The files of patterns that find none any more."""
        return {
            name: replace(self._files[name], problems=(problem,), again=True)
            for pattern, problem in self._unmatched(found, self._in_main)
            for name in self._names[pattern]
        }

    @property
    def _in_main(self) -> _Locate:
        """Without lines: the main file may be half way through an edit."""
        return partial(Problem, str(self._main))

    def _without_repeats(self, files: dict[str, _SpaceFile]) -> _Files:
        """Of two files that list one space, the one that changed last keeps what counted before."""
        while problems := [
            problem for problem in self._repeated(files, self._in_main) if self._is_changed(problem.file, files)
        ]:
            for name, blamed in groupby(problems, key=_file_of):
                files[name] = replace(files[name], spaces=self._last_good(name), problems=tuple(blamed), again=True)
        return files

    def _repeated(self, files: _Files, in_main: _Locate) -> Iterator[Problem]:
        """Each space that stands in an account a second time, where it came last.

        What has not changed came first, then files in the order of their times, then those that were broken until now.
        """

        def came(name: str) -> tuple[int, int]:
            was_broken, version = name in self._files and bool(self._files[name].problems), files[name].version
            return (1 + was_broken, version[0]) if version and self._is_changed(name, files) else (0, 0)

        for index, account in self._accounts:
            names = sorted(self._names_of(account), key=came)
            in_files = [(Lines(Path(name)).problem, (), files[name].spaces) for name in names]
            yield from _second_times([(in_main, ("accounts", index, "spaces"), account.spaces or ()), *in_files])

    def _is_changed(self, name: str, files: _Files) -> bool:
        return name in files and files[name].spaces is not self._last_good(name)

    def _last_good(self, name: str) -> tuple[Space, ...]:
        return self._files.get(name, _NOT_READ).spaces

    def _unmatched(self, found: Mapping[str, Sequence[str]], in_main: _Locate) -> Iterator[tuple[str, Problem]]:
        for index, account in self._accounts:
            for position, pattern in enumerate(account.space_files or ()):
                if not found[pattern]:
                    text = f"expected at least one file, found none for {pattern!r}"
                    yield pattern, in_main(("accounts", index, "space_files", position), text)

    def _found(self) -> dict[str, list[str]]:
        folder = self._main.parent
        return {
            pattern: [str(folder / name) for name in sorted(glob(pattern, root_dir=folder, recursive=True))]
            for _, account in self._accounts
            for pattern in account.space_files or ()
        }

    def _names_of(self, account: Account) -> list[str]:
        return [name for pattern in account.space_files or () for name in self._names[pattern]]


def _version(name: str) -> _Version:
    return version_of([Path(name)])[0]


def _read(name: str, known: _SpaceFile, version: _Version) -> _SpaceFile:
    """The file as it is now, where it changed or was broken for a reason that may be gone."""
    if known.version == version and not known.again:
        return known
    try:
        return _SpaceFile(tuple(_load_spaces(Path(name))), version)
    except ConfigError as error:
        return _SpaceFile(known.spaces, version, error.problems, again=isinstance(error.__cause__, OSError))


def _load_spaces(path: Path) -> list[Space]:
    spaces, problems = validate(list[Space], read_document(path), Lines(path))
    if spaces is None:
        raise ConfigError(problems)
    return spaces


def _second_times(listings: Iterable[_Listing]) -> Iterator[Problem]:
    first: dict[str, tuple[_Locate, Place]] = {}
    for locate, place, spaces in listings:
        for index, space in enumerate(spaces):
            if space.id not in first:
                first[space.id] = locate, (*place, index)
                continue
            other, there = first[space.id]
            text = f"expected a space of its own, found {space.id!r}, which stands at {_spelt(other, there)} too"
            yield locate((*place, index, "id"), text)


def _file_of(problem: Problem) -> str:
    return problem.file


def _spelt(locate: _Locate, place: Place) -> str:
    return str(locate(place, "")).rstrip(": ")


def _spaces(files: _Files) -> dict[str, tuple[Space, ...]]:
    return {name: file.spaces for name, file in files.items() if file.spaces}


def _tell(name: str, before: _SpaceFile, now: _SpaceFile) -> None:
    if now.problems and (now.problems, now.version) != (before.problems, before.version):
        text = str(ConfigError(now.problems))
        _log.warning("space file broken, its last good spaces stay", file=name, problems=text)
    if before.problems and not now.problems:
        _log.info("space file good again", file=name)
