"""The schema of the configuration file: the keys that all sources have. Does not read files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Self, Union

from pydantic import ConfigDict, Discriminator, Field, SerializeAsAny, Tag, create_model, field_validator
from pydantic.dataclasses import dataclass

from exporter.config.fields import Duration, FileName, FilePattern, Id, LabelName, LabelValue, Scalar, Strict
from exporter.model import MESSAGING_LIMITS, OWN_NUMBERS, Space
from exporter.source import Source, SourceContext, SourceError

API_LIMIT_QPS = 10.0
"""Rate limit of an access key in queries per second (API reference of QueryChatappPhoneNumbers)."""
MIN_QPS = 0.001
"""One query per 1000 s. With much lower rates, calculated times leave the range of dates."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class ConfiguredSpace(Space):
    """A customer space."""

    # a dataclass, because there are thousands of spaces and a pydantic model needs 416 bytes more for each
    id: Id = Field(description="CustSpaceId of the space, exported as the label `space`.")
    name: Scalar = Field(default="", description="Display name, exported in `chatapp_space_info`.")
    labels: Mapping[LabelName, LabelValue] = Field(
        default_factory=dict,
        json_schema_extra={"default": {}},
        description="Additional labels of `chatapp_space_info`, except the reserved names account, space and name."
        " The label `team` is added to alerts about the space and its phone numbers.",
    )


_POLLING_KEYS = dict.fromkeys(("qps", "poll_interval", "spaces", "space_files", "discover"))
"""The keys of an account that its source does not use, each with the value None."""


class Account(Strict):
    """The keys and methods of an account that all sources have. Each source adds its own in a subclass."""

    name: Id = Field(description="Unique name of the account, exported as the label `account`.")
    source: str = Field(description="Type of the API.")
    qps: float = Field(
        API_LIMIT_QPS / 2,
        ge=MIN_QPS,
        le=API_LIMIT_QPS,
        description="Maximum rate of the account, in queries per second.",
    )
    poll_interval: Duration = Field(
        300.0,
        json_schema_extra={"default": "5m"},
        description="Time between two polls of a space, at least 30s unless the endpoint is a loopback address.",
    )
    spaces: Sequence[ConfiguredSpace] | None = Field(
        None,
        description="Customer spaces to poll, at least one.",
    )
    space_files: list[FilePattern] | None = Field(
        None,
        description="File names or glob patterns of YAML or JSON files with a list of spaces.",
    )
    discover: bool = Field(
        False,
        description="Whether to list the spaces of the account once per hour and poll them too.",
    )

    @field_validator("spaces", "space_files")
    @classmethod
    def _not_empty(cls, items: list[object] | None) -> list[object] | None:
        if not items:
            raise ValueError("at least one entry (remove the key to poll the account's own numbers)")
        return items

    @classmethod
    def space_type(cls) -> type[ConfiguredSpace]:
        """Return the schema of an entry in `spaces` and in a space file."""
        return ConfiguredSpace

    @property
    def identity(self) -> str:
        """The origin of the values, for example the endpoint. If it changes, stored values are removed."""
        raise NotImplementedError

    @property
    def is_remote(self) -> bool:
        """Whether the API is on another machine. Only then, the proxy variables are used."""
        return True

    def rate_limit_id(self, environ: Mapping[str, str]) -> str | None:
        """Return the id of the API's rate limit. Accounts with the same id share the rate limit. The id can be secret.

        Returns None if the rate limit is not shared or cannot be determined.
        """
        return None

    def has_temporary_key(self, environ: Mapping[str, str]) -> bool:
        """Whether the access key is temporary, for example from a RAM role, and is replaced regularly."""
        return False

    def problems(self, environ: Mapping[str, str]) -> Iterator[SourceError]:
        """Yield errors that the schema does not find, for example a missing secret. Reads the secrets."""
        raise NotImplementedError

    def open(self, context: SourceContext) -> Source:
        """Open the source. Reads the secrets once and sends no request.

        Raises:
            SourceError: the source cannot be opened.
        """
        raise NotImplementedError

    @property
    def polls_own_numbers(self) -> bool:
        """Whether the account's own numbers are polled: `spaces`, `space_files` and `discover` are not set."""
        return self.spaces is None and self.space_files is None and not self.discover

    @property
    def polled_spaces(self) -> list[Space]:
        """The spaces to poll. For the account's own numbers, the placeholder space `own`."""
        return [OWN_NUMBERS] if self.polls_own_numbers else list(self.spaces or ())

    def with_discovered_spaces(self, names: Mapping[str, str]) -> Self:
        """Return a copy with these spaces added (names by id), or the same account if it does not discover spaces."""
        if not self.discover:
            return self
        configured = {space.id: space for space in self.spaces or ()}
        discovered = [Space(id=space, name=name) for space, name in names.items() if space not in configured]
        return self.model_copy(update={"spaces": [*configured.values(), *discovered]})

    def has_same_source_as(self, other: "Account") -> bool:
        """Whether both accounts have the same values for all keys that a source uses."""
        return self.model_copy(update=_POLLING_KEYS) == other.model_copy(update=_POLLING_KEYS)


