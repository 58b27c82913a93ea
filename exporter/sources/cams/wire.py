"""The wire format of the two operations: encodes requests and decodes responses.

Parameters are in the query, and the body is empty. A response is a success only with HTTP 2xx, a JSON object and Code
"OK", for both operations (API reference of ListInstance and the SDKs: "OK indicates that the request was successful").
The API also sends errors with HTTP 200; decoding them as "no numbers" would hide an outage.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from sys import intern
from typing import Any

from exporter import __version__
from exporter.model import Answer, Callback, PhoneNumber, merge_duplicates, phone_digits
from exporter.source import (
    DeniedError,
    MalformedError,
    QueryError,
    RejectedError,
    ServerError,
    ThrottledError,
    sanitized,
)
from exporter.sources.cams.signing import Credentials, authorization, canonical_query

QUERY_PHONE_NUMBERS = "QueryChatappPhoneNumbers"
LIST_INSTANCES = "ListInstance"
VERSION = "2020-06-06"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
MAX_WAIT_SECONDS = 60.0
"""Maximum Retry-After value. The official command line tool has the same maximum."""
MAX_DETAIL_LENGTH = 200
"""Maximum number of characters of an error text."""
_MAX_CODE_LENGTH = 64
_MAX_NUMBERS = 5_000
"""Maximum phone numbers of a space. Decoding more would delay the polls of other spaces."""
PAGE_SIZE = 50
"""Instances per requested page. The maximum of the API is not documented."""
_MAX_TEXT_LENGTH = 512
"""Maximum number of characters of a field. Limits the size of `/metrics`."""

_ERROR_CODES: Mapping[type[QueryError], str] = {
    ThrottledError: "Throttling Throttling.* System.LimitControl",
    ServerError: "InternalError UnknownError ServiceUnavailable* SignatureNonceUsed"
    " 999999 CHAT.APIError ERR-COMMON-001",
    RejectedError: "Unknown.ResourceOwnerId Authentication.NoAuth InvalidParameter* MissingParameter*"
    " ERR-OPERATION-MAAP-0060 ERR-OPERATION-MAAP-0065 ERR-FB-001",
    DeniedError: "InvalidAccessKeyId* SignatureDoesNotMatch IncompleteSignature InvalidSecurityToken*"
    " Forbidden Forbidden.* NoPermission Ram.PermissionDeny Product.Unsubscript InvalidTimeStamp*"
    " InvalidApi.NotFound InvalidAction.NotFound InvalidVersion UnsupportedHTTPMethod",
}
"""Codes by error class. A code takes precedence over the HTTP status: status 400 for throttling, 404 for a revoked
key."""
_RETRY_AT_ONCE_CODES = "InvalidTimeStamp.Expired InvalidSecurityToken*"
"""Codes for an expired date or token. A retry has a new date and the current token."""
Parameters = Mapping[str, str | None]
"""Parameters with the value None are not sent."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An entry of ListInstance. `space_id` is "" if the instance is not a customer space with WhatsApp."""

    id: str
    space_id: str
    name: str


