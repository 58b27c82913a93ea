"""Why a request gave no numbers: a closed tree, split by who must act.

QueryError
├── PassingError          time mends it; asked again soon
│   ├── ThrottledError    the API said: too fast
│   ├── RequestTimeout    no whole answer in time
│   ├── TransportError    no answer at all: refused, reset, name not found, TLS
│   ├── ServerError       the API said that the fault is its own
│   └── MalformedError    an answer that we do not understand
└── RefusedError          a person must act; asked again, but rarely
    ├── DeniedError       the account: its key, permission, subscription or clock
    └── RejectedError     the space: its id, or its parameters
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar


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

    `code` is the API's own Code or, where it gave none, `http_503` or the reason's name. What others wrote is bounded
    and holds no secret (`quoted`). `request_id` is what Alibaba's support asks for, "" where there is none.
    """

    reason: ClassVar[Reason]

    def __init__(self, code: str, detail: str = "", *, request_id: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code

    @property
    def is_by_the_api(self) -> bool:
        """Whether the API itself said so, and not something on the way to it, which gives no Code."""
        return not self.code.startswith("http_")


def quoted(text: str, secrets: Iterable[str], longest: int) -> str:
    """What others wrote, for logs and terminals: without these secrets, up to `longest` characters, and without the
    control characters that would do something there."""
    for secret in secrets:
        text = text.replace(secret, "<secret>")
    # not before: of a secret that is cut the rest would be shown
    return "".join(character if character.isprintable() else "?" for character in text[:longest])


class PassingError(QueryError):
    """Time mends it."""


class RefusedError(QueryError):
    """A person must act."""


class ThrottledError(PassingError):
    """Too fast. `wait_seconds` is how long the API asks us to pause, 0 to 60; None where it does not say."""

    reason = Reason.THROTTLED

    def __init__(self, code: str, detail: str = "", *, request_id: str = "", wait_seconds: float | None = None) -> None:
        super().__init__(code, detail, request_id=request_id)
        self.wait_seconds = wait_seconds


class RequestTimeout(PassingError):
    """No whole answer in time."""

    reason = Reason.TIMEOUT


class TransportError(PassingError):
    """No answer at all."""

    reason = Reason.TRANSPORT


class ServerError(PassingError):
    """The API's own fault."""

    reason = Reason.SERVER


class MalformedError(PassingError):
    """An answer that is not what the API's description says."""

    reason = Reason.MALFORMED


class DeniedError(RefusedError):
    """The account's credentials, permission, subscription or clock."""

    reason = Reason.DENIED


class RejectedError(RefusedError):
    """The space's id or parameters."""

    reason = Reason.REJECTED
