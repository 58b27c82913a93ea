"""Who may ask: TLS and logins, in the format of Prometheus' exporter-toolkit. Knows no HTTP.

Source: github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Of its keys these are known, and
others are refused: a key that does nothing would be a door that its owner believes shut.
"""

import asyncio
import hashlib
import re
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import bcrypt
from pydantic import AfterValidator, Field

from exporter.clock import Clock
from exporter.config.document import Source
from exporter.config.following import Followed
from exporter.config.problems import ConfigError
from exporter.config.settings import Strict, Text
from exporter.config.validation import load_document

_HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{53}")
"""What bcrypt writes; a cost above 19 takes minutes a login."""
_LONGEST_PASSWORD = 72
"""Bytes that bcrypt looks at."""
_REMEMBERED_SECONDS = 300.0
_MOST_REMEMBERED = 100
_VERIFIED_AT_ONCE = 2
_MOST_WAITING = 50

_CLIENT_CERTIFICATES = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
"""The toolkit's two kinds that ask for a certificate and do not verify it are not offered."""


def _bcrypt_hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError("a bcrypt hash of a password, as htpasswd -nBC 10 makes it")
    return text


class TlsServerConfig(Strict):
    """How connections are encrypted, and which clients may connect."""

    cert_file: Text = Field(description="certificate chain, in PEM; read again when it changes")
    key_file: Text = Field(description="its private key, in PEM; read again when it changes")
    client_ca_file: Text | None = Field(None, description="who signs the certificates of clients, in PEM")
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = "NoClientCert"
    min_version: Literal["TLS12", "TLS13"] = "TLS12"


class WebConfig(Strict):
    """The file of --web.config.file."""

    tls_server_config: TlsServerConfig | None = None
    basic_auth_users: dict[str, Annotated[str, AfterValidator(_bcrypt_hash)]] = Field({}, repr=False)


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
        self._has_tls: bool | None = None
        self._has_tls = self._doors().tls is not None
        self.tls = CurrentTls(self._doors) if self._has_tls else None

    async def admits(self, user: str, password: str) -> bool:
        """Whether someone may ask who gives this name and password, or "" for both."""
        users = self._doors().users
        return not users or await self._logins.verify(users, user, password)

    def _read(self) -> tuple[_Doors, tuple[Path, ...]]:
        config = load_document(self._path, WebConfig)
        tls, folder, files = config.tls_server_config, self._path.parent, (self._path,)
        if self._has_tls not in (None, tls is not None):
            raise self._problem((), "expected TLS as it was at the start, for it takes a restart to turn it on or off")
        if tls is None:
            return _Doors(config.basic_auth_users, None), files
        named = (tls.cert_file, tls.key_file, *([tls.client_ca_file] if tls.client_ca_file else []))
        return _Doors(config.basic_auth_users, self._context(tls)), files + tuple(folder / name for name in named)

    def _context(self, tls: TlsServerConfig) -> ssl.SSLContext:
        folder, place = self._path.parent, ("tls_server_config",)
        if bool(tls.client_ca_file) != (tls.client_auth_type != "NoClientCert"):
            raise self._problem(
                place, "expected client_ca_file and a client_auth_type that verifies, found one of them"
            )
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

    def _problem(self, place: tuple[str, ...], text: str) -> ConfigError:
        return ConfigError([Source(self._path).problem(place, text)])


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


def matches(password: str, hashed: str) -> bool:
    """Whether it is the password that was hashed; takes a tenth of a second by design."""
    return bcrypt.checkpw(password.encode("utf-8", "surrogatepass")[:_LONGEST_PASSWORD], hashed.encode())


class Logins:
    """Passwords against bcrypt hashes, off the event loop; a success is remembered for five minutes after its last use.

    So a scraper does not wait behind someone who tries passwords. A name that is unknown costs as much as one that is.
    """

    def __init__(self, clock: Clock, matches: Callable[[str, str], bool] = matches) -> None:
        self._clock = clock
        self._matches = matches
        self._remembered: OrderedDict[bytes, float] = OrderedDict()
        self._turns = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        self._waiting = 0

    async def verify(self, users: Mapping[str, str], user: str, password: str) -> bool:
        """Whether it is the password of one of `users` (at least one); False too where too many wait to be told."""
        known = users.get(user)
        expected = known or next(iter(users.values()))
        of = hashlib.sha256("\0".join((user, expected, password)).encode("utf-8", "surrogatepass")).digest()
        if known and self._remembered.get(of, 0.0) > self._clock.monotonic():
            return self._remember(of)
        if self._waiting >= _MOST_WAITING:
            return False
        self._waiting += 1
        try:
            async with self._turns:
                right = await asyncio.to_thread(self._matches, password, expected)
        finally:
            self._waiting -= 1
        return bool(known) and right and self._remember(of)

    def _remember(self, of: bytes) -> bool:
        self._remembered[of] = self._clock.monotonic() + _REMEMBERED_SECONDS
        self._remembered.move_to_end(of)
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return True
