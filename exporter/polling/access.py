"""Derives the state of an account from the results of polls, without a clock, network or log."""

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

_FAILURE_THRESHOLD = 3
"""Failed spaces that count as a failure of the account."""


@dataclass(frozen=True, slots=True)
class AccountAccess:
    """The account state after the polls so far. Each result of a poll changes it as follows:

    | result | effect |
    |---|---|
    | success, or first consecutive rejection of a space | state OK; `denied` and `unreachable` become empty |
    | throttled or malformed | state OK, or still DENIED; `unreachable` becomes empty |
    | denied | adds the space to `denied`, if not DENIED yet; `unreachable` becomes empty; UNREACHABLE becomes None |
    | no proof that the API works (see `proves_api_works`) | adds the space to `unreachable`; no effect if DENIED |
    | repeated rejection | no effect; if DENIED, the same as a success |

    Three spaces in `denied` make the account DENIED; three spaces in `unreachable` make it UNREACHABLE. Spaces in
    `excluded` do not count. If fewer than three spaces remain, all of them must fail.

    A space in `unreachable` is excluded when the API responds to another space. A space in `denied` is excluded after a
    success or a rejection of another space. In both cases, the cause is the space. Without exclusions, a few failing
    spaces would make the account DENIED or UNREACHABLE, and all its spaces would be blind. Failures of an excluded
    space do not count until the API responds to it. If most spaces are in `unreachable`, they are not excluded, because
    the cause is probably not the spaces.
    """

    space_count: int
    denied: frozenset[str] = frozenset()
    unreachable: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    """Spaces whose last result was a rejection."""
    state: AccountState | None = None
    """`OK`, `DENIED` or `UNREACHABLE`. None before the first result that determines the state, after a denial that ends
    `UNREACHABLE`, and without spaces. While the state is `DENIED`, only probes are sent. Only a success, a rejection or
    the removal of all spaces ends `DENIED`."""

    def with_spaces(self, spaces: Collection[str]) -> "AccountAccess":
        """Return the access with these spaces only; without spaces, the state is None. If all of them are excluded, the
        exclusions are removed, because at least one space must be available for probes."""
        ids = frozenset(spaces)
        excluded = frozenset[str]() if ids <= self.excluded else self.excluded & ids
        state = self.state if ids else None
        return AccountAccess(len(ids), self.denied & ids, self.unreachable & ids, excluded, self.rejected & ids, state)

    def after(self, outcome: Outcome) -> "AccountAccess":
        """Return the access after this result of a poll."""
        space, error = outcome.space, outcome.error
        rejected = isinstance(error, RejectedError) and error.from_api
        if rejected and space in self.rejected and self.state is not AccountState.DENIED:
            return self
        access = replace(self, rejected=self.rejected | {space} if rejected else self.rejected - {space})
        if not proves_api_works(error):
            return access._after_unreachable(space)
        if isinstance(error, DeniedError):
            return access._after_denial(space)
        if isinstance(error, TemporaryError):  # throttled, or malformed
            state = self.state if self.state is AccountState.DENIED else AccountState.OK
            return replace(access, unreachable=frozenset(), excluded=access._excluded_after(space), state=state)
        excluded = (access._excluded_after(space) | self.denied) - {space}
        return replace(access, denied=frozenset(), unreachable=frozenset(), excluded=excluded, state=AccountState.OK)

    def _after_unreachable(self, space: str) -> "AccountAccess":
        if space in self.excluded or self.state is AccountState.DENIED:
            return self
        unreachable = self.unreachable | {space}
        state = AccountState.UNREACHABLE if len(unreachable) >= self._threshold else self.state
        return replace(self, unreachable=unreachable, state=state)

    def _after_denial(self, space: str) -> "AccountAccess":
        # the API is reachable, but one denial does not show whether it denies the account or only this space
        state = None if self.state is AccountState.UNREACHABLE else self.state
        access = replace(self, unreachable=frozenset(), excluded=self._excluded_after(space), state=state)
        if self.state is AccountState.DENIED or space in self.excluded:
            return access
        denied = self.denied | {space}
        return replace(access, denied=denied, state=AccountState.DENIED if len(denied) >= self._threshold else state)

    @property
    def _threshold(self) -> int:
        """The threshold for this account. Lower if fewer spaces are not excluded."""
        return max(1, min(_FAILURE_THRESHOLD, self.space_count - len(self.excluded)))

    def _excluded_after(self, space: str) -> frozenset[str]:
        """Return the excluded spaces after the API responded to this space."""
        is_majority = len(self.unreachable) > (self.space_count - len(self.excluded)) / 2
        return self.excluded if is_majority else (self.excluded | self.unreachable) - {space}


def proves_api_works(error: QueryError | None) -> bool:
    """Return whether a poll with this error (None: a success) shows that the API works.

    Network errors, timeouts, server errors and responses without a code from the API, for example from a proxy, do not.
    A denial does, also without a code (HTTP 401 or 403) or without a request (the credentials cannot be read).
    """
    if error is None or isinstance(error, DeniedError):
        return True
    return error.from_api and not isinstance(error, TransportError | RequestTimeout | ServerError)


def is_account_failure(error: QueryError | None, state: AccountState | None) -> bool:
    """Return whether the error is a failure of the account in this state, for example a denial if it is DENIED."""
    match state:
        case AccountState.DENIED:
            return isinstance(error, DeniedError)
        case AccountState.UNREACHABLE:
            return not proves_api_works(error)
        case AccountState.THROTTLED:
            return isinstance(error, ThrottledError)
    return False
