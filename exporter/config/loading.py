"""Reading the configuration: files and environment in, `Settings` out, or every problem at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from exporter.config.credentials import CredentialReader, variable
from exporter.config.default_chain import is_installed
from exporter.config.document import Lines, read_document
from exporter.config.following import Version, version_of
from exporter.config.problems import ConfigError, Place, Problem
from exporter.config.settings import Account, Settings, Space
from exporter.config.validation import validate

_SpaceFiles = frozenset[tuple[str, Version]]
_FILE_KEYS = ("access_key_id_file", "access_key_secret_file", "security_token_file")


class Configuration:
    """The configuration where it stands: in a file and the space files that it names, or in the environment."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._document: Any = None
        self._spaces_seen: _SpaceFiles | None = None
        """None while what stands there is wrong, so that it is tried again and again."""
        self._sizes: set[tuple[str, int | None]] = set()
        """Of the space files, when they were looked at last."""
        self._told = ""

    def load(self) -> Settings:
        """The settings as they stand there now.

        Raises:
            ConfigError: anything is wrong.
        """
        return self._load(read_document(self._path)) if self._path else _load_environment(self._environ)

    def load_changed_spaces(self) -> Settings | None:
        """The settings that were loaded last, with the space files as they are now; None where those have not changed.

        The main file may be half way through an edit: what stands there now is not looked at. So may be a space file,
        which is why it counts once it has kept its size until the next look.

        Raises:
            ConfigError: anything is wrong; told once, and tried again every time.
        """
        told = self._told
        if self._path is None:
            return None
        found = _space_files(self._document, self._path.parent)
        before, self._sizes = self._sizes, {(file, stat and stat[-1]) for file, (stat,) in found}
        if found == self._spaces_seen or self._sizes != before:
            return None
        try:
            return self._load(self._document)
        except ConfigError as error:
            if str(error) == told:
                return None
            raise

    def _load(self, document: Any) -> Settings:
        assert self._path
        seen = _space_files(document, self._path.parent)
        try:
            settings = _load_document(document, self._path, self._environ)
        except ConfigError as error:
            if document == self._document:  # the main file is the one that counts, so it is what it names that is wrong
                error.mends_itself = True
                self._spaces_seen, self._told = None, str(error)
            raise
        self._document, self._spaces_seen, self._told = document, seen, ""
        return settings


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file, its space files included; without a file, one account from the environment.

    Raises:
        ConfigError: anything is wrong.
    """
    return Configuration(path, environ).load()


def _space_files(document: Any, folder: Path) -> _SpaceFiles:
    """The files that the document's patterns lead to, each with its version; of a document that may be wrong."""
    found = set()
    for entry in _list(document, "accounts"):
        for pattern in _list(entry, "space_files"):
            found |= {(file, version_of([folder / file])) for file in _matching(str(pattern), folder)}
    return frozenset(found)


def _matching(pattern: str, folder: Path) -> list[str]:
    try:
        return sorted(glob(pattern, root_dir=folder, recursive=True))
    except ValueError:  # a NUL, which the schema tells of
        return []


def _list(document: Any, key: str) -> list[Any]:
    entries = document.get(key) if isinstance(document, dict) else None
    return entries if isinstance(entries, list) else []


def _load_document(document: Any, path: Path, environ: Mapping[str, str]) -> Settings:
    lines = Lines(path)
    settings, problems = validate(Settings, document, lines)
    accounts = list(enumerate(settings.accounts) if settings else _good_accounts(document, lines))
    problems += [lines.problem(("accounts", index, "name"), text) for index, text in _repeated_names(accounts)]
    loaded = []
    for index, account in accounts:
        try:
            loaded.append(_load_account(account, ("accounts", index), lines, path.parent, environ))
        except ConfigError as error:
            problems += error.problems
    if problems or settings is None:
        raise ConfigError(
            sorted(problems, key=lambda problem: (problem.file != str(path), problem.file, problem.line or 0))
        )
    state_file = settings.state_file and str(path.parent / settings.state_file)
    return settings.model_copy(update={"accounts": loaded, "state_file": state_file})


