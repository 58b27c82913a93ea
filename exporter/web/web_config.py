"""TLS and basic auth, in the format of the Prometheus exporter-toolkit. Independent of HTTP.

Source: github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Keys that are not implemented are
errors, because a user would rely on a protection that is not active.
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
from exporter.files import read_error_text, require_regular
from exporter.threads import LOAD_SECONDS, BlockingCalls
from exporter.web.passwords import PasswordVerifier

Result = TypeVar("Result")

_log = structlog.get_logger()

_BCRYPT_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{53}")
"""A bcrypt hash with a cost of up to 19. Verifying a higher cost takes minutes."""

_CLIENT_CERTIFICATES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""RequestClientCert and RequireAnyClientCert of the toolkit are not supported: they accept any client certificate."""


def _bcrypt_hash(text: str) -> str:
    try:
        if not _BCRYPT_HASH.fullmatch(text):
            raise ValueError
        bcrypt.hashpw(b"", b"$2b$04$" + text[7:29].encode())  # fast check that bcrypt accepts the salt
    except ValueError:
        raise ValueError("a bcrypt hash of the password (htpasswd -nBC 10 NAME creates one)") from None
    return text


class TlsServerConfig(Strict):
    """TLS settings of the server."""

    cert_file: Text = Field(description="Certificate and intermediates, in PEM. Reloaded when the file changes.")
    key_file: Text = Field(description="Private key of the certificate, in PEM. Reloaded when the file changes.")
    client_ca_file: Text | None = Field(
        None, description="Certificate authorities for client certificates, in PEM. Reloaded when the file changes."
    )
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = Field(
        "NoClientCert",
        description="Verification of client certificates. All types except `NoClientCert` require `client_ca_file`.",
    )
    min_version: Literal["TLS12", "TLS13"] = Field("TLS12", description="Minimum TLS version.")

    @property
    def files(self) -> dict[str, str]:
        """The configured files by key."""
        named = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        return {key: name for key, name in named.items() if name}


class WebConfig(Strict):
    """The content of the web configuration file (--web.config.file)."""

    tls_server_config: TlsServerConfig | None = Field(
        None, description="TLS settings. If not set, the server uses HTTP."
    )
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt_hash)]] = Field(
        {},
        repr=False,
        description="User names, each with a bcrypt hash of the password (`htpasswd -nBC 10 NAME`). If not set, no"
        " authentication is required.",
    )


class WebConfigFile:
    """A web configuration file. `tls` is the TLS context of the listening sockets, None without TLS. Users and
    certificates can be reloaded; other changes require a restart."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises ConfigError if the file has errors."""
        self._path = path
        self._verifier = PasswordVerifier(clock)
        self._files: list[Path] = []
        """Certificates and keys in the web configuration file, as of the last read."""
        self._versions: list[Version] = []
        """Versions of the web configuration file and of `_files`, as of the last read."""
        self._last_error = ""
        self._retry_read = False
        """Whether a file could not be read at the last attempt."""
        self._reads = BlockingCalls()
        self._config = self._read()
        self._current_tls = self.tls = self._tls_context(self._config.tls_server_config)
        if self.tls:
            # load_cert_chain on a context in use would keep an old ECDSA certificate with a new RSA certificate, and
            # would remove the certificate if the key does not match
            self.tls.sni_callback = self._select_context

    async def authenticate(self, user: str, password: str) -> bool:
        """Whether the user name and password are valid. Both are "" for a request without credentials."""
        users = self._config.basic_auth_users
        return not users or (bool(user) and await self._verifier.verify(users, user, password))

    async def reload_if_changed(self) -> bool:
        """Apply the file, its certificates and keys if one of them has changed. Returns False if they have errors, and
        keeps the current configuration until a file changes. A read error or a timeout is retried at the next call."""
        try:
            if self._retry_read or await self._with_time_limit(self._current_versions) != self._versions:
                self._retry_read = True
                self._config, self._current_tls = await self._with_time_limit(self._load)
                self._retry_read, self._last_error = False, ""
                _log.info("web config reloaded", file=str(self._path))
        except ConfigError as error:
            # the cause can be outside the files, for example too many open files
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
                "expected at least one user, found none; removing all users requires a restart", "basic_auth_users"
            )
        if _without_certificate(config.tls_server_config) != _without_certificate(current.tls_server_config):
            text = "expected no TLS change except cert_file and key_file; other changes require a restart"
            raise self._config_error(text, "tls_server_config")
        return config, self._tls_context(config.tls_server_config)

    def _select_context(self, connection: ssl.SSLSocket | ssl.SSLObject, _: str, __: ssl.SSLContext) -> int | None:
        """Select the current TLS context. Called in each handshake, even if the client sends no server name."""
        assert self._current_tls
        if connection.session_reused and self._current_tls is not self.tls and self._current_tls.verify_mode:
            # a resumed session skips the verification of the client certificate, and its CA may have been removed
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        connection.context = self._current_tls
        return None

    def _read(self) -> WebConfig:
        self._versions = self._current_versions()  # before the files are read, to detect later changes
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
            text = "expected both client_ca_file and a client_auth_type that verifies certificates, found only one"
            raise self._config_error(text, "tls_server_config")
        directory, context = self._path.parent, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for key, name in tls.files.items():  # errors of ssl do not contain the file name
            try:
                require_regular(directory / name)
                (directory / name).open("rb").close()
            except OSError as error:
                raise self._config_error(read_error_text(error), "tls_server_config", key) from error
        with self._expecting("cert_file", "a certificate and its key, in PEM"):
            context.load_cert_chain(directory / tls.cert_file, directory / tls.key_file, password=_reject_password)
        if tls.client_ca_file:
            with self._expecting("client_ca_file", "certificates, in PEM"):
                context.load_verify_locations(directory / tls.client_ca_file)
        # without tickets, only TLS 1.2 with a session ID can resume a session; see _select_context
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
