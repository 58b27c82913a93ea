"""What a source of phone numbers is to the rest of the program, and every way in which it can fail.

A source is one account's way to its API. Polling, state, metrics and pages know no more of it than this module says.

QueryError
├── TemporaryError        time solves it; the space is polled again soon
│   ├── ThrottledError    the API said: too many requests
│   ├── RequestTimeout    no complete answer in time
│   ├── TransportError    no answer at all: connection refused or reset, name not found, TLS
│   ├── ServerError       the API reported an error of its own
│   └── MalformedError    an answer that is not what the API's description says
└── PermanentError        a person must act; the space is polled again at a longer interval
    ├── DeniedError       the account: its key, permission, subscription or clock
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
    """Base of them all.

    `code` is the API's own code or, where it gave none, `http_503` or the reason's name. Text from outside is
    bounded and holds no secret (`quoted`). `request_id` is what the API's support needs, "" where there is none.
    `retry_at_once` says that a new attempt can succeed without a pause, for example with a new date. `from_api` is
    False where a proxy or the like may have answered: that does not prove that the API can be reached.
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
    """Time solves it."""


class PermanentError(QueryError):
    """A person must act."""


class ThrottledError(TemporaryError):
    """Too many requests. `wait_seconds` is the pause that the API wants, 0 to 60; None where it names none."""

    reason = Reason.THROTTLED

    def __init__(self, code: str, detail: str = "", *, request_id: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(code, detail, request_id=request_id)
        self.wait_seconds = wait_seconds


class RequestTimeout(TemporaryError):
    """No complete answer in time."""

    reason = Reason.TIMEOUT


class TransportError(TemporaryError):
    """No answer at all."""

    reason = Reason.TRANSPORT


class ServerError(TemporaryError):
    """The API reported an error of its own."""

    reason = Reason.SERVER


class MalformedError(TemporaryError):
    """An answer that is not what the API's description says."""

    reason = Reason.MALFORMED


class DeniedError(PermanentError):
    """The account's credentials, permission, subscription or clock."""

    reason = Reason.DENIED


class RejectedError(PermanentError):
    """The space's id or parameters."""

    reason = Reason.REJECTED


def quoted(text: str, secrets: Iterable[str], longest: int) -> str:
    """Text from outside, for logs and terminals: without these secrets, up to `longest` characters, and without control
    characters."""
    if known := sorted(filter(None, secrets), key=len, reverse=True):  # in one pass, so that no replacement is searched
        text = re.sub("|".join(map(re.escape, known)), "<secret>", text)
    # cut after the replacement: the rest of a secret that was cut would be shown
    return "".join(character if character.isprintable() else "?" for character in text[:longest])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a poll: an answer or an error, never both. `at` is when it ended, `next_slot` the space's next
    regular time in the schedule, both in Unix seconds; `monotonic` is when it ended by the monotonic clock."""

    account: str
    space: str
    at: float
    answer: Answer | None = None
    error: QueryError | None = None
    next_slot: float | None = None
    monotonic: float | None = None


Attempt = Callable[[], AbstractAsyncContextManager[None]]
"""Entered around each HTTP request: waits for a permit, then counts the request and its QueryError. Sign a request
inside it, for the wait can be longer than a signature is valid."""


REQUEST_TIMEOUT_SECONDS = 10.0
"""How long a source may wait for an answer; the official SDK reads as long."""


class Source:
    """One account's way to its API. Subclass it, and leave out what does not apply."""

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        """The phone numbers of a space, or of the account itself for `OWN_NUMBERS`.

        Raises:
            QueryError: no numbers; its class says why.
        """
        raise NotImplementedError

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        """Every space of the account, as names by id. Called only where the account's settings have `discover`.

        Raises:
            QueryError: no complete list; its class says why.
        """
        raise NotImplementedError

    def credentials_changed(self) -> bool:
        """Whether the credentials differ from those of the last request. May read files; called in a thread."""
        return False

    async def aclose(self) -> None:
        """Close what is open."""
        return


HttpFactory = Callable[[str], httpx.AsyncClient]
"""Gives the HTTP client for an endpoint."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source gets from outside: environment variables, the clock and HTTP clients."""

    environ: Mapping[str, str]
    clock: Clock
    http: HttpFactory


class SourceError(ValueError):
    """A source cannot be opened. `key` is the configuration key at fault, the text says what is wrong."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key
