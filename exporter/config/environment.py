"""Environment variables that programs share: proxies, certificates and the log of TLS keys.

They are read here and not by the libraries, which read each in a way of their own and fail when they connect. No error
shows a value, because it can hold a password.
"""

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from exporter.config.fields import is_loopback, is_origin
from exporter.config.problems import ConfigError, Problem
from exporter.files import require_regular

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_SOCKS = ("socks", "socks4", "socks4a", "socks5", "socks5h")
_USER = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
"""A user and a password as a URL may have them (RFC 3986)."""
_WITH_PORT = re.compile(r"(.+):([0-9]{1,5})")
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""The only names that OpenSSL looks for in a directory of certificates."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def environment_problems(environ: Mapping[str, str], *, remote: bool) -> Iterator[Problem]:
    """Everything that is wrong with these variables. Proxies are checked only if an account is `remote`: no other
    request uses one."""
    yield from _problem("SSLKEYLOGFILE", environ, _require_writable)
    if environ.get("SSL_CERT_FILE"):  # is used instead of the directory
        yield from _problem("SSL_CERT_FILE", environ, _require_certificates)
    else:
        yield from _problem("SSL_CERT_DIR", environ, _require_hashed_names)
    for name in _PROXIES if remote else ():
        yield from _problem(_in_either_case(name, environ), environ, _proxy_url)


def proxy_of(endpoint: str, environ: Mapping[str, str]) -> str | None:
    """The proxy for requests to this endpoint; None where there is none.

    Raises:
        ConfigError: the variable does not have the address of a proxy.
    """
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or _DEFAULT_PORTS[address.scheme]
    excluded = environ.get(_in_either_case("NO_PROXY", environ), "").lower()
    if is_loopback(endpoint) or any(_includes(entry, host, port) for entry in re.split(r"[\s,]+", excluded)):
        return None
    names = (_in_either_case(name, environ) for name in (f"{address.scheme.upper()}_PROXY", "ALL_PROXY"))
    name = next((name for name in names if environ.get(name)), "")
    if problems := list(_problem(name, environ, _proxy_url)):
        raise ConfigError(problems)
    return _proxy_url(environ[name]) if name else None


def _problem(name: str, environ: Mapping[str, str], check: Callable[[str], object]) -> Iterator[Problem]:
    try:
        if value := environ.get(name):
            check(value)
    except ValueError as error:
        yield Problem("environment", (name,), str(error))


def _in_either_case(name: str, environ: Mapping[str, str]) -> str:
    """The name in lower case if that is set, as curl and Python do."""
    return name.lower() if name.lower() in environ else name


def _proxy_url(value: str) -> str:
    """The address of a proxy; without a scheme it is http://. Raises ValueError if it is not one."""
    scheme, separator, rest = value.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", scheme)
    if scheme in _SOCKS:
        raise ValueError(f"expected a proxy with http:// or https://, found {scheme}://, which is not supported")
    user, at, host = rest.removesuffix("/").rpartition("@")
    if not _USER.fullmatch(user):
        raise ValueError(
            "expected a user and a password with reserved characters percent-encoded, such as %23 for #,"
            " found text (not shown)"
        )
    if not is_origin(f"{scheme}://{host}"):
        raise ValueError("expected a proxy such as http://proxy.example:8080, found text (not shown)")
    return f"{scheme}://{user}{at}{host}"


def _includes(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY matches this host: by name, with its subdomains, or by address or network. An entry
    that cannot be read matches no host: container engines add such entries, which other programs ignore."""
    if _network(entry) is None and (found := _WITH_PORT.fullmatch(entry)):
        if int(found[2]) != port:
            return False
        entry = found[1]
    network, address, domain = _network(entry), _network(host), entry.removeprefix("*").strip(".")
    if address:
        return entry == "*" or (network is not None and network.overlaps(address))
    return entry == "*" or (domain != "" and f".{host}".endswith(f".{domain}"))


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _require_certificates(file: str) -> None:
    with _expecting("a readable file of certificates, in PEM"):
        require_regular(Path(file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=file)
        if not context.cert_store_stats()["x509"]:
            raise ValueError("no certificate")


def _require_hashed_names(directories: str) -> None:
    with _expecting("a directory of certificates, prepared with openssl rehash"):
        existing = [path for path in directories.split(os.pathsep) if Path(path).is_dir()] or [directories]
        if not any(_HASHED_NAME.fullmatch(name) for path in existing for name in os.listdir(path)):
            raise ValueError("no file with a hashed name, such as 1a2b3c4d.0")


def _require_writable(file: str) -> None:
    with _expecting("a file that TLS keys can be appended to"):
        if Path(file).exists():
            require_regular(Path(file))
        Path(file).open("ab").close()


@contextmanager
def _expecting(expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"expected {expected}, found: {found or error}") from None
