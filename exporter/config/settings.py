"""The shape of the configuration file: the keys that all sources have. Reads no file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Self, Union

from pydantic import ConfigDict, Discriminator, Field, SerializeAsAny, Tag, create_model, field_validator
from pydantic.dataclasses import dataclass

from exporter.config.fields import Duration, FileName, FilePattern, Id, LabelName, LabelValue, Scalar, Strict
from exporter.model import MESSAGING_LIMITS, OWN_NUMBERS, Space
from exporter.source import Source, SourceContext, SourceError

API_LIMIT_QPS = 10.0
"""Queries per second that the API allows to all users of an account together (the operation's page)."""
MIN_QPS = 0.001
"""One query in a quarter of an hour; far less, and times leave the range that dates have."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ConfiguredSpace(Space):
    """A customer space."""

    # there are thousands, and each would need 416 bytes more as a model
    id: Id = Field(description="its CustSpaceId, shown as the label `space`")
    name: Scalar = Field(default="", description="a name for people, shown in `chatapp_space_info`")
    labels: Mapping[LabelName, LabelValue] = Field(
        default_factory=dict,
        json_schema_extra={"default": {}},
        description="further labels of `chatapp_space_info`; none is called account, space or name",
    )


_COMMON_KEYS = dict.fromkeys(("qps", "poll_interval", "spaces", "space_files", "discover"))
"""The keys of an account that its source does not read."""


class Account(Strict):
    """The part of an account that every source has. A source adds its own keys, and says how to open it."""

    name: Id = Field(description="a unique name, shown as the label `account`")
    source: str = Field(description="where the phone numbers come from")
    qps: float = Field(
        API_LIMIT_QPS / 2,
        ge=MIN_QPS,
        le=API_LIMIT_QPS,
        description="queries per second that the exporter allows itself, of the 10 that all users of the account"
        " share; at most 10 for all accounts with the same access key together",
    )
    poll_interval: Duration = Field(
        300.0,
        json_schema_extra={"default": "5m"},
        description="how often each space is polled; at least 30s, except against a loopback endpoint",
    )
    spaces: Sequence[ConfiguredSpace] | None = Field(
        None,
        description="the customer spaces, at least one; without `spaces`, `space_files` and `discover`, the account's"
        " own numbers are polled",
    )
    space_files: list[FilePattern] | None = Field(
        None,
        description="files or patterns, each file with such a list in YAML or JSON; a file that matches several"
        " patterns is read once; a change of a file reloads the configuration",
    )
    discover: bool = Field(
        False,
        description="whether to poll the spaces too that the API lists, once an hour; the configured name and labels of"
        " a space are kept",
    )

    @field_validator("spaces", "space_files")
    @classmethod
    def _not_empty(cls, items: list[object] | None) -> list[object] | None:
        if not items:
            raise ValueError("at least one; leave the key out to poll the account's own numbers")
        return items

    @classmethod
    def space_type(cls) -> type[ConfiguredSpace]:
        """The shape of an entry of `spaces` and of a space file."""
        return ConfiguredSpace

    @property
    def identity(self) -> str:
        """Where the values come from. If it changes, the values that are known are removed."""
        raise NotImplementedError

    @property
    def is_remote(self) -> bool:
        """Whether its API is on another machine, so that proxies of the environment count."""
        return True

    def shared_limit(self, environ: Mapping[str, str]) -> str | None:
        """The same text for all accounts whose queries count against one limit of the API; it can be a secret. None
        where nothing shares it, or while it cannot be read."""
        return None

    def has_temporary_key(self, environ: Mapping[str, str]) -> bool:
        """Whether its key is replaced from time to time by another one of the same account, as roles do."""
        return False

    def problems(self, environ: Mapping[str, str]) -> Iterator[SourceError]:
        """What the source cannot work with, although every key alone is valid. Reads its secrets."""
        raise NotImplementedError

    def open(self, context: SourceContext) -> Source:
        """The source. Reads its secrets once, and sends nothing.

        Raises:
            SourceError: it cannot be opened.
        """
        raise NotImplementedError

    @property
    def polls_own_numbers(self) -> bool:
        """Whether no space is configured or discovered, so that the account's own numbers are polled."""
        return self.spaces is None and self.space_files is None and not self.discover

    @property
    def polled_spaces(self) -> list[Space]:
        """The configured spaces, or one that stands for the account's own numbers."""
        return [OWN_NUMBERS] if self.polls_own_numbers else list(self.spaces or ())

    def with_discovered(self, names: Mapping[str, str]) -> Self:
        """The same account with these spaces too, as names by id, if it discovers spaces."""
        if not self.discover:
            return self
        configured = {space.id: space for space in self.spaces or ()}
        found = [Space(id=space, name=name) for space, name in names.items() if space not in configured]
        return self.model_copy(update={"spaces": [*configured.values(), *found]})

    def has_source_of(self, other: "Account") -> bool:
        """Whether the same source serves both: the keys that only the source reads are the same."""
        return self.model_copy(update=_COMMON_KEYS) == other.model_copy(update=_COMMON_KEYS)


class Settings(Strict):
    """The complete file."""

    accounts: list[SerializeAsAny[Account]]
    messaging_limits: dict[Id, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="unique users per rolling 24 hours, by tier: for tiers that this version has no number for, or"
        " another number",
    )
    max_age: Duration = Field(
        3600.0,
        json_schema_extra={"default": "1h"},
        description="how long values are shown after the last successful poll",
    )
    state_file: FileName | None = Field(
        None, description="where the values are kept over a restart, in SQLite; without it, they are not kept"
    )
    _polled_twice: tuple[str, ...] = ()
    _keys: Mapping[str, str] = {}
    _temporary: Set[str] = frozenset()

    @field_validator("messaging_limits")
    @classmethod
    def _as_the_api_spells_them(cls, limits: dict[str, float]) -> dict[str, float]:
        return {tier.strip().upper(): limit for tier, limit in limits.items()}

    @property
    def polled_twice(self) -> tuple[str, ...]:
        """A warning for each group of spaces that several accounts with one access key poll."""
        return self._polled_twice

    @property
    def first_with_key(self) -> Mapping[str, str]:
        """By account, the name of the first account that has the same access key: mostly its own."""
        first: dict[str, str] = {}
        return {name: first.setdefault(self._keys.get(name, name), name) for name in (a.name for a in self.accounts)}

    def with_keys(
        self, keys: Mapping[str, str], polled_twice: Iterable[str], temporary: Set[str] = frozenset()
    ) -> Self:
        """A copy with what requires all access keys to be read: a digest of the access key by account, the warnings of
        `polled_twice`, and the accounts with a temporary key."""
        copy = self.model_copy()
        copy._keys, copy._temporary, copy._polled_twice = keys, temporary, tuple(polled_twice)
        return copy

    @property
    def spaces(self) -> dict[tuple[str, str], Space]:
        """The polled spaces, by account and space."""
        return {(account.name, space.id): space for account in self.accounts for space in account.polled_spaces}

    @property
    def identities(self) -> dict[str, str]:
        """Where the values of each account come from: its source, its identity there and its access key. A temporary
        key does not count, because it changes within hours."""
        keys = {name: key for name, key in self._keys.items() if name not in self._temporary}
        return {a.name: f"{a.source} {a.identity} {keys.get(a.name, '')}".rstrip() for a in self.accounts}

    @property
    def limits(self) -> dict[str, float]:
        """Every tier that has a number: this version's, overridden by the configuration's."""
        return {**MESSAGING_LIMITS, **self.messaging_limits}


def settings_of(default: type[Account], *others: type[Account]) -> type[Settings]:
    """The file's shape with the accounts of these sources, chosen by the key `source`."""
    kinds = {kind.model_fields["source"].default: kind for kind in (default, *others)}
    tagged = tuple(Annotated[kind, Tag(name)] for name, kind in kinds.items())
    chosen = Discriminator(
        lambda entry: _source_of(entry) or default.model_fields["source"].default,
        custom_error_type="unknown_source",
        custom_error_message=f"an account with one of the sources {', '.join(kinds)}",
    )
    account: Any = Annotated[Union[tagged], chosen] if others else default  # noqa: UP007
    about = Field(min_length=1, description="the accounts that are polled, at least one")
    shape: type[Settings] = create_model(
        "Settings", __base__=Settings, __doc__=Settings.__doc__, accounts=(list[account], about)
    )
    return shape


def _source_of(entry: object) -> object:
    return entry.get("source") if isinstance(entry, dict) else getattr(entry, "source", None)
