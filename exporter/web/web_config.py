"""TLS and basic auth, in the format of Prometheus' exporter-toolkit. Knows no HTTP.

Source: github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Keys that are not implemented are
errors: a key without effect would be a protection that its owner relies on.
"""

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import bcrypt
import structlog
from pydantic import AfterValidator, Field

from exporter.clock import Clock
from exporter.config.document import Lines
from exporter.config.fields import Strict, Text
from exporter.config.loading import Version, version_of
from exporter.config.problems import ConfigError, read_timeout_error
from exporter.config.validation import load_document
from exporter.files import require_regular
from exporter.threads import LOAD_SECONDS, BlockingCalls
from exporter.web.passwords import PasswordVerifier

Result = TypeVar("Result")

_log = structlog.get_logger()

_BCRYPT_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{53}")
"""What bcrypt writes; a cost above 19 takes minutes to verify."""

_CLIENT_CERTIFICATES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""The toolkit's two types that do not verify a client's certificate are not implemented."""


def _bcrypt_hash(text: str) -> str:
    try:
        if not _BCRYPT_HASH.fullmatch(text):
            raise ValueError
        bcrypt.hashpw(b"", b"$2b$04$" + text[7:29].encode())  # quick: whether it can read the salt
    except ValueError:
        raise ValueError("a bcrypt hash of a password, as htpasswd -nBC 10 makes it") from None
    return text


class TlsServerConfig(Strict):
    """How connections are encrypted, and which clients may connect."""

    cert_file: Text = Field(description="the certificate and those that lead to it, in PEM; read again when it changes")
    key_file: Text = Field(description="its private key, in PEM; read again when it changes")
    client_ca_file: Text | None = Field(
        None, description="who signs the certificates of clients, in PEM; read again when it changes"
    )
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = Field(
        "NoClientCert", description="whether a client needs a certificate; both that ask for one need `client_ca_file`"
    )
    min_version: Literal["TLS12", "TLS13"] = Field("TLS12", description="the oldest TLS that is spoken")

    @property
    def files(self) -> dict[str, str]:
        """The files that it names, by key."""
        named = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        return {key: name for key, name in named.items() if name}


class WebConfig(Strict):
    """The file of --web.config.file."""

    tls_server_config: TlsServerConfig | None = Field(None, description="TLS; without it, plain HTTP is served")
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt_hash)]] = Field(
        {},
        repr=False,
        description="who may log in, each with the bcrypt hash of the password (`htpasswd -nBC 10 NAME`); without it,"
        " everyone may ask",
    )


class WebConfigFile:
    """A web configuration file. `follow` applies changes of its users and certificates; others require a restart."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises ConfigError if it has errors."""
        self._path = path
        self._verifier = PasswordVerifier(clock)
        self._files: list[Path] = []
        """The files that the web configuration named when it was last read."""
        self._versions: list[Version] = []
        """Of the web configuration and of `_files`, when they were last read."""
        self._last_error = ""
        self._retry_read = False
        """Whether they could not be read."""
        self._reads = BlockingCalls()
        self._config = self._read()
        self._current = self.tls = self._tls_context(self._config.tls_server_config)
        if self.tls:
            # load_cert_chain on a context in use would keep an ECDSA certificate beside a newer RSA one, and would
            # leave none if the key does not match
            self.tls.sni_callback = self._select_context

    async def authenticate(self, user: str, password: str) -> bool:
        """Whether a request with this name and password is admitted; "" for both if it has none."""
        users = self._config.basic_auth_users
        return not users or (bool(user) and await self._verifier.verify(users, user, password))

    async def reload_if_changed(self) -> bool:
        """Apply the file and those that it names if one has changed. False if they have errors: nothing changes then,
        until one changes. Files that cannot be read, or not in time, are tried again at the next call."""
        try:
            if self._retry_read or await self._with_time_limit(self._current_versions) != self._versions:
                self._retry_read = True
                self._config, self._current = await self._with_time_limit(self._load)
                self._retry_read, self._last_error = False, ""
                _log.info("web config reloaded", file=str(self._path))
        except ConfigError as error:
            # the cause can be outside the file, such as too many open files
            self._retry_read = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, ssl.SSLError)
            if str(error) != self._last_error:
                _log.error("web config reload failed, keeping the current configuration", problems=str(error))
            self._last_error = str(error)
        return not self._last_error

    async def _with_time_limit(self, read: Callable[[], Result]) -> Result:
        try:
            return await self._reads.run(read, seconds=LOAD_SECONDS)
        except TimeoutError as error:
            raise read_timeout_error(LOAD_SECONDS) from error

    def _load(self) -> tuple[WebConfig, ssl.SSLContext | None]:
        config, current = self._read(), self._config
        if current.basic_auth_users and not config.basic_auth_users:
            raise self._config_error(
                "expected users as at the start, found none; removing them requires a restart", "basic_auth_users"
            )
        if _without_certificate(config.tls_server_config) != _without_certificate(current.tls_server_config):
            text = "expected TLS as at the start but for cert_file and key_file; this change requires a restart"
            raise self._config_error(text, "tls_server_config")
        return config, self._tls_context(config.tls_server_config)

    def _select_context(self, connection: ssl.SSLSocket | ssl.SSLObject, _: str, __: ssl.SSLContext) -> int | None:
        """Called in each handshake, also of a client that sends no server name."""
        assert self._current
        if connection.session_reused and self._current is not self.tls and self._current.verify_mode:
            # the client's certificate would not be verified again: its CA may have been removed
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        connection.context = self._current
        return None

    def _read(self) -> WebConfig:
        self._versions = self._current_versions()  # before the files are read, so that a later change is seen
        config = load_document(self._path, WebConfig)
        tls = config.tls_server_config
        self._files = [self._path.parent / name for name in (tls.files.values() if tls else ())]
        self._versions = [self._versions[0], *map(version_of, self._files)]
        return config

    def _current_versions(self) -> list[Version]:
        return [version_of(file) for file in (self._path, *self._files)]

    def _tls_context(self, tls: TlsServerConfig | None) -> ssl.SSLContext | None:
        if not tls:
            return None
        if bool(tls.client_ca_file) != (tls.client_auth_type != "NoClientCert"):
            text = "expected client_ca_file and a client_auth_type that verifies, found one of them"
            raise self._config_error(text, "tls_server_config")
        directory, context = self._path.parent, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for key, name in tls.files.items():  # ssl does not say which file it cannot read
            with self._expecting(key, "a readable file"):
                require_regular(directory / name)
                (directory / name).open("rb").close()
        with self._expecting("cert_file", "a certificate and its key, in PEM"):
            context.load_cert_chain(directory / tls.cert_file, directory / tls.key_file, password=_reject_password)
        if tls.client_ca_file:
            with self._expecting("client_ca_file", "certificates, in PEM"):
                context.load_verify_locations(directory / tls.client_ca_file)
        # only TLS 1.2 with a session ID can resume a session then, see _select_context
        context.num_tickets, context.options = 0, context.options | ssl.OP_NO_TICKET
        context.verify_mode = _CLIENT_CERTIFICATES[tls.client_auth_type]
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.min_version == "TLS13" else ssl.TLSVersion.TLSv1_2
        return context

    @contextmanager
    def _expecting(self, key: str, expected: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise self._config_error(f"expected {expected}, found: {reason}", "tls_server_config", key) from error

    def _config_error(self, text: str, *place: str) -> ConfigError:
        return ConfigError([Lines(self._path).problem(place, text)])


def _reject_password() -> str:
    raise ValueError("a key with a password")


def _without_certificate(tls: TlsServerConfig | None) -> TlsServerConfig | None:
    return tls and tls.model_copy(update={"cert_file": "", "key_file": ""})
