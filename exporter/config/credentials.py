"""Where an account's access key comes from: the file, files that it names, or the environment."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from exporter.config.following import Followed
from exporter.config.problems import is_like_a_secret
from exporter.config.settings import Account
from exporter.source import DeniedError
from exporter.sources.cams.default_chain import DefaultChain
from exporter.sources.cams.signing import Credentials, require_plain


class CredentialProblem(ValueError):
    """A credential cannot be had. `key` is the configuration key at fault, the text says what is wrong."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class CredentialReader:
    """One account's credentials as they are now.

    Raises (when called):
        CredentialProblem: a part of the key is set nowhere, or its file was never readable.
    """

    def __init__(self, account: Account, environ: Mapping[str, str]) -> None:
        secret = account.access_key_secret
        self._environ = environ
        self._used: Credentials | None = None
        self._id = self._source("access_key_id", account.access_key_id, account.access_key_id_file)
        self._secret = self._source(
            "access_key_secret", secret.get_secret_value() if secret else None, account.access_key_secret_file
        )
        self._token = self._source("security_token", None, account.security_token_file, required=False)

    def __call__(self) -> Credentials:
        return Credentials(self._id(), self._secret(), self._token())

    async def current(self) -> Credentials:
        """The same for a client, which awaits its credentials.

        Raises:
            DeniedError: instead of CredentialProblem, with its text.
        """
        try:
            self._used = self()
        except CredentialProblem as problem:
            raise DeniedError("credentials", f"{problem.key}: {problem}") from problem
        return self._used

    def changed(self) -> bool:
        """Whether they are others than those that a request used last."""
        return self._used is not None and self._used != self()

    def problems(self) -> Iterator[CredentialProblem]:
        """What is wrong with each part of the key, where a call would stop at the first."""
        for source in (self._id, self._secret, self._token):
            try:
                source()
            except CredentialProblem as problem:
                yield problem

    def _source(self, key: str, literal: str | None, path: str | None, *, required: bool = True) -> Callable[[], str]:
        if literal is not None and path is not None:
            return _failing(key, f"expected either {key} or {key}_file, found both")
        if path is not None:
            return _secret_file(f"{key}_file", Path(path))
        if literal is not None:
            return lambda: _checked(key, literal)
        name = variable(key)
        text = self._environ.get(name, "").strip()
        if not text:
            missing = f"expected this key, {key}_file or the variable {name}, found none of them"
            return _failing(key, missing) if required else lambda: ""
        return lambda: _checked(key, text, of=f" in the variable {name}")


class CredentialSource(Protocol):
    """Where a client's credentials come from."""

    async def current(self) -> Credentials:
        """The credentials as they are now. Raises QueryError."""

    def changed(self) -> bool:
        """Whether they are known to be others than those that a request used last."""


def credential_source(account: Account, environ: Mapping[str, str]) -> CredentialSource:
    """What the account's settings ask for."""
    return DefaultChain() if account.credentials == "default" else CredentialReader(account, environ)


def variable(key: str) -> str:
    """The environment variable that stands in for a key of an account."""
    return f"ALIBABA_CLOUD_{key.upper()}"


def _secret_file(key: str, path: Path) -> Followed[str]:
    """A file's trimmed text. Raises CredentialProblem (when called) if it could never be read."""

    def read() -> tuple[str, tuple[Path, ...]]:
        try:
            text = path.read_text(encoding="utf-8").strip()
            require_plain(text)
        except (OSError, ValueError) as error:
            raise CredentialProblem(
                key, f"expected a readable secret in {_shown(path)}, found {_why(error)}"
            ) from error
        return text, (path,)

    return Followed("secret file", read, CredentialProblem)


def _shown(path: Path) -> str:
    if is_like_a_secret(str(path)):
        return "a file (its name is not shown, for it may be the secret itself)"
    return str(path)


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "bytes that are no UTF-8"
    return error.strerror or "no way to it" if isinstance(error, OSError) else str(error)


def _failing(key: str, problem: str) -> Callable[[], str]:
    def fail() -> str:
        raise CredentialProblem(key, problem)

    return fail


def _checked(key: str, text: str, of: str = "") -> str:
    try:
        require_plain(text)
    except ValueError as error:
        raise CredentialProblem(key, f"expected a usable value{of}, found {error}") from error
    return text
