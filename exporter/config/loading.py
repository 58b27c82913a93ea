"""Loads the configuration: files and environment in, `Settings` out, or every problem at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporter.config.document import Lines, read_document
from exporter.config.environment import environment_problems
from exporter.config.placeholders import expand
from exporter.config.problems import ConfigError, Problem, at_one_place
from exporter.config.settings import Account, Settings
from exporter.config.shared_limits import key_digests, over_limit, polled_twice
from exporter.config.space_files import files_of, read_spaces
from exporter.config.validation import validate
from exporter.files import creation_problem

Version = tuple[int, int, int] | None
_MOST_LOOKS = 6
"""After so many calls of `changed` in a row that saw a change, the files are loaded all the same."""


class Configuration:
    """A configuration file and the space files that it names, or the environment where there is no file. With `expand`,
    placeholders in the files are replaced by variables of the environment."""

    def __init__(
        self, path: Path | None, environ: Mapping[str, str], shape: type[Settings], *, expand: bool = False
    ) -> None:
        self._path = path
        self._environ = environ
        self._variables = environ if expand else None
        self._shape = shape
        self._accounts: list[tuple[int, Account]] = []
        self._broken: frozenset[str] = frozenset()
        self._loaded: Mapping[str, Version] = {}
        self._seen: Mapping[str, Version] = {}
        self._changing = 0
        """How many calls of `changed` in a row have seen a change."""
        self._state_file: str | None = None
        """That of the last good `load`."""

    def load(self) -> Settings:
        """The settings as the files are now.

        Raises:
            ConfigError: anything is wrong.
        """
        return self._from_file(self._path) if self._path else self._from_environment()

    def changed(self, *, retry: bool = False) -> bool:
        """Whether the space files differ from those of the last `load`, or in any case if `retry`. Not while they
        change: this call and the one before must have seen the same. Files that never stop changing are loaded at every
        sixth call."""
        before, self._seen = self._seen, self._versions()
        self._changing = 0 if self._seen == before else self._changing + 1
        return self._changing % _MOST_LOOKS == 0 and (retry or self._seen != self._loaded)

    def space_files(self) -> Mapping[str, bool]:
        """By space file, whether the last `load` found it good."""
        return {_printable(file): file not in self._broken for file in self._loaded}

    def _from_file(self, path: Path) -> Settings:
        self._loaded = self._seen = self._versions()
        document, lines = read_document(path), Lines(path)
        unexpanded = expand(document, lines, self._variables)
        settings, problems = validate(self._shape, document, lines, path.parent)
        self._accounts = list(enumerate(settings.accounts) if settings else self._valid_accounts(document, lines))
        self._loaded = self._seen = self._versions()  # before the files are read: a later change is seen
        if settings and settings.state_file != self._state_file:  # not if it is in use: its disk may not respond
            problems += _problems_of_state_file(settings, lines)
        problems += _problems_of_accounts(self._accounts, lines, self._environ)
        problems += over_limit(self._accounts, lines, self._environ)
        problems += environment_problems(self._environ, remote=any(account.is_remote for _, account in self._accounts))
        spaces, wrong = read_spaces(path, self._accounts, self._variables)
        self._broken = frozenset(problem.file for problem in wrong)
        problems = at_one_place(unexpanded, [*problems, *wrong])
        if settings is None or problems:
            raise ConfigError(sorted(problems, key=self._order))
        accounts = [
            account if account.polls_own_numbers else account.model_copy(update={"spaces": spaces[index]})
            for index, account in self._accounts
        ]
        self._state_file = settings.state_file
        return self._with_keys(settings.model_copy(update={"accounts": accounts}))

    def _with_keys(self, settings: Settings) -> Settings:
        accounts, environ = settings.accounts, self._environ
        temporary = {account.name for account in accounts if account.has_temporary_key(environ)}
        return settings.with_keys(key_digests(accounts, environ), polled_twice(accounts, environ), temporary)

    def _versions(self) -> Mapping[str, Version]:
        found = {file for _, account in self._accounts for files in files_of(account).values() for file in files}
        return {file: version_of(Path(file)) for file in sorted(found)}

    def _order(self, problem: Problem) -> tuple[bool, str, int]:
        return problem.file != str(self._path), problem.file, problem.line or 0

    def _valid_accounts(self, document: Any, lines: Lines) -> Iterator[tuple[int, Account]]:
        """The accounts without an error in a file that has one elsewhere: their problems are reported too."""
        entries = document.get("accounts") if isinstance(document, dict) else None
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            settings, _ = validate(self._shape, {"accounts": [entry]}, lines, self._path and self._path.parent)
            if settings:
                yield index, settings.accounts[0]

    def _from_environment(self) -> Settings:
        settings = self._shape.model_validate({"accounts": [{"name": "default"}]})
        problems = [
            Problem("environment", (), str(problem)) for problem in settings.accounts[0].problems(self._environ)
        ]
        problems += environment_problems(self._environ, remote=settings.accounts[0].is_remote)
        if problems:
            raise ConfigError(problems)
        return self._with_keys(settings)


def _problems_of_state_file(settings: Settings, lines: Lines) -> Iterator[Problem]:
    if settings.state_file and (problem := creation_problem(Path(settings.state_file))):
        yield lines.problem(("state_file",), problem)


def _problems_of_accounts(
    accounts: list[tuple[int, Account]], lines: Lines, environ: Mapping[str, str]
) -> Iterator[Problem]:
    seen = set()
    for index, account in accounts:
        if account.name in seen:
            place = ("accounts", index, "name")
            yield lines.problem(place, f"duplicate account name {lines.shown(place, account.name)}")
        seen.add(account.name)
        for problem in account.problems(environ):
            yield lines.problem(("accounts", index, problem.key), str(problem))


def version_of(file: Path) -> Version:
    """Changes when the file does: its content by its times and size, or the file behind a link."""
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return stat.st_ctime_ns, stat.st_ino, stat.st_size


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