class Settings(Strict):
    """The configuration file."""

    accounts: list[SerializeAsAny[Account]]
    messaging_limits: dict[Id, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Messaging limits by tier, in unique users per rolling 24 hours, in addition to the known tiers.",
    )
    max_age: Duration = Field(
        3600.0,
        json_schema_extra={"default": "1h"},
        description="Maximum age of exported values.",
    )
    state_file: FileName | None = Field(None, description="SQLite file that keeps values across restarts.")
    _shared_space_warnings: tuple[str, ...] = ()
    _key_digests: Mapping[str, str] = {}
    _temporary_keys: Set[str] = frozenset()

    @field_validator("messaging_limits")
    @classmethod
    def _normalize_tiers(cls, limits: dict[str, float]) -> dict[str, float]:
        return {tier.strip().upper(): limit for tier, limit in limits.items()}

    @property
    def shared_space_warnings(self) -> tuple[str, ...]:
        """Warnings about spaces that several accounts with the same access key poll."""
        return self._shared_space_warnings

    @property
    def first_account_with_key(self) -> Mapping[str, str]:
        """Map each account to the first account with the same access key. This can be the account itself."""
        first: dict[str, str] = {}
        names = (account.name for account in self.accounts)
        return {name: first.setdefault(self._key_digests.get(name, name), name) for name in names}

    def with_key_digests(
        self, digests: Mapping[str, str], shared_space_warnings: Iterable[str], temporary: Set[str] = frozenset()
    ) -> Self:
        """Return a copy with the digest of each account's access key, the warnings about shared spaces, and the names
        of the accounts with a temporary key.
        """
        copy = self.model_copy()
        copy._key_digests, copy._temporary_keys = digests, temporary
        copy._shared_space_warnings = tuple(shared_space_warnings)
        return copy

    @property
    def spaces(self) -> dict[tuple[str, str], Space]:
        """The polled spaces, by account name and space id."""
        return {(account.name, space.id): space for account in self.accounts for space in account.polled_spaces}

    @property
    def identities(self) -> dict[str, str]:
        """Map each account to the origin of its values: source, identity and key digest. Temporary keys are not part of
        the origin, because they change within hours."""
        digests = {name: digest for name, digest in self._key_digests.items() if name not in self._temporary_keys}
        return {a.name: f"{a.source} {a.identity} {digests.get(a.name, '')}".rstrip() for a in self.accounts}

    @property
    def limits(self) -> dict[str, float]:
        """The messaging limit of each tier: the limits of this version, with those of the configuration."""
        return {**MESSAGING_LIMITS, **self.messaging_limits}


def settings_of(default: type[Account], *others: type[Account]) -> type[Settings]:
    """Return the schema of the configuration file. The key `source` of an account selects the account type."""
    types = {account_type.model_fields["source"].default: account_type for account_type in (default, *others)}
    tagged = tuple(Annotated[account_type, Tag(name)] for name, account_type in types.items())
    discriminator = Discriminator(
        lambda entry: _source_of(entry) or default.model_fields["source"].default,
        custom_error_type="unknown_source",
        custom_error_message=f"an account with one of the sources {', '.join(types)}",
    )
    account: Any = Annotated[Union[tagged], discriminator] if others else default  # noqa: UP007
    accounts_field = Field(min_length=1, description="Accounts to poll, at least one.")
    schema: type[Settings] = create_model(
        "Settings", __base__=Settings, __doc__=Settings.__doc__, accounts=(list[account], accounts_field)
    )
    return schema


def _source_of(entry: object) -> object:
    return entry.get("source") if isinstance(entry, dict) else getattr(entry, "source", None)
