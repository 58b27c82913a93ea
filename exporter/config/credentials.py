"""Where an account's access key comes from: the file, files that it names, or the environment."""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from exporter.chatapp.signing import Credentials
from exporter.config.settings import Account

_log = structlog.get_logger()


class CredentialProblem(ValueError):
    """A credential cannot be had. `key` is the configuration key at fault, the text says what is wrong."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class SecretFile:
    """A file's trimmed text, read again when the file changes. One that turns unreadable keeps its last text."""

    def __init__(self, key: str, path: Path) -> None:
        self._key = key
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def __call__(self) -> str:
        """Raises CredentialProblem if it could never be read."""
        try:
            stat = self._path.stat()
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if version != self._seen:
                self._text, self._seen = self._read(), version
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else str(error)
            if self._seen is None:
                raise CredentialProblem(
                    self._key, f"expected a readable file, found {self._path}: {problem}"
                ) from error
            _log.warning("secret file unreadable, the last value stays", file=str(self._path), problem=problem)
        return self._text

    def _read(self) -> str:
        text = self._path.read_text(encoding="utf-8").strip()
        _require_plain(text)
        return text


class CredentialReader:
    """One account's credentials as they are now.

    Raises (when called):
        CredentialProblem: a part of the key is set nowhere, or its file was never readable.
    """

    def __init__(self, account: Account, environ: Mapping[str, str]) -> None:
        secret = account.access_key_secret
        self._environ = environ
        self._id = self._source("access_key_id", account.access_key_id, account.access_key_id_file)
        self._secret = self._source(
            "access_key_secret", secret.get_secret_value() if secret else None, account.access_key_secret_file
        )
        self._token = self._source("security_token", None, account.security_token_file, required=False)

    def __call__(self) -> Credentials:
        return Credentials(self._id(), self._secret(), self._token())

    def _source(self, key: str, literal: str | None, path: str | None, *, required: bool = True) -> Callable[[], str]:
        if literal is not None and path is not None:
            raise CredentialProblem(key, f"expected either {key} or {key}_file, found both")
        if path is not None:
            return SecretFile(f"{key}_file", Path(path))
        if literal is not None:
            return lambda: _checked(key, literal)
        variable = f"ALIBABA_CLOUD_{key.upper()}"
        text = self._environ.get(variable, "").strip()
        if not text and required:
            raise CredentialProblem(
                key, f"expected this key, {key}_file or the variable {variable}, found none of them"
            )
        return lambda: _checked(key, text)


def _checked(key: str, text: str) -> str:
    try:
        _require_plain(text)
    except ValueError as error:
        raise CredentialProblem(key, str(error)) from error
    return text


def _require_plain(text: str) -> None:
    """Credentials travel in headers, where anything else would be a failure that nobody can read."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("expected printable ASCII, found other characters")
