"""The access key of an account: from the configuration, from files or from environment variables.

Environment variables are used only if the account's configuration has no part of the key.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from exporter.files import read_error_text, read_text
from exporter.source import DeniedError, SourceError
from exporter.sources.cams.signing import Credentials, require_printable_ascii
from exporter.threads import READ_SECONDS, BlockingCalls

_log = structlog.get_logger()

_PARTS = ("access_key_id", "access_key_secret", "security_token")
_DESCRIPTIONS = dict(zip(_PARTS, ("an access key ID", "an access key secret", "a security token"), strict=True))
_ASSIGNMENT = re.compile(r"^\s*(?:export\s|[A-Za-z][\w.-]*\s*[=:]\s*[^=\s]|[A-Z0-9]+(?:_[A-Z0-9]+)+=$)", re.MULTILINE)
"""NAME=value or name: value, as in a file with environment variables. A base64 token has "=" only at its end."""
_QUOTE_CHARACTERS = ('"', "'")


class AccessKey:
    """The access key of one account. `literals` and `files` are the values and file names from the configuration.

    Files are read in a thread for each request. If a file is missing, invalid or not read within the time limit, the
    last complete key is used.
    """

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
        configured = [key for key, text in literals.items() if text is not None]
        self._configured_keys = configured + [f"{key}_file" for key in self._files]
        self._environ = {} if self._configured_keys else environ
        self._last_readable: Credentials | None = None
        self._last_used: Credentials | None = None
        self._failing = False
        self._reads = BlockingCalls()

    def read(self) -> Credentials:
        """Return the current key.

        Raises:
            SourceError: a part is missing, or its file cannot be read.
        """
        self._last_readable = Credentials(*map(self._read_part, _PARTS))
        return self._last_readable

    def read_id(self) -> str | None:
        """Return the ID of the current key, or None if the ID cannot be read."""
        try:
            return self._read_part("access_key_id")
        except SourceError:
            return None

    @property
    def is_temporary(self) -> bool:
        """Whether the key has a security token."""
        return "security_token" in self._files or bool(self._variable("security_token"))

    def problems(self) -> Iterator[SourceError]:
        """Yield the problem of each part. (`read` raises only the first one.)"""
        for key in _PARTS:
            try:
                self._read_part(key)
            except SourceError as problem:
                yield problem

    async def current(self) -> Credentials:
        """Return the key for a request.

        Raises:
            DeniedError: the key cannot be read, and no earlier read was successful.
        """
        try:
            self._last_used = await self._read_with_time_limit() if self._files else self.read()
            self._log_change(None)
        except SourceError as problem:
            if self._last_readable is None:
                raise DeniedError("credentials", f"{problem.key}: {problem}") from problem
            self._last_used = self._last_readable
            self._log_change(problem)
        return self._last_used

    def changed(self) -> bool:
        """Return whether the key differs from the key of the last request."""
        try:
            return self._last_used is not None and self._last_used != self.read()
        except SourceError:
            return False

    async def _read_with_time_limit(self) -> Credentials:
        try:
            if self._reads.hangs and self._last_readable:  # only the first request waits for a read that hangs
                raise TimeoutError
            return await self._reads.run(self.read, seconds=READ_SECONDS)
        except TimeoutError as error:
            key = f"{next(iter(self._files))}_file"
            raise SourceError(key, f"reading this file timed out after {READ_SECONDS:g} s") from error

    def _log_change(self, problem: SourceError | None) -> None:
        """Log when the files become unreadable, and when they are readable again."""
        if problem and not self._failing:
            event = "access key cannot be read, using the last key"
            _log.error(event, account=self._account, key=problem.key, problem=str(problem))
        elif self._failing and not problem:
            _log.info("access key readable again", account=self._account)
        self._failing = problem is not None

    def _read_part(self, key: str) -> str:
        literal, file = self._literals.get(key), self._files.get(key)
        if literal is not None and file is not None:
            raise SourceError(key, f"expected either {key} or {key}_file, found both")
        if file is not None:
            return _read_secret(f"{key}_file", file)
        if literal is not None:
            return _require_usable(key, literal)
        if text := self._variable(key):
            return _require_usable(key, text, place=f" in the environment variable {variable_name(key)}")
        if key == "security_token":
            return ""
        raise self._missing_part(key)

    def _variable(self, key: str) -> str:
        return self._environ.get(variable_name(key), "").strip()

    def _missing_part(self, key: str) -> SourceError:
        if self._configured_keys:
            found = f"found only {', '.join(self._configured_keys)}"
            why = "environment variables are used only if the account sets none of these keys"
            return SourceError(key, f"expected {key} or {key}_file, {found}; {why}")
        name = variable_name(key)
        if variables := [variable_name(part) for part in _PARTS if self._variable(part)]:
            return SourceError(key, f"set the environment variable {name}, found only {', '.join(variables)}")
        return SourceError(key, f"set {key}, {key}_file or the environment variable {name}", variable=name)


def variable_name(key: str) -> str:
    """Return the name of the environment variable with this part of the key."""
    return f"ALIBABA_CLOUD_{key.upper()}"


def _read_secret(key: str, path: Path) -> str:
    """Return the trimmed text of a file. Errors do not contain the path, because it can be a secret by mistake."""
    try:
        text = read_text(path).strip()
        _require_secret(text)
    except OSError as error:
        raise SourceError(key, read_error_text(error)) from error
    except ValueError as error:
        found = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SourceError(key, f"expected a secret in this file, found {found}") from error
    return text


def _require_usable(key: str, text: str, place: str = "") -> str:
    try:
        _require_secret(text)
    except ValueError as error:
        raise SourceError(key, f"expected {_DESCRIPTIONS[key]}{place}, found {error}") from error
    return text


def _require_secret(text: str) -> None:
    """Check that the text is a secret, without a name or quotes. The error does not contain the text.

    Raises:
        ValueError: the text has a name or quotes, is empty, or has characters other than printable ASCII.
    """
    if _ASSIGNMENT.search(text):
        raise ValueError("NAME=value; remove the name")
    if text.startswith(_QUOTE_CHARACTERS) or text.endswith(_QUOTE_CHARACTERS):
        raise ValueError("a value in quotes; remove the quotes")
    require_printable_ascii(text)