def _load_environment(environ: Mapping[str, str]) -> Settings:
    account = Account(name="default")
    problems = [
        Problem(
            "environment", (name,), str(problem) if environ.get(name, "").strip() else "expected text, found nothing"
        )
        for problem in CredentialReader(account, environ).problems()
        for name in [variable(problem.key)]
    ]
    if problems:
        raise ConfigError(problems)
    return Settings(accounts=[account])


def _good_accounts(document: Any, lines: Lines) -> Iterator[tuple[int, Account]]:
    """The accounts of a document that is wrong elsewhere: their files are looked at all the same."""
    for index, entry in enumerate(_list(document, "accounts")):
        account, _ = validate(Account, entry, lines)
        if account:
            yield index, account


def _repeated_names(accounts: list[tuple[int, Account]]) -> Iterator[tuple[int, str]]:
    seen = set()
    for index, account in accounts:
        if account.name in seen:
            yield index, f"expected a name of its own, found {account.name!r} a second time"
        seen.add(account.name)


def _load_account(account: Account, place: Place, lines: Lines, folder: Path, environ: Mapping[str, str]) -> Account:
    found = {name: getattr(account, name) for name in _FILE_KEYS}
    account = account.model_copy(update={name: str(folder / file) for name, file in found.items() if file})
    listed, problems = _listed(account, place, lines, folder)
    problems += [lines.problem((*place, key), text) for key, text in _credential_problems(account, environ)]
    problems += _repeated_spaces(listed)
    if problems:
        raise ConfigError(problems)
    if account.polls_own_numbers:
        return account
    return account.model_copy(update={"spaces": [entry.space for entry in listed]})


def _credential_problems(account: Account, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if account.credentials is None:
        for problem in CredentialReader(account, environ).problems():
            yield problem.key, str(problem)
        return
    if any(getattr(account, key) is not None for key in (*_FILE_KEYS, "access_key_id", "access_key_secret")):
        yield "credentials", "expected either credentials or a key, found both"
    if not is_installed():
        yield "credentials", "expected the extra that it needs (pip install chatapp-exporter[credentials]), found none"


def _listed(account: Account, place: Place, lines: Lines, folder: Path) -> tuple[list["_Listed"], list[Problem]]:
    """The account's spaces, those of its space files included."""
    listed = [_Listed(lines, (*place, "spaces", i), space) for i, space in enumerate(account.spaces or ())]
    problems = []
    for index, pattern in enumerate(account.space_files or ()):
        files = _matching(pattern, folder)
        if not files:
            text = f"expected at least one file, found none for {pattern!r}"
            problems.append(lines.problem((*place, "space_files", index), text))
        for file in files:
            try:
                listed += _load_spaces(folder / file)
            except ConfigError as error:
                problems += error.problems
    return listed, problems


@dataclass(frozen=True, slots=True)
class _Listed:
    """A space, and where it stands."""

    lines: Lines
    place: Place
    space: Space

    def __str__(self) -> str:
        return str(self.lines.problem(self.place, "")).rstrip(": ")


def _load_spaces(path: Path) -> list[_Listed]:
    document = read_document(path)
    lines = Lines(path)
    spaces, problems = validate(list[Space], document, lines)
    if problems or spaces is None:
        raise ConfigError(problems)
    return [_Listed(lines, (index,), space) for index, space in enumerate(spaces)]


def _repeated_spaces(listed: list[_Listed]) -> Iterator[Problem]:
    first: dict[str, _Listed] = {}
    for entry in listed:
        if other := first.get(entry.space.id):
            text = f"expected a space of its own, found {entry.space.id!r}, which stands at {other} too"
            yield entry.lines.problem((*entry.place, "id"), text)
        first.setdefault(entry.space.id, entry)