@dataclass(frozen=True, slots=True)
class InstancePage:
    """One page of a list. `total` is the number of instances on all pages."""

    instances: tuple[Instance, ...]
    total: int


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A signed POST to "/". `query` is canonical and must be sent unchanged. Send each request only once."""

    query: str
    headers: Mapping[str, str]


def encode_request(
    host: str, action: str, parameters: Parameters, credentials: Credentials, *, now: float, nonce: str
) -> WireRequest:
    """Encode and sign a request. `host`: the Host header. `now`: Unix seconds. `nonce`: must be unique."""
    query = canonical_query({name: value for name, value in parameters.items() if value is not None})
    headers = {
        "host": host,
        "accept": "application/json",
        "user-agent": f"chatapp-exporter/{__version__}",
        "x-acs-action": action,
        "x-acs-version": VERSION,
        "x-acs-date": datetime.fromtimestamp(now, UTC).strftime(DATE_FORMAT),
        "x-acs-signature-nonce": nonce,
        "x-acs-content-sha256": EMPTY_SHA256,
        **_credential_headers(credentials),
    }
    signed = authorization("POST", query, headers, EMPTY_SHA256, credentials)
    # no compression, because the size limit counts the received bytes
    return WireRequest(query, {**headers, "authorization": signed, "accept-encoding": "identity"})


def _credential_headers(credentials: Credentials) -> dict[str, str]:
    if not credentials.security_token:
        return {"x-acs-credentials-provider": "static_ak"}
    return {
        "x-acs-credentials-provider": "static_sts",
        "x-acs-accesskey-id": credentials.access_key_id,
        "x-acs-security-token": credentials.security_token,
    }


def decode_phone_numbers(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> Answer:
    """Decode the phone numbers of a space. `headers` must be case-insensitive. The response may contain `secrets` of
    the request; errors never contain the secrets.

    Raises:
        QueryError: the response is not a success; its class gives the reason.
    """
    return _read_numbers(_require_success(status, headers, body, secrets))


def decode_instances(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InstancePage:
    """Decode a page of instances; see `decode_phone_numbers`."""
    return _read_instances(_require_success(status, headers, body, secrets))


def _require_success(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str]) -> dict[str, Any]:
    document = _json_object(body)
    # only errors have `code` or XML: if they were accepted as a success, the space would have no numbers
    if 200 <= status < 300 and document and _text(document.get("Code")) == "OK":
        return document
    code = _envelope_field(document, "Code") or _xml_code(body)
    message = sanitized(_envelope_field(document, "Message"), secrets, MAX_DETAIL_LENGTH)
    detail = message or f"HTTP {status}, {len(body)} bytes, {_body_description(document)}"
    request_id = headers.get("x-acs-request-id") or _envelope_field(document, "RequestId")
    raise _error(
        status,
        sanitized(code, secrets, _MAX_CODE_LENGTH),
        detail,
        sanitized(request_id, secrets, _MAX_CODE_LENGTH),
        headers,
    )


def _error(status: int, code: str, detail: str, request_id: str, headers: Mapping[str, str]) -> QueryError:
    error_class = _error_class_of_code(code) or _error_class_of_status(status, code)
    from_api = code not in ("", "OK")
    if not from_api:  # a failure must not be counted with the code OK
        code = "malformed" if error_class is MalformedError else f"http_{status}"
    if error_class is ThrottledError:
        return ThrottledError(code, detail, request_id=request_id, wait_seconds=retry_after(headers))
    retry_at_once = _matches(code, _RETRY_AT_ONCE_CODES)
    return error_class(code, detail, request_id=request_id, retry_at_once=retry_at_once, from_api=from_api)


def _matches(code: str, patterns: str) -> bool:
    return any(fnmatchcase(code, pattern) for pattern in patterns.split())


def _error_class_of_code(code: str) -> type[QueryError] | None:
    for error_class, patterns in _ERROR_CODES.items():
        if _matches(code, patterns):
            return error_class
    return None


def _error_class_of_status(status: int, code: str) -> type[QueryError]:
    if status == 429:
        return ThrottledError
    if status >= 500:
        return ServerError
    if status in (401, 403):
        return DeniedError
    # an unknown Code is from the API; a response below 400 without a Code is not from the API
    return RejectedError if status >= 400 or code not in ("", "OK") else MalformedError


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the Retry-After value in seconds, at most 60; None if the response has no valid value.

    `x-acs-retry-after` (tea-openapi >= 0.4.5) and `TimeLeft` of the older `x-ratelimit-…` headers are in milliseconds.
    The standard `Retry-After` is in seconds.
    """
    for text, unit in _wait_hints(headers):
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, MAX_WAIT_SECONDS)
    return None


