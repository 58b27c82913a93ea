"""The wire format of the two operations: a request is written, an answer is read.

Parameters travel in the query, the body is empty. An answer counts as success only with HTTP 2xx, a JSON object and
Code "OK": the API also sends its errors with HTTP 200, and reading those as "no numbers" would hide an outage. The same
holds for ListInstance (its page, and the SDKs: Code "OK indicates that the request was successful").
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
from exporter.model import Answer, Callback, PhoneNumber, phone_digits, worse_of
from exporter.source import (
    DeniedError,
    MalformedError,
    QueryError,
    RejectedError,
    ServerError,
    ThrottledError,
    quoted,
)
from exporter.sources.cams.signing import Credentials, authorization, canonical_query

QUERY_PHONE_NUMBERS = "QueryChatappPhoneNumbers"
LIST_INSTANCES = "ListInstance"
VERSION = "2020-06-06"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
DATE_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
MAX_WAIT_SECONDS = 60.0
"""The longest pause that a wait hint can impose; the official command line has the same bound."""
MAX_DETAIL = 200
"""Characters of an error's text that are shown."""
_MAX_CODE = 64
_MOST_NUMBERS = 5_000
"""Of a space; more would take so long to read that other spaces wait."""
PAGE_SIZE = 50
"""Instances that a page is asked for; the most that the API gives is not documented."""
_MAX_TEXT = 512
"""Characters of a field that are kept, so that no answer can blow up the page."""

_CODES: Mapping[type[QueryError], str] = {
    ThrottledError: "Throttling Throttling.* System.LimitControl",
    ServerError: "InternalError UnknownError ServiceUnavailable* SignatureNonceUsed"
    " 999999 CHAT.APIError ERR-COMMON-001",
    RejectedError: "Unknown.ResourceOwnerId Authentication.NoAuth InvalidParameter* MissingParameter*"
    " ERR-OPERATION-MAAP-0060 ERR-OPERATION-MAAP-0065 ERR-FB-001",
    DeniedError: "InvalidAccessKeyId* SignatureDoesNotMatch IncompleteSignature InvalidSecurityToken*"
    " Forbidden Forbidden.* NoPermission Ram.PermissionDeny Product.Unsubscript InvalidTimeStamp*"
    " InvalidApi.NotFound InvalidAction.NotFound InvalidVersion UnsupportedHTTPMethod",
}
"""Codes by what they mean. They decide before the HTTP status does: throttling comes as 400, a revoked key as 404."""


_RETRY_AT_ONCE = "InvalidTimeStamp.Expired InvalidSecurityToken*"
"""Codes for an expired date or token: a new attempt has a new date and the current token."""
Parameters = Mapping[str, str | None]
"""What is None is left out."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An entry of ListInstance. `space_id` is "" where it is no customer space with WhatsApp."""

    id: str
    space_id: str
    name: str


@dataclass(frozen=True, slots=True)
class InstancePage:
    """One page of a list, and the number of instances on all pages together."""

    instances: tuple[Instance, ...]
    total: int


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A signed POST to "/": `query` is canonical and goes out byte for byte; one request is sent once."""

    query: str
    headers: Mapping[str, str]


def encode_request(
    host: str, action: str, parameters: Parameters, credentials: Credentials, *, now: float, nonce: str
) -> WireRequest:
    """Write one attempt. `host` is as it stands on the wire, `now` in Unix seconds, `nonce` never used before."""
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
    # identity: the answer's size is bounded as it arrives, which a compressed one would get around
    return WireRequest(query, {**headers, "authorization": signed, "accept-encoding": "identity"})


def _credential_headers(credentials: Credentials) -> dict[str, str]:
    if not credentials.security_token:
        return {"x-acs-credentials-provider": "static_ak"}
    return {
        "x-acs-credentials-provider": "static_sts",
        "x-acs-accesskey-id": credentials.access_key_id,
        "x-acs-security-token": credentials.security_token,
    }


def decode_answer(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()) -> Answer:
    """Read the numbers of a space; `headers` must find names in any case. The answer may repeat `secrets` that were
    sent; no error does.

    Raises:
        QueryError: the answer is anything but a success; its class says what to do.
    """
    return _read_numbers(_success(status, headers, body, secrets))


def decode_instances(
    status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str] = ()
) -> InstancePage:
    """Read a page of instances, in the same way."""
    return _read_instances(_success(status, headers, body, secrets))


def _success(status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str]) -> dict[str, Any]:
    document = _json_object(body)
    # no other spelling and no XML: those are errors' ways, and reading them as a success would show no numbers
    if 200 <= status < 300 and document and _text(document.get("Code")) == "OK":
        return document
    code = _field(document, "Code") or _xml_code(body)
    message = quoted(_field(document, "Message"), secrets, MAX_DETAIL)
    detail = message or f"HTTP {status}, {len(body)} bytes, {_kind(document)}"
    request_id = headers.get("x-acs-request-id") or _field(document, "RequestId")
    raise _error(status, quoted(code, secrets, _MAX_CODE), detail, quoted(request_id, secrets, _MAX_CODE), headers)


def _error(status: int, code: str, detail: str, request_id: str, headers: Mapping[str, str]) -> QueryError:
    kind = _class_of_code(code) or _class_of_status(status, code)
    from_api = code not in ("", "OK")
    if not from_api:  # a failure is never counted under the code of a success
        code = "malformed" if kind is MalformedError else f"http_{status}"
    if kind is ThrottledError:
        return ThrottledError(code, detail, request_id=request_id, wait_seconds=retry_after(headers))
    again = _matches(code, _RETRY_AT_ONCE)
    return kind(code, detail, request_id=request_id, retry_at_once=again, from_api=from_api)


def _matches(code: str, patterns: str) -> bool:
    return any(fnmatchcase(code, pattern) for pattern in patterns.split())


def _class_of_code(code: str) -> type[QueryError] | None:
    for kind, patterns in _CODES.items():
        if _matches(code, patterns):
            return kind
    return None


def _class_of_status(status: int, code: str) -> type[QueryError]:
    if status == 429:
        return ThrottledError
    if status >= 500:
        return ServerError
    if status in (401, 403):
        return DeniedError
    # a Code that we do not know is the API speaking; no Code at all below 400 is somebody else
    return RejectedError if status >= 400 or code not in ("", "OK") else MalformedError


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How long the API asks us to pause, in seconds, at most 60; None where it does not say so in numbers.

    `x-acs-retry-after` is in milliseconds (tea-openapi >= 0.4.5), `TimeLeft` of the older `x-ratelimit-…` headers too,
    the standard `Retry-After` in seconds.
    """
    for text, unit in _hints(headers):
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, MAX_WAIT_SECONDS)
    return None


