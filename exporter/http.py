"""The HTTP client for the real network."""

from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from urllib.request import getproxies, proxy_bypass

import httpx

from exporter.config.fields import is_loopback
from exporter.connections import Transport


def http_client(endpoint: str) -> httpx.AsyncClient:
    """A client for this endpoint. Loopback addresses are never requested through a proxy.

    It has no time-outs of its own: a source bounds the complete request. SSL_CERT_FILE applies to every endpoint.
    """
    proxy = None if is_loopback(endpoint) else _proxy(httpx.URL(endpoint))
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    transport = Transport(_tls(), httpx.Proxy(proxy) if proxy else None)
    return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False, cookies=no_cookies)  # noqa: S113


def _proxy(url: httpx.URL) -> str | None:
    proxies = getproxies()
    return None if proxy_bypass(url.host) else proxies.get(url.scheme, proxies.get("all"))


@cache
def _tls() -> SSLContext:
    """One for all accounts: each would read all certificates again."""
    return httpx.create_ssl_context()
