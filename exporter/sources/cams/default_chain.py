"""Credentials from Alibaba Cloud's default chain: environment, OIDC, profiles, ECS role, URI.

No other module uses the package alibabacloud-credentials, which is an optional extra. The package reads its environment
variables at import, sends blocking requests, and has its own loggers.
"""

import asyncio
import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from exporter.source import DeniedError
from exporter.sources.cams.signing import Credentials, require_printable_ascii

if TYPE_CHECKING:
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

_SILENCED_LOGGERS = ("credentials", "alibabacloud-tea", "urllib3")
"""The loggers of the chain. They log complete responses and URLs, including secrets."""


def is_installed() -> bool:
    """Return whether the package alibabacloud-credentials is installed."""
    return find_spec("alibabacloud_credentials") is not None


class DefaultChain:
    """Credentials from the chain. All accounts share one chain, which renews them 15 minutes before the expiry."""

    async def current(self) -> Credentials:
        """Return the current credentials, fetched in a thread.

        Raises:
            DeniedError: the chain has no credentials, or they are not printable ASCII.
        """
        try:
            return await asyncio.to_thread(_credentials)
        except Exception as error:  # the chain raises any class; its texts can contain secrets
            detail = "no usable credentials in the default chain (environment, OIDC, profiles, ECS role, URI)"
            raise DeniedError("credentials", f"{detail}: {type(error).__name__}") from None

    def changed(self) -> bool:
        """Return False. A change is not detected; the next probe of a denied account gets the current credentials."""
        return False


def _credentials() -> Credentials:
    credentials = _chain().get_credentials()
    key_id, secret, token = (
        credentials.get_access_key_id(),
        credentials.get_access_key_secret(),
        credentials.get_security_token(),
    )
    for text in (key_id, secret, *filter(None, [token])):
        require_printable_ascii(text)
    return Credentials(key_id, secret, token or "")


@cache
def _chain() -> "DefaultCredentialsProvider":
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

    for name in _SILENCED_LOGGERS:  # after the import, because the import adds handlers
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    return DefaultCredentialsProvider()
