"""Whether the API admits an account, judged by the answers to its spaces. Values only."""

from collections.abc import Collection
from dataclasses import dataclass, replace

_DENIED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class AccountAccess:
    """What the answers so far say.

    A denial counts for the account once three spaces in a row (or all, if there are fewer) were `denied` without an
    admitted answer between. When a space is admitted, the denials before it are `own`: they are about these spaces, not
    about the account. A space with a denial of its own says nothing about the account until it is admitted: three such
    spaces must not stop the polls of all others.
    """

    spaces: int
    denied: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    denied_account: bool = False
    """While this is true, only probes are sent, and only an admitted answer ends it."""

    def among(self, spaces: Collection[str]) -> "AccountAccess":
        """The same with these spaces. If none is left that can be probed, the `own` denials are cleared."""
        kept = frozenset(spaces)
        own = frozenset[str]() if kept <= self.own else self.own & kept
        return AccountAccess(len(kept), self.denied & kept, own, self.denied_account and bool(kept))

    def after_denial(self, space: str) -> "AccountAccess":
        """A space was denied."""
        if self.denied_account or space in self.own:
            return self
        denied = self.denied | {space}
        enough = max(1, min(_DENIED_IN_A_ROW, self.spaces - len(self.own)))
        return replace(self, denied=denied, denied_account=len(denied) >= enough)

    def after_admission(self, space: str) -> "AccountAccess":
        """A space was answered, or rejected for a reason of its own: the account is admitted."""
        return AccountAccess(self.spaces, own=(self.own | self.denied) - {space})
