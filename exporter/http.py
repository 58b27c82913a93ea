"""The HTTP client for the real network."""

from functools import cache
from ssl import SSLContext

import httpx

from exporter.config.fields import is_loopback


def http_client(endpoint: str) -> httpx.AsyncClient:
    """A client for this endpoint. Loopback addresses are never requested through a proxy.

    It has no time-outs of its own: a source bounds the complete request. SSL_CERT_FILE applies to every endpoint.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(limits=limits, timeout=None, trust_env=not is_loopback(endpoint), verify=_tls())  # noqa: S113


@cache
def _tls() -> SSLContext:
    """One for all accounts: each would read all certificates again."""
    return httpx.create_ssl_context()
