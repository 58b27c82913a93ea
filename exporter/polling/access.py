"""What the results of polls say about an account: whether the API answers, and admits it. Values only."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from exporter.model import AccountState
from exporter.source import (
    DeniedError,
    MalformedError,
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

    The account is unreachable once three spaces in a row (or all, if there are fewer) got no answer from the API.

    A denial counts for the account once three spaces in a row (or all) were `denied` without an admitted answer
    between. When a space is admitted, the denials before it are `own`: they are about these spaces, not about the
    account. A space with a denial of its own says nothing about the account until it is admitted: three such spaces
    must not stop the polls of all others.
    """

    spaces: int
    denied: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    unanswered: frozenset[str] = frozenset()
    state: AccountState | None = None
    """`OK`, `DENIED` or `UNREACHABLE`; None before the first verdict. While it is `DENIED`, only probes are sent, and
    only an admitted answer ends it."""

    def among(self, spaces: Collection[str]) -> "AccountAccess":
        """The same with these spaces. If none is left that can be probed, the `own` denials are cleared."""
        kept = frozenset(spaces)
        own = frozenset[str]() if kept <= self.own else self.own & kept
        return AccountAccess(len(kept), self.denied & kept, own, self.unanswered & kept, self.state if kept else None)

    def after(self, outcome: Outcome) -> "AccountAccess":
        """A poll has ended."""
        error = outcome.error
        if not is_answer(error):
            return self._after_no_answer(outcome.space)
        if isinstance(error, DeniedError):
            return self._after_denial(outcome.space)
        if isinstance(error, TemporaryError):  # throttled
            return replace(self, unanswered=frozenset(), state=self._unless_denied(AccountState.OK))
        return AccountAccess(self.spaces, own=(self.own | self.denied) - {outcome.space}, state=AccountState.OK)

    def _after_no_answer(self, space: str) -> "AccountAccess":
        unanswered = self.unanswered | {space}
        state = AccountState.UNREACHABLE if len(unanswered) >= min(_IN_A_ROW, self.spaces) else self.state
        return replace(self, unanswered=unanswered, state=self._unless_denied(state))

    def _after_denial(self, space: str) -> "AccountAccess":
        # the API answers, but whether it admits the account is not known yet
        state = None if self.state is AccountState.UNREACHABLE else self.state
        if self.state is AccountState.DENIED or space in self.own:
            return replace(self, unanswered=frozenset(), state=state)
        denied = self.denied | {space}
        enough = max(1, min(_IN_A_ROW, self.spaces - len(self.own)))
        return replace(
            self,
            denied=denied,
            unanswered=frozenset(),
            state=AccountState.DENIED if len(denied) >= enough else state,
        )

    def _unless_denied(self, state: AccountState | None) -> AccountState | None:
        return self.state if self.state is AccountState.DENIED else state


def is_answer(error: QueryError | None) -> bool:
    """Whether the API itself answered. What a proxy or a portal sends instead is no answer."""
    if isinstance(error, RejectedError):
        return error.from_api
    return not isinstance(error, TransportError | RequestTimeout | ServerError | MalformedError)


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
