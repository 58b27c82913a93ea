"""Reading the configuration: files and environment in, `Settings` out, or every problem at once."""

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporter.config.credentials import CredentialReader, variable
from exporter.config.document import Lines, read_document
from exporter.config.problems import ConfigError, Problem
from exporter.config.settings import Account, Settings
from exporter.config.space_files import SpaceFiles
from exporter.config.validation import validate
from exporter.sources.cams.default_chain import is_installed

_FILE_KEYS = ("access_key_id_file", "access_key_secret_file", "security_token_file")


class Configuration:
    """The configuration where it stands: in a file and the space files that it names, or in the environment."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._main: Settings | None = None
        """What counts of the main file."""
        self._space_files = SpaceFiles(path or Path(), [])

    def load(self) -> Settings:
        """The settings as they stand there now; what is broken is an error, also of a space file.

        Raises:
            ConfigError: anything is wrong.
        """
        _require_certificates(self._environ)
        if self._path is None:
            return _load_environment(self._environ)
        main, accounts, problems = _load_main(self._path, self._environ)
        space_files = SpaceFiles(self._path, accounts)
        broken = space_files.problems()
        if broken and not problems and main == self._main:
            self._space_files.blame(space_files)
            raise _refusal(self._path, broken, mends_itself=True)
        if main is None or problems or broken:
            raise _refusal(self._path, [*problems, *broken])
        self._main, self._space_files = main, space_files
        return _with_spaces(main, space_files)

    def load_changed_spaces(self) -> Settings | None:
        """The settings that were loaded last, with the space files as they are now; None where no other spaces count.

        The main file may be half way through an edit: what stands there now is not looked at.
        """
        if self._main is None or not self._space_files.look():
            return None
        return _with_spaces(self._main, self._space_files)

    def space_files(self) -> Mapping[str, bool]:
        """By space file, whether what was read there last is what counts."""
        return self._space_files.up()


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file, its space files included; without a file, one account from the environment.

    Raises:
        ConfigError: anything is wrong.
    """
    return Configuration(path, environ).load()


def _list(document: Any, key: str) -> list[Any]:
    entries = document.get(key) if isinstance(document, dict) else None
    return entries if isinstance(entries, list) else []


def _load_main(
    path: Path, environ: Mapping[str, str]
) -> tuple[Settings | None, list[tuple[int, Account]], list[Problem]]:
    """The main file's settings, its good accounts by their index even where it is wrong elsewhere, and all problems."""
    document, lines = read_document(path), Lines(path)
    settings, problems = validate(Settings, document, lines)
    accounts = list(enumerate(settings.accounts) if settings else _good_accounts(document, lines))
    accounts = [(index, _located(account, path.parent)) for index, account in accounts]
    problems += [lines.problem(("accounts", index, "name"), text) for index, text in _repeated_names(accounts)]
    for index, account in accounts:
        wrong = _credential_problems(account, environ)
        problems += [lines.problem(("accounts", index, key), text) for key, text in wrong]
    if settings:
        state_file = settings.state_file and str(path.parent / settings.state_file)
        located = {"accounts": [account for _, account in accounts], "state_file": state_file}
        settings = settings.model_copy(update=located)
    return settings, accounts, problems


def _refusal(path: Path, problems: list[Problem], *, mends_itself: bool = False) -> ConfigError:
    error = ConfigError(
        sorted(problems, key=lambda problem: (problem.file != str(path), problem.file, problem.line or 0))
    )
    error.mends_itself = mends_itself
    return error


def _with_spaces(main: Settings, space_files: SpaceFiles) -> Settings:
    accounts = [
        account if account.polls_own_numbers else account.model_copy(update={"spaces": space_files.spaces_of(account)})
        for account in main.accounts
    ]
    return main.model_copy(update={"accounts": accounts})


def _require_certificates(environ: Mapping[str, str]) -> None:
    """For httpx would end the program by a traceback."""
    try:
        if file := environ.get("SSL_CERT_FILE"):
            ssl.create_default_context(cafile=file)
    except OSError as error:
        text = f"expected a readable file of certificates, in PEM, found: {error.strerror or error}"
        raise ConfigError([Problem("environment", ("SSL_CERT_FILE",), text)]) from error


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


def _located(account: Account, folder: Path) -> Account:
    found = {name: getattr(account, name) for name in _FILE_KEYS}
    return account.model_copy(update={name: str(folder / file) for name, file in found.items() if file})


def _credential_problems(account: Account, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if account.credentials is None:
        for problem in CredentialReader(account, environ).problems():
            yield problem.key, str(problem)
        return
    if any(getattr(account, key) is not None for key in (*_FILE_KEYS, "access_key_id", "access_key_secret")):
        yield "credentials", "expected either credentials or a key, found both"
    if not is_installed():
        yield "credentials", "expected its extra (pip install -r requirements-credentials.lock), found none"
