"""The interface of a source of phone numbers, and its errors.

A source connects one account to its API. Polling, state, metrics and pages use only the definitions of this module.

QueryError
├── TemporaryError        a retry can succeed; the space is polled again with exponential backoff
│   ├── ThrottledError    the API throttled the request
│   ├── RequestTimeout    no complete response within the timeout
│   ├── TransportError    connection refused or reset, name not found, TLS
│   ├── ServerError       an internal error of the API, or HTTP status 500 or higher
│   └── MalformedError    a response that does not match the API's description
└── PermanentError        a person must fix the cause; the space is polled again at increasing intervals
    ├── DeniedError       the account: its key, permission, subscription or the system time
    └── RejectedError     the space: its id or parameters
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import httpx

from exporter.clock import Clock
from exporter.model import Answer, Space


class Reason(StrEnum):
    """The label `reason` of chatapp_space_poll_failures_total."""

    THROTTLED = "throttled"
    TIMEOUT = "timeout"
    TRANSPORT = "transport"
    DENIED = "denied"
    REJECTED = "rejected"
    MALFORMED = "malformed"
    SERVER = "server"


class QueryError(Exception):
    """Base class of all errors of a source.

    `code`: the code from the API. Without a code: `http_503` (the HTTP status), the name of the reason, `credentials`
        (not available), `internal` (a bug) or `not_polled`.
    `detail`: text from the API or the network, limited in length and without secrets (see `sanitized`).
    `request_id`: the id of the request for the API's support team, or "".
    `retry_at_once`: a retry can succeed without a pause, for example with a new date.
    `from_api`: False if a proxy may have sent the response, for example because it has no code. Not relevant without a
        response.
    """

    reason: ClassVar[Reason]

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        request_id: str = "",
        retry_at_once: bool = False,
        from_api: bool = True,
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_at_once = retry_at_once
        self.from_api = from_api

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class TemporaryError(QueryError):
    """A retry can succeed."""


class PermanentError(QueryError):
    """A retry fails until a person fixes the cause, except with `retry_at_once`."""


class ThrottledError(TemporaryError):
    """The API throttled the request. `wait_seconds` is the Retry-After value, 0 to 60, or None without a value."""

    reason = Reason.THROTTLED

    def __init__(self, code: str, detail: str = "", *, request_id: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(code, detail, request_id=request_id)
        self.wait_seconds = wait_seconds


class RequestTimeout(TemporaryError):
    """No complete response within the timeout."""

    reason = Reason.TIMEOUT


class TransportError(TemporaryError):
    """The connection was refused or reset, the name was not found, or TLS failed."""

    reason = Reason.TRANSPORT


class ServerError(TemporaryError):
    """An internal error of the API, or HTTP status 500 or higher."""

    reason = Reason.SERVER


class MalformedError(TemporaryError):
    """A response that does not match the API's description."""

    reason = Reason.MALFORMED


class DeniedError(PermanentError):
    """The API does not accept the account's credentials, permission, subscription or system time."""

    reason = Reason.DENIED


class RejectedError(PermanentError):
    """The API does not accept the space's id or parameters."""

    reason = Reason.REJECTED


def sanitized(text: str, secrets: Iterable[str], max_length: int) -> str:
    """Return external text for logs and terminals: secrets and control characters replaced, cut to `max_length`."""
    if patterns := sorted(filter(None, secrets), key=len, reverse=True):
        # one pass, so that a replacement is not searched for the next secret
        text = re.sub("|".join(map(re.escape, patterns)), "<secret>", text)
    # cut after the replacement: a secret that is cut first would not be found
    return "".join(character if character.isprintable() else "?" for character in text[:max_length])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a poll: either an `answer` or an `error`.

    `at` is the end of the poll and `next_slot` the next regular time of the space in the schedule, both in Unix
    seconds. `monotonic` is the end of the poll on the monotonic clock.
    """

    account: str
    space: str
    at: float
    answer: Answer | None = None
    error: QueryError | None = None
    next_slot: float | None = None
    monotonic: float | None = None


Attempt = Callable[[], AbstractAsyncContextManager[None]]
"""Returns a context manager for one HTTP request. It waits for a permit, then counts the request and its QueryError.
Sign the request inside the context, because the wait can be longer than a signature is valid."""


REQUEST_TIMEOUT_SECONDS = 10.0
"""The timeout of a request. The official SDK has the same read timeout."""


class Source:
    """Connects one account to its API. A subclass implements `query`, and the other methods if they apply."""

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        """Return the phone numbers of a space. For `OWN_NUMBERS`, return those of the account itself.

        Raises:
            QueryError: the query failed; its class gives the reason.
        """
        raise NotImplementedError

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        """Return the names of all spaces by id. Called only if the account's settings have `discover`.

        Raises:
            QueryError: the list is not complete; its class gives the reason.
        """
        raise NotImplementedError

    def credentials_changed(self) -> bool:
        """Return whether the credentials differ from those of the last request. May read files; called in a thread."""
        return False

    async def aclose(self) -> None:
        """Close all connections and files."""
        return


HttpFactory = Callable[[str], httpx.AsyncClient]
"""Returns the HTTP client for an endpoint."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """The dependencies of a source: environment variables, the clock and HTTP clients."""

    environ: Mapping[str, str]
    clock: Clock
    http: HttpFactory


class SourceError(ValueError):
    """A source cannot be opened. `key` is the invalid configuration key, the text describes the problem. `variable` is
    the environment variable that is missing, if any."""

    def __init__(self, key: str, problem: str, *, variable: str = "") -> None:
        super().__init__(problem)
        self.key = key
        self.variable = variable