def _hints(headers: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    yield headers.get("x-acs-retry-after", ""), 0.001
    for name in ("x-ratelimit-user-api", "x-ratelimit-user"):
        found = re.search(r"TimeLeft:([^,]+)", headers.get(name, ""))
        yield found[1] if found else "", 0.001
    yield headers.get("retry-after", ""), 1.0


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _field(document: dict[str, Any] | None, name: str) -> str:
    """A text field of the envelope; the gateway spells it `Code` or `code`."""
    for spelling in (name, name[0].lower() + name[1:]):
        if document and (value := _whole_text(document.get(spelling))):
            return value
    return ""


def _xml_code(body: bytes) -> str:
    found = re.search(rb"<Code>([\w.\-]{1,64})</Code>", body[:4096])
    return found[1].decode("ascii", "replace") if found else ""


def _kind(document: dict[str, Any] | None) -> str:
    return "not a JSON object" if document is None else "no Message in it"


def _entries(document: dict[str, Any], name: str, most: int) -> list[Any]:
    entries = document.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise MalformedError("malformed", f"{name}: expected a list, found {type(entries).__name__}")
    if len(entries) > most:
        raise MalformedError("malformed", f"{name}: expected at most {most}, found {len(entries)}")
    return entries


def _read_instances(document: dict[str, Any]) -> InstancePage:
    entries = _entries(document, "Data", PAGE_SIZE)
    total = _text(document.get("TotalCount"))
    if not total.isdecimal():  # without it nobody knows whether a listing is whole
        raise MalformedError("malformed", f"TotalCount: expected a number, found {total[:_MAX_CODE]!r}")
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
    entries = _entries(document, "PhoneNumbers", _MOST_NUMBERS)
    numbers = [_read_number(entry) if isinstance(entry, dict) else PhoneNumber("") for entry in entries]
    # by number, for a number listed twice would be two series alike and cost the whole scrape
    named: dict[str, PhoneNumber] = {}
    for number in numbers:
        if name := number.phone_number:
            named[name] = worse_of(named[name], number) if name in named else number
    unnamed = sum(1 for number in numbers if not number.phone_number)
    if entries and not named:
        raise MalformedError("malformed", f"{len(entries)} entries in PhoneNumbers, and none has a PhoneNumber")
    return Answer(tuple(named.values()), unnamed)


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
    """Its digits. Other text that has a digit is kept as it is: an entry that may be bad must not be lost. "" for what
    is no number, such as `true` and NaN."""
    text = _text(value) if isinstance(value, str | int) else ""
    return phone_digits(text) or (text if any(map(str.isdecimal, text)) else "")


def _callback(url: object, queue: object) -> Callback:
    if _text(url):
        return Callback.BOTH if _text(queue) else Callback.URL
    return Callback.QUEUE if _text(queue) else Callback.NONE


def _enumeration(value: object) -> str:
    return intern(_text(value).upper())  # one text for fifty thousand numbers


def _text(value: object) -> str:
    return _whole_text(value)[:_MAX_TEXT]


def _whole_text(value: object) -> str:
    """The value as trimmed text; "" for what is no scalar. A lone surrogate, legal in JSON, would break the scrape."""
    if isinstance(value, str | int | float):
        return str(value).encode("utf-8", "replace").decode("utf-8").strip()
    return ""
