"""ACS3-HMAC-SHA256, the signature of Alibaba Cloud's V3 requests. Pure functions, without a clock or network.

Source: alibabacloud.com/help/en/sdk/product-overview/v3-request-structure-and-signature.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

ALGORITHM = "ACS3-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; `security_token` is set for temporary (STS) keys only."""

    access_key_id: str = field(repr=False)
    access_key_secret: str = field(repr=False)
    security_token: str = field(default="", repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The parts to redact, without empty parts. Longest first, because a part can contain a shorter part."""
        parts = (self.access_key_id, self.access_key_secret, self.security_token)
        return tuple(sorted(filter(None, parts), key=len, reverse=True))


def require_printable_ascii(text: str) -> None:
    """Check the characters of a credential. Other characters in a header cause errors with unclear messages.

    Raises:
        ValueError: the text is empty, or has characters other than printable ASCII.
    """
    if not text:
        raise ValueError("nothing")
    if not text.isascii() or not text.isprintable():
        raise ValueError("characters other than printable ASCII")


def canonical_query(parameters: Mapping[str, str]) -> str:
    """Return the parameters, sorted and encoded as in RFC 3986. The result can be sent unchanged."""
    return "&".join(f"{_encode(name)}={_encode(value)}" for name, value in sorted(parameters.items()))


def authorization(
    method: str, query: str, headers: Mapping[str, str], body_sha256: str, credentials: Credentials
) -> str:
    """Return the Authorization header for all of `headers`. `query` must be canonical; the path is "/"."""
    signed = sorted((name.lower(), value.strip()) for name, value in headers.items())
    names = ";".join(name for name, _ in signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed)
    # `lines` ends with a newline; the format requires the blank line after `lines`
    canonical_request = f"{method}\n/\n{query}\n{lines}\n{names}\n{body_sha256}"
    string_to_sign = f"{ALGORITHM}\n{_sha256(canonical_request)}"
    signature = hmac.digest(credentials.access_key_secret.encode(), string_to_sign.encode(), "sha256").hex()
    return f"{ALGORITHM} Credential={credentials.access_key_id},SignedHeaders={names},Signature={signature}"


def _encode(text: str) -> str:
    return quote(text, safe="~")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
