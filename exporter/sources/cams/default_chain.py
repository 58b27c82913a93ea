"""Credentials from Alibaba Cloud's default chain: environment, OIDC, profiles, ECS role, URI.

The only module that knows alibabacloud-credentials, an optional extra. It reads its variables when it is imported,
blocks during its requests, and has loggers of its own.
"""

import asyncio
import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from exporter.source import DeniedError
from exporter.sources.cams.signing import Credentials, require_plain

if TYPE_CHECKING:
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

_SILENCED = ("credentials", "alibabacloud-tea", "urllib3")
"""The chain's loggers: they write whole answers and addresses, with the secrets that are in them."""


def is_installed() -> bool:
    """Whether the extra is installed."""
    return find_spec("alibabacloud_credentials") is not None


class DefaultChain:
    """The chain's credentials. All accounts share one chain. It renews them 15 minutes before they expire."""

    async def current(self) -> Credentials:
        """The credentials as they are now, fetched in a thread.

        Raises:
            DeniedError: the chain has no credentials that can be sent.
        """
        try:
            return await asyncio.to_thread(_credentials)
        except Exception as error:  # whatever its sources raise; their texts repeat answers that hold secrets
            detail = (
                "no source of the default chain (environment, OIDC, profiles, ECS role, URI) gave usable credentials"
            )
            raise DeniedError("credentials", f"{detail}: {type(error).__name__}") from None

    def changed(self) -> bool:
        """Never: a denied account notices new credentials at its next probe."""
        return False


def _credentials() -> Credentials:
    given = _chain().get_credentials()
    key_id, secret, token = given.get_access_key_id(), given.get_access_key_secret(), given.get_security_token()
    for text in (key_id, secret, *filter(None, [token])):
        require_plain(text)
    return Credentials(key_id, secret, token or "")


@cache
def _chain() -> "DefaultCredentialsProvider":
    from alibabacloud_credentials.provider import DefaultCredentialsProvider

    for name in _SILENCED:  # after the import, which gives them handlers
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [logging.NullHandler()], False
    return DefaultCredentialsProvider()
