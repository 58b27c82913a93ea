"""What the results of polls say about an account: whether the API answers, and admits it. Values only."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from exporter.model import AccountState
from exporter.source import (
    DeniedError,
    Outcome,
    QueryError,
    RejectedError,
    RequestTimeout,
    ServerError,
    TemporaryError,
    ThrottledError,
    TransportError,
)

_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class AccountAccess:
    """What the results so far say.

    Once three spaces in a row (or all, if there are fewer) got no answer from the API, the account is unreachable; once
    as many were denied without a success between, it is denied. When a space is answered, the failures before it are
    `own`: they are about these spaces, not about the account. A space with a failure of its own says nothing about the
    account until it succeeds: a few such spaces must not make it unreachable, nor stop the polls of all others. The
    failures of most spaces are no spaces' own.
    """

    spaces: int
    denied: frozenset[str] = frozenset()
    unanswered: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    """Spaces whose last result was a rejection: another one says nothing new."""
    state: AccountState | None = None
    """`OK`, `DENIED` or `UNREACHABLE`; None before the first verdict. While it is `DENIED`, only probes are sent, and
    only a success or a rejection ends it."""

    def among(self, spaces: Collection[str]) -> "AccountAccess":
        """The same with these spaces. If none is left that can be probed, the `own` failures are cleared."""
        kept = frozenset(spaces)
        own = frozenset[str]() if kept <= self.own else self.own & kept
        state = self.state if kept else None
        return AccountAccess(len(kept), self.denied & kept, self.unanswered & kept, own, self.rejected & kept, state)

    def after(self, outcome: Outcome) -> "AccountAccess":
        """A poll has ended."""
        space, error = outcome.space, outcome.error
        rejected = isinstance(error, RejectedError) and error.from_api
        if rejected and space in self.rejected and self.state is not AccountState.DENIED:
            return self
        access = replace(self, rejected=self.rejected | {space} if rejected else self.rejected - {space})
        if not is_answer(error):
            return access._after_no_answer(space)
        if isinstance(error, DeniedError):
            return access._after_denial(space)
        if isinstance(error, TemporaryError):  # throttled, or malformed
            state = self.state if self.state is AccountState.DENIED else AccountState.OK
            return replace(access, unanswered=frozenset(), own=access._own_after(space), state=state)
        own = (access._own_after(space) | self.denied) - {space}
        return replace(access, denied=frozenset(), unanswered=frozenset(), own=own, state=AccountState.OK)

    def _after_no_answer(self, space: str) -> "AccountAccess":
        if space in self.own or self.state is AccountState.DENIED:
            return self
        unanswered = self.unanswered | {space}
        state = AccountState.UNREACHABLE if len(unanswered) >= self._enough else self.state
        return replace(self, unanswered=unanswered, state=state)

    def _after_denial(self, space: str) -> "AccountAccess":
        # the API answers, but whether it admits the account is not known yet
        state = None if self.state is AccountState.UNREACHABLE else self.state
        access = replace(self, unanswered=frozenset(), own=self._own_after(space), state=state)
        if self.state is AccountState.DENIED or space in self.own:
            return access
        denied = self.denied | {space}
        return replace(access, denied=denied, state=AccountState.DENIED if len(denied) >= self._enough else state)

    @property
    def _enough(self) -> int:
        """How many failures in a row are about the account."""
        return max(1, min(_IN_A_ROW, self.spaces - len(self.own)))

    def _own_after(self, space: str) -> frozenset[str]:
        """The spaces with a failure of their own, now that this space was answered."""
        most = len(self.unanswered) > (self.spaces - len(self.own)) / 2
        return self.own if most else (self.own | self.unanswered) - {space}


def is_answer(error: QueryError | None) -> bool:
    """Whether the API itself answered. What a proxy or a portal sends instead is no answer."""
    if error is None or isinstance(error, DeniedError):
        return True
    return error.from_api and not isinstance(error, TransportError | RequestTimeout | ServerError)


def explains(error: QueryError | None, state: AccountState | None) -> bool:
    """Whether the error is what this state of an account consists of."""
    match state:
        case AccountState.DENIED:
            return isinstance(error, DeniedError)
        case AccountState.UNREACHABLE:
            return not is_answer(error)
        case AccountState.THROTTLED:
            return isinstance(error, ThrottledError)
    return False
