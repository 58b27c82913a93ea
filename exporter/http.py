"""Creates HTTP clients."""

import os
from collections.abc import Mapping
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext, create_default_context

import httpx

from exporter.config.environment import proxy_of
from exporter.transport import Transport


def http_client(endpoint: str, environ: Mapping[str, str] = os.environ) -> httpx.AsyncClient:
    """Create a client for this endpoint, with the proxy and certificates from the environment. Cookies are not stored.

    The client has no timeouts, because each source sets a timeout for the complete request.

    Raises:
        ConfigError: the proxy URL is invalid.
    """
    certificates = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    tls = _tls_context(*certificates) if endpoint.startswith("https://") else None
    url = proxy_of(endpoint, environ)
    proxy = httpx.Proxy(url, ssl_context=tls if url.startswith("https://") else None) if url else None
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    transport = Transport(tls, proxy)
    return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False, cookies=no_cookies)  # noqa: S113


@cache
def _tls_context(file: str | None, directory: str | None) -> SSLContext:
    """Return a TLS context with these certificates. Accounts share it, because each new context reads all
    certificates."""
    if file or directory:
        return create_default_context(cafile=file or None, capath=None if file else directory)
    return httpx.create_ssl_context(trust_env=False)
