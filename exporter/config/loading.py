"""Loads the configuration from files and environment variables, and reports all errors at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporter.config.document import Lines, read_document
from exporter.config.environment import environment_problems
from exporter.config.placeholders import expand
from exporter.config.problems import ConfigError, Problem, merge_problems
from exporter.config.settings import Account, Settings
from exporter.config.shared_limits import key_digests, rate_limit_problems, shared_space_warnings
from exporter.config.space_files import files_of, read_spaces
from exporter.config.validation import validate
from exporter.files import creation_problem
from exporter.source import SourceError

Version = tuple[int, int, int] | None
_MAX_CHANGING_CALLS = 6
"""If consecutive calls of `changed` find new versions, each sixth call does not wait for stable files."""


class Configuration:
    """A configuration file and its space files, or the environment if there is no file. With `expand`, placeholders in
    the files are replaced with environment variables."""

    def __init__(
        self, path: Path | None, environ: Mapping[str, str], schema: type[Settings], *, expand: bool = False
    ) -> None:
        self._path = path
        self._environ = environ
        self._variables = environ if expand else None
        self._schema = schema
        self._accounts: list[tuple[int, Account]] = []
        self._invalid_files: frozenset[str] = frozenset()
        self._loaded_versions: Mapping[str, Version] = {}
        self._latest_versions: Mapping[str, Version] = {}
        self._changing_calls = 0
        """Consecutive calls of `changed` that found new versions."""
        self._state_file: str | None = None
        """The state file of the last successful `load`."""

    def load(self) -> Settings:
        """Read the files and return the settings.

        Raises:
            ConfigError: the configuration has errors.
        """
        return self._from_file(self._path) if self._path else self._from_environment()

    def changed(self, *, retry: bool = False) -> bool:
        """Whether the configuration must be loaded: the space files differ from the last `load`, or `retry` is true.

        While files are being written, the result is False: two consecutive calls must find the same versions. If the
        files never stop changing, each sixth call can return True.
        """
        before, self._latest_versions = self._latest_versions, self._versions()
        self._changing_calls = 0 if self._latest_versions == before else self._changing_calls + 1
        is_due = self._changing_calls % _MAX_CHANGING_CALLS == 0
        return is_due and (retry or self._latest_versions != self._loaded_versions)

    def space_files(self) -> Mapping[str, bool]:
        """Map each space file to whether the last `load` read it without errors."""
        return {_printable(file): file not in self._invalid_files for file in self._loaded_versions}

    def _from_file(self, path: Path) -> Settings:
        # of the previous accounts, for the case that the configuration file cannot be read
        self._loaded_versions = self._latest_versions = self._versions()
        document, lines = read_document(path), Lines(path)
        placeholder_problems = expand(document, lines, self._variables)
        settings, problems = validate(self._schema, document, lines, path.parent)
        self._accounts = list(enumerate(settings.accounts) if settings else self._valid_accounts(document, lines))
        # of the new accounts, before their space files are read, so that `changed` detects a later change
        self._loaded_versions = self._latest_versions = self._versions()
        if settings and settings.state_file != self._state_file:  # not checked while in use: its disk may not respond
            problems += _state_file_problems(settings, lines)
        problems += _account_problems(self._accounts, lines, self._environ)
        problems += rate_limit_problems(self._accounts, lines, self._environ)
        uses_proxy = any(account.is_remote for _, account in self._accounts)
        problems += environment_problems(self._environ, uses_proxy=uses_proxy)
        spaces, space_file_problems = read_spaces(path, self._accounts, self._variables)
        self._invalid_files = frozenset(problem.file for problem in space_file_problems)
        problems = merge_problems(placeholder_problems, [*problems, *space_file_problems])
        if settings is None or problems:
            raise ConfigError(sorted(problems, key=self._sort_key))
        accounts = [
            account if account.polls_own_numbers else account.model_copy(update={"spaces": spaces[index]})
            for index, account in self._accounts
        ]
        self._state_file = settings.state_file
        return self._with_key_digests(settings.model_copy(update={"accounts": accounts}))

    def _with_key_digests(self, settings: Settings) -> Settings:
        accounts, environ = settings.accounts, self._environ
        warnings = shared_space_warnings(accounts, environ)
        temporary = {account.name for account in accounts if account.has_temporary_key(environ)}
        return settings.with_key_digests(key_digests(accounts, environ), warnings, temporary)

    def _versions(self) -> Mapping[str, Version]:
        files = {file for _, account in self._accounts for matches in files_of(account).values() for file in matches}
        return {file: version_of(Path(file)) for file in sorted(files)}

    def _sort_key(self, problem: Problem) -> tuple[bool, str, int]:
        return problem.file != str(self._path), problem.file, problem.line or 0

    def _valid_accounts(self, document: Any, lines: Lines) -> Iterator[tuple[int, Account]]:
        """Yield the valid accounts of a file with errors. The other checks run on these accounts too."""
        entries = document.get("accounts") if isinstance(document, dict) else None
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            settings, _ = validate(self._schema, {"accounts": [entry]}, lines, self._path and self._path.parent)
            if settings:
                yield index, settings.accounts[0]

    def _from_environment(self) -> Settings:
        settings = self._schema.model_validate({"accounts": [{"name": "default"}]})
        problems = [
            Problem("environment", (), _variable_text(error)) for error in settings.accounts[0].problems(self._environ)
        ]
        problems += environment_problems(self._environ, uses_proxy=settings.accounts[0].is_remote)
        if problems:
            raise ConfigError(problems)
        return self._with_key_digests(settings)


def _variable_text(error: SourceError) -> str:
    """Return the text of an error if there is no configuration file: it names only the environment variable."""
    return f"set the environment variable {error.variable}" if error.variable else str(error)


def _state_file_problems(settings: Settings, lines: Lines) -> Iterator[Problem]:
    if settings.state_file and (problem := creation_problem(Path(settings.state_file))):
        yield lines.problem(("state_file",), problem)


def _account_problems(
    accounts: list[tuple[int, Account]], lines: Lines, environ: Mapping[str, str]
) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, account in accounts:
        if account.name in first:
            place, first_place = ("accounts", index, "name"), ("accounts", first[account.name], "name")
            yield lines.problem(
                place,
                f"duplicate account name {lines.quoted(place, account.name)}"
                f" (first defined at {lines.problem(first_place, '').where})",
            )
        first.setdefault(account.name, index)
        for problem in account.problems(environ):
            yield lines.problem(("accounts", index, problem.key), str(problem))


def version_of(file: Path) -> Version:
    """Return a value that changes with the file: change time, inode and size. For a link, those of the target. Return
    None if the file cannot be accessed."""
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return stat.st_ctime_ns, stat.st_ino, stat.st_size


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
