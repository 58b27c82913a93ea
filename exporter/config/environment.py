"""Standard environment variables: proxies, certificates and the TLS key log.

They are read here because the HTTP libraries interpret them differently and report errors only when they connect.
Errors never show a value, because the value can contain a password.
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

_PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_SOCKS_SCHEMES = ("socks", "socks4", "socks4a", "socks5", "socks5h")
_USER_AND_PASSWORD = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
"""User and password of a URL (RFC 3986)."""
_HOST_AND_PORT = re.compile(r"(.+):([0-9]{1,5})")
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""File names that OpenSSL searches for in a certificate directory. It ignores all others."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def environment_problems(environ: Mapping[str, str], *, uses_proxy: bool) -> Iterator[Problem]:
    """Yield all errors in these variables. Proxy variables are checked only if an account `uses_proxy`."""
    yield from _check_variable("SSLKEYLOGFILE", environ, _require_writable_file)
    if environ.get("SSL_CERT_FILE"):  # has precedence over SSL_CERT_DIR
        yield from _check_variable("SSL_CERT_FILE", environ, _require_certificate_file)
    else:
        yield from _check_variable("SSL_CERT_DIR", environ, _require_certificate_directories)
    for name in _PROXY_VARIABLES if uses_proxy else ():
        yield from _check_variable(_lower_case_if_set(name, environ), environ, _parse_proxy_url)


def proxy_of(endpoint: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy URL for requests to this endpoint, or None.

    Raises:
        ConfigError: the proxy variable is not a valid URL.
    """
    address = urlsplit(endpoint)
    host, port = address.hostname or "", address.port or _DEFAULT_PORTS[address.scheme]
    excluded = environ.get(_lower_case_if_set("NO_PROXY", environ), "").lower()
    if is_loopback(endpoint) or any(_matches_host(entry, host, port) for entry in re.split(r"[\s,]+", excluded)):
        return None
    names = (_lower_case_if_set(name, environ) for name in (f"{address.scheme.upper()}_PROXY", "ALL_PROXY"))
    name = next((name for name in names if environ.get(name)), "")
    if problems := list(_check_variable(name, environ, _parse_proxy_url)):
        raise ConfigError(problems)
    return _parse_proxy_url(environ[name]) if name else None


def _check_variable(name: str, environ: Mapping[str, str], check: Callable[[str], object]) -> Iterator[Problem]:
    try:
        if value := environ.get(name):
            check(value)
    except ValueError as error:
        yield Problem("environment", (name,), str(error))


def _lower_case_if_set(name: str, environ: Mapping[str, str]) -> str:
    """Return the lower-case name if a variable with this name is set, otherwise `name`. curl and Python do the same."""
    return name.lower() if name.lower() in environ else name


def _parse_proxy_url(value: str) -> str:
    """Return the URL of a proxy. The default scheme is http://.

    Raises:
        ValueError: the value is not a proxy URL.
    """
    scheme, separator, rest = value.strip().partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", scheme)
    if scheme in _SOCKS_SCHEMES:
        raise ValueError(f"expected a proxy with http:// or https://, found {scheme}://, which is not supported")
    user, at, host = rest.removesuffix("/").rpartition("@")
    if not _USER_AND_PASSWORD.fullmatch(user):
        raise ValueError(
            "expected percent-encoded reserved characters in user and password, such as %23 for #,"
            " found text (not shown)"
        )
    if not is_origin(f"{scheme}://{host}"):
        raise ValueError("expected a proxy such as http://proxy.example:8080, found text (not shown)")
    return f"{scheme}://{user}{at}{host}"


def _matches_host(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY matches this host: by name (including subdomains), IP address or network.

    An invalid entry matches no host. Container engines add such entries, and other programs ignore them.
    """
    if _parse_network(entry) is None and (match := _HOST_AND_PORT.fullmatch(entry)):
        if int(match[2]) != port:
            return False
        entry = match[1]
    network, address, domain = _parse_network(entry), _parse_network(host), entry.removeprefix("*").strip(".")
    if address:
        return entry == "*" or (network is not None and network.overlaps(address))
    return entry == "*" or (domain != "" and f".{host}".endswith(f".{domain}"))


def _parse_network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None


def _require_certificate_file(file: str) -> None:
    with _explain_errors("a readable file with PEM certificates"):
        require_regular(Path(file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=file)
        if not context.cert_store_stats()["x509"]:
            raise ValueError("no certificate")


def _require_certificate_directories(directories: str) -> None:
    with _explain_errors("a certificate directory prepared with openssl rehash"):
        existing = [path for path in directories.split(os.pathsep) if Path(path).is_dir()] or [directories]
        if not any(_HASHED_NAME.fullmatch(name) for path in existing for name in os.listdir(path)):
            raise ValueError("no file with a hashed name, such as 1a2b3c4d.0")


def _require_writable_file(file: str) -> None:
    """Check that the file is a regular file and can be opened for writing. Creates the file if it does not exist."""
    with _explain_errors("a writable file for TLS keys"):
        if Path(file).exists():
            require_regular(Path(file))
        Path(file).open("ab").close()


@contextmanager
def _explain_errors(expected: str) -> Iterator[None]:
    """Convert OSError and ValueError into a ValueError with the expected and the found value."""
    try:
        yield
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else None
        raise ValueError(f"expected {expected}, found: {found or error}") from None