def _wait_hints(headers: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    yield headers.get("x-acs-retry-after", ""), 0.001
    for name in ("x-ratelimit-user-api", "x-ratelimit-user"):
        match = re.search(r"TimeLeft:([^,]+)", headers.get(name, ""))
        yield match[1] if match else "", 0.001
    yield headers.get("retry-after", ""), 1.0


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _envelope_field(document: dict[str, Any] | None, name: str) -> str:
    """Return a top-level text field of a response. Its first letter can be lower case: `Code` or `code`."""
    for spelling in (name, name[0].lower() + name[1:]):
        if document and (value := _full_text(document.get(spelling))):
            return value
    return ""


def _xml_code(body: bytes) -> str:
    match = re.search(rb"<Code>([\w.\-]{1,64})</Code>", body[:4096])
    return match[1].decode("ascii", "replace") if match else ""


def _body_description(document: dict[str, Any] | None) -> str:
    return "not a JSON object" if document is None else "no Message"


def _entries(document: dict[str, Any], name: str, max_entries: int) -> list[Any]:
    entries = document.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise MalformedError("malformed", f"{name}: expected a list, found {type(entries).__name__}")
    if len(entries) > max_entries:
        raise MalformedError("malformed", f"{name}: expected at most {max_entries}, found {len(entries)}")
    return entries


def _read_instances(document: dict[str, Any]) -> InstancePage:
    entries = _entries(document, "Data", PAGE_SIZE)
    total = _text(document.get("TotalCount"))
    if not total.isdecimal():  # the total shows whether the list is complete
        raise MalformedError("malformed", f"TotalCount: expected a number, found {total[:_MAX_CODE_LENGTH]!r}")
    instances = [_read_instance(entry) for entry in entries if isinstance(entry, dict)]
    return InstancePage(tuple(instance for instance in instances if instance.id), int(total))


def _read_instance(entry: dict[str, Any]) -> Instance:
    space_id = _text(entry.get("CustSpaceId"))
    whatsapp = _enumeration(entry.get("ChannelType")) in ("", "WHATSAPP")
    return Instance(
        id=_text(entry.get("InstanceId")) or space_id,
        space_id=space_id if whatsapp and space_id.isprintable() else "",
        name=_text(entry.get("InstanceName")),
    )


def _read_numbers(document: dict[str, Any]) -> Answer:
    entries = _entries(document, "PhoneNumbers", _MAX_NUMBERS)
    numbers = [_read_number(entry) if isinstance(entry, dict) else PhoneNumber("") for entry in entries]
    # by number, because a duplicate number would cause duplicate series, and the scrape would fail
    by_number: dict[str, PhoneNumber] = {}
    for number in numbers:
        if name := number.phone_number:
            by_number[name] = merge_duplicates(by_number[name], number) if name in by_number else number
    unnamed = sum(1 for number in numbers if not number.phone_number)
    if entries and not by_number:
        raise MalformedError("malformed", f"PhoneNumbers: none of {len(entries)} entries has a PhoneNumber")
    return Answer(tuple(by_number.values()), unnamed)


def _read_number(entry: dict[str, Any]) -> PhoneNumber:
    rating = _enumeration(entry.get("QualityRating"))
    return PhoneNumber(
        phone_number=_phone_number(entry.get("PhoneNumber")),
        verified_name=_text(entry.get("VerifiedName")),
        quality_rating="UNKNOWN" if rating == "NA" else rating,
        messaging_limit_tier=_enumeration(entry.get("MessagingLimitTier")),
        status=_enumeration(entry.get("Status")),
        name_status=_enumeration(entry.get("NameStatus")),
        new_name_status=_enumeration(entry.get("NewNameStatus")),
        code_verification_status=_enumeration(entry.get("CodeVerificationStatus")),
        is_official=_enumeration(entry.get("IsOfficial")),
        inbound_callback=_callback(entry.get("UpCallbackUrl"), entry.get("UpQueue")),
        status_callback=_callback(entry.get("StatusCallbackUrl"), entry.get("StatusQueue")),
    )


def _phone_number(value: object) -> str:
    """Return the digits of a phone number. Return other text that has a digit unchanged, because the number may be in a
    bad state and must not be lost. Return "" for all other values, such as `true` or NaN."""
    text = _text(value) if isinstance(value, str | int) else ""
    return phone_digits(text) or (text if any(map(str.isdecimal, text)) else "")


def _callback(url: object, queue: object) -> Callback:
    if _text(url):
        return Callback.BOTH if _text(queue) else Callback.URL
    return Callback.QUEUE if _text(queue) else Callback.NONE


def _enumeration(value: object) -> str:
    return intern(_text(value).upper())  # saves memory: 50,000 numbers share a few texts


def _text(value: object) -> str:
    return _full_text(value)[:_MAX_TEXT_LENGTH]


def _full_text(value: object) -> str:
    """Return a scalar as trimmed text, otherwise "". Lone surrogates are replaced, because the scrape would fail."""
    if isinstance(value, str | int | float):
        return str(value).encode("utf-8", "replace").decode("utf-8").strip()
    return ""
