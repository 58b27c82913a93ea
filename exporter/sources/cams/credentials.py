"""An account's access key: from the configuration, from files that it names, or from the environment.

A key comes from one place: the environment counts only for an account that names no part of a key.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from exporter.files import read_text
from exporter.source import DeniedError, SourceError
from exporter.sources.cams.signing import Credentials, require_plain
from exporter.threads import READ_SECONDS, BlockingCalls

_log = structlog.get_logger()

_PARTS = ("access_key_id", "access_key_secret", "security_token")
_ASSIGNMENT = re.compile(r"^\s*(?:export\s|[A-Za-z][\w.-]*\s*[=:]\s*[^=\s]|[A-Z0-9]+(?:_[A-Z0-9]+)+=$)", re.MULTILINE)
"""NAME=value or name: value, as in a file of environment variables. A token in base64 has "=" at its end only."""
_QUOTES = ('"', "'")


class AccessKey:
    """One account's key, of which the configuration has `literals` and `files` by name. Files are read for each
    request, in a thread; while one cannot be read, or not in time, the last complete key is used."""

    def __init__(
        self,
        account: str,
        literals: Mapping[str, str | None],
        files: Mapping[str, str | None],
        environ: Mapping[str, str],
    ) -> None:
        self._account = account
        self._literals = literals
        self._files = {key: Path(file) for key, file in files.items() if file is not None}
        named = [key for key, text in literals.items() if text is not None]
        self._named = named + [f"{key}_file" for key in self._files]
        self._environ = {} if self._named else environ
        self._last_good: Credentials | None = None
        self._used: Credentials | None = None
        self._failing = False
        self._reads = BlockingCalls()

    def read(self) -> Credentials:
        """The key as it is now.

        Raises:
            SourceError: a part is missing, or its file cannot be read.
        """
        self._last_good = Credentials(*map(self._part, _PARTS))
        return self._last_good

    def read_id(self) -> str | None:
        """The key's id as it is now; None while it cannot be read."""
        try:
            return self._part("access_key_id")
        except SourceError:
            return None

    @property
    def is_temporary(self) -> bool:
        """Whether it has a security token."""
        return "security_token" in self._files or bool(self._variable("security_token"))

    def problems(self) -> Iterator[SourceError]:
        """What is wrong with each part, where `read` stops at the first."""
        for key in _PARTS:
            try:
                self._part(key)
            except SourceError as problem:
                yield problem

    async def current(self) -> Credentials:
        """The key for a request.

        Raises:
            DeniedError: it could never be read.
        """
        try:
            self._used = await self._read_in_time() if self._files else self.read()
            self._report(None)
        except SourceError as problem:
            if self._last_good is None:
                raise DeniedError("credentials", f"{problem.key}: {problem}") from problem
            self._used = self._last_good
            self._report(problem)
        return self._used

    def changed(self) -> bool:
        """Whether it differs from the key of the last request."""
        try:
            return self._used is not None and self._used != self.read()
        except SourceError:
            return False

    async def _read_in_time(self) -> Credentials:
        try:
            if self._reads.hangs and self._last_good:  # the requests of an account do not wait for it again and again
                raise TimeoutError
            return await self._reads.run(self.read, seconds=READ_SECONDS)
        except TimeoutError as error:
            key = f"{next(iter(self._files))}_file"
            raise SourceError(key, f"reading this file timed out after {READ_SECONDS:g} s") from error

    def _report(self, problem: SourceError | None) -> None:
        """One line when the files stop being readable, and one when they are readable again."""
        if problem and not self._failing:
            event = "access key not readable, using the last one"
            _log.error(event, account=self._account, key=problem.key, problem=str(problem))
        elif self._failing and not problem:
            _log.info("access key readable again", account=self._account)
        self._failing = problem is not None

    def _part(self, key: str) -> str:
        literal, file = self._literals.get(key), self._files.get(key)
        if literal is not None and file is not None:
            raise SourceError(key, f"expected either {key} or {key}_file, found both")
        if file is not None:
            return _read_secret(f"{key}_file", file)
        if literal is not None:
            return _checked(key, literal)
        if text := self._variable(key):
            return _checked(key, text, of=f" in the variable {variable(key)}")
        if key == "security_token":
            return ""
        raise SourceError(key, self._missing(key))

    def _variable(self, key: str) -> str:
        return self._environ.get(variable(key), "").strip()

    def _missing(self, key: str) -> str:
        if self._named:
            found = f"found only {', '.join(self._named)}"
            why = "environment variables are used only if the account names none of these keys"
            return f"expected {key} or {key}_file, {found}; {why}"
        if variables := [variable(part) for part in _PARTS if self._variable(part)]:
            return f"expected the variable {variable(key)}, found only {', '.join(variables)}"
        return f"expected {key}, {key}_file or the variable {variable(key)}, found none of them"


def variable(key: str) -> str:
    """The environment variable with this part of the key, for accounts that name no part."""
    return f"ALIBABA_CLOUD_{key.upper()}"


def _read_secret(key: str, path: Path) -> str:
    """A file's trimmed text. Errors do not show its name, which may be the secret itself by mistake."""
    try:
        text = read_text(path).strip()
        _require_secret(text)
    except (OSError, ValueError) as error:
        raise SourceError(key, f"expected a secret in this file, found {_why(error)}") from error
    return text


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are not UTF-8"
    return error.strerror or "no such path" if isinstance(error, OSError) else str(error)


def _checked(key: str, text: str, of: str = "") -> str:
    try:
        _require_secret(text)
    except ValueError as error:
        raise SourceError(key, f"expected a usable value{of}, found {error}") from error
    return text


def _require_secret(text: str) -> None:
    """Raises ValueError, without the text, for what is no secret alone."""
    if _ASSIGNMENT.search(text):
        raise ValueError("NAME=value; remove the name")
    if text.startswith(_QUOTES) or text.endswith(_QUOTES):
        raise ValueError("a value in quotes; remove the quotes")
    require_plain(text)
