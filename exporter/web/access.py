"""Who may ask: TLS and logins, in the format of Prometheus' exporter-toolkit. Knows no HTTP.

Source: github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Of its keys these are known, and
others are refused: a key that does nothing would be a door that its owner believes shut.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import bcrypt
from pydantic import AfterValidator, Field

from exporter.clock import Clock
from exporter.config.document import Lines
from exporter.config.following import Followed
from exporter.config.problems import ConfigError
from exporter.config.settings import Strict, Text
from exporter.config.validation import load_document
from exporter.web.logins import Logins

_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{53}")
"""What bcrypt writes; a cost above 19 takes minutes a login."""

_CLIENT_CERTIFICATES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""The toolkit's two kinds that ask for a certificate and do not verify it are not offered."""


def _bcrypt_hash(text: str) -> str:
    try:
        if not _HASH.fullmatch(text):
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


class WebConfig(Strict):
    """The file of --web.config.file."""

    tls_server_config: TlsServerConfig | None = Field(None, description="TLS; without it, plain HTTP is served")
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt_hash)]] = Field(
        {},
        repr=False,
        description="who may log in, each with the bcrypt hash of the password (`htpasswd -nBC 10 NAME`); without it,"
        " everyone may ask",
    )


@dataclass(frozen=True, slots=True)
class _Doors:
    users: Mapping[str, str]
    tls: ssl.SSLContext | None


class Access:
    """A web configuration file, followed: what it says counts for the next connection."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Raises ConfigError if anything is wrong with it."""
        self._path = path
        self._doors = Followed("web configuration", self._read)
        self._logins = Logins(clock)
        self._last: _Doors | None = None
        self.tls = CurrentTls(self._doors) if self._doors().tls else None

    async def admits(self, user: str, password: str) -> bool:
        """Whether someone may ask who gives this name and password, or "" for both."""
        users = self._doors().users
        return not users or (bool(user) and await self._logins.verify(users, user, password))

    def _read(self) -> tuple[_Doors, tuple[Path, ...]]:
        config = load_document(self._path, WebConfig)
        tls, folder, files = config.tls_server_config, self._path.parent, [self._path]
        if tls:
            named = (tls.cert_file, tls.key_file, tls.client_ca_file)
            files += [folder / name for name in named if name]
        doors = _Doors(config.basic_auth_users, self._context(tls) if tls else None)
        if self._last:
            self._require_as_closed(doors, self._last)
        self._last = doors
        return doors, tuple(files)

    def _require_as_closed(self, doors: _Doors, last: _Doors) -> None:
        """A file that is half written opens nothing."""
        if bool(doors.tls) != bool(last.tls):
            raise self._problem((), "expected TLS as it was at the start, for it takes a restart to turn it on or off")
        if last.users and not doors.users:
            raise self._problem((), "expected logins as before, for it takes a restart to turn them off")
        if last.tls and doors.tls and doors.tls.verify_mode < last.tls.verify_mode:
            raise self._problem((), "expected a client_auth_type as before, for it takes a restart to ask for less")

    def _context(self, tls: TlsServerConfig) -> ssl.SSLContext:
        folder, place = self._path.parent, ("tls_server_config",)
        if bool(tls.client_ca_file) != (tls.client_auth_type != "NoClientCert"):
            raise self._problem(
                place, "expected client_ca_file and a client_auth_type that verifies, found one of them"
            )
        self._require_readable(tls)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.min_version == "TLS13" else ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(folder / tls.cert_file, folder / tls.key_file, password=_no_password)
        except (OSError, ValueError) as error:
            text = f"expected a certificate and its key, in PEM, found: {_why(error)}"
            raise self._problem((*place, "cert_file"), text) from error
        try:
            if tls.client_ca_file:
                context.load_verify_locations(folder / tls.client_ca_file)
        except (OSError, ValueError) as error:
            text = f"expected certificates, in PEM, found: {_why(error)}"
            raise self._problem((*place, "client_ca_file"), text) from error
        context.verify_mode = _CLIENT_CERTIFICATES[tls.client_auth_type]
        return context

    def _require_readable(self, tls: TlsServerConfig) -> None:
        """For ssl does not say which of the files it cannot read."""
        for key in ("cert_file", "key_file", "client_ca_file"):
            if name := getattr(tls, key):
                try:
                    (self._path.parent / name).open("rb").close()
                except (OSError, ValueError) as error:
                    raise self._problem(
                        ("tls_server_config", key), f"expected a readable file, found: {_why(error)}"
                    ) from error

    def _problem(self, place: tuple[str, ...], text: str) -> ConfigError:
        return ConfigError([Lines(self._path).problem(place, text)])


def _no_password() -> str:
    raise ValueError("a key with a password")


def _why(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or error)


class CurrentTls:
    """Stands where asyncio expects an SSLContext; each connection gets the one that is current then."""

    def __init__(self, doors: Followed[_Doors]) -> None:
        self._doors = doors

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool, server_hostname: str | None
    ) -> ssl.SSLObject:
        """A connection's TLS."""
        context = self._doors().tls
        assert context, "TLS is neither turned on nor off while it runs"
        return context.wrap_bio(incoming, outgoing, server_side, server_hostname)
