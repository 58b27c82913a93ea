"""The shape of the configuration file: every key, its type, its range and its default. Reads no file.

A validator's error says what was expected, as in "a duration such as 30s, 5m or 1h30m"; `validation` adds the rest.
"""

import math
import re
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.dataclasses import dataclass

from exporter.model import MESSAGING_LIMITS

API_LIMIT_QPS = 10.0
"""Queries a second that the API allows to all that uses an account together (the operation's page)."""
LEAST_QPS = 0.001
"""One query in a quarter of an hour; far less, and times leave the range that dates have."""
SHORTEST_INTERVAL_SECONDS = 30.0
OWN_NUMBERS = "own"
"""The label `space` where an account's own numbers are polled."""

_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?")
_LONGEST_DURATION_SECONDS = 3650 * 86_400.0
_LONGEST_DURATION_TEXT = 40
A_DURATION = "a duration such as 30s, 5m or 1h30m"
_DURATION_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ORIGIN = re.compile(r"https?://([a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*|\[(?P<six>[0-9a-fA-F:.]+)\])(:[0-9]{1,5})?")


def parse_duration(text: object) -> float:
    """Seconds of a duration as Prometheus writes it: 30s, 5m, 1h30m, 1d, 500ms.

    Raises:
        ValueError: it is none, it is zero, or it is longer than ten years.
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) and len(text) <= _LONGEST_DURATION_TEXT else None
    seconds = sum(int(n) * unit for n, unit in zip(found.groups("0"), _DURATION_UNITS, strict=True)) if found else 0.0
    if not 0 < seconds <= _LONGEST_DURATION_SECONDS:
        raise ValueError(A_DURATION)
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest spelling that `parse_duration` reads back, to the millisecond."""
    parts, left = [], round(seconds * 1000)
    for name, unit in zip(("d", "h", "m", "s", "ms"), _DURATION_UNITS, strict=True):
        count, left = divmod(left, round(unit * 1000))
        parts.append(f"{count}{name}" if count else "")
    return "".join(parts) or "0s"


def is_loopback(endpoint: str) -> bool:
    """Whether the endpoint is on this machine, where the API's limits don't apply."""
    try:
        host = urlsplit(endpoint).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint(text: str) -> str:
    text = text.strip().removesuffix("/")
    if not _is_origin(text) or not (text.startswith("https://") or is_loopback(text)):
        raise ValueError("an address such as https://cams.ap-southeast-1.aliyuncs.com (http:// for loopback only)")
    return text


def _is_origin(text: str) -> bool:
    """Whether it is a scheme, a host and perhaps a port, and nothing more."""
    found = _ORIGIN.fullmatch(text)
    try:
        return found is not None and urlsplit(text).port != 0 and bool(ip_address(found["six"] or "::1"))
    except ValueError:
        return False


def _filled(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("text")
    return text.strip()


def _filled_secret(secret: SecretStr) -> SecretStr:
    return SecretStr(_filled(secret.get_secret_value()))


def _label_name(name: str) -> str:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__") or name in ("account", "space", "name"):
        raise ValueError("a label name (letters, digits and _) other than account, space and name")
    return name


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}),
]
Scalar = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]
"""Text, which `document` reads as it is written; editors take what has no quotes for a number or a boolean."""
Text = Annotated[Scalar, AfterValidator(_filled)]
LabelName = Annotated[str, AfterValidator(_label_name)]


class Strict(BaseModel):
    """Base of every file's shape: a key that is unknown is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Space:
    """A customer space."""

    # there are thousands, and each would hold 416 bytes more as a model
    id: Text = Field(description="its CustSpaceId, shown as the label `space`")
    name: Scalar = Field(default="", description="a name for people, shown in `chatapp_space_info`")
    labels: dict[LabelName, Scalar] = Field(
        default_factory=dict,
        json_schema_extra={"default": {}},
        description="further labels of `chatapp_space_info`; none is called account, space or name",
    )
    isv_code: Text | None = Field(default=None, description="its IsvCode, where it is another than the account's")


class Account(Strict):
    """An Alibaba Cloud account: an endpoint, a credential and one budget."""

    name: Text = Field(description="a name of its own, shown as the label `account`")
    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "https://cams.ap-southeast-1.aliyuncs.com",
        description="where the API is asked: https://, a host and perhaps a port; http:// only on this machine",
    )
    access_key_id: Text | None = Field(
        None,
        repr=False,
        description="the access key's id; or `access_key_id_file`; with neither, ALIBABA_CLOUD_ACCESS_KEY_ID counts",
    )
    access_key_id_file: Text | None = Field(
        None, description="a file with the access key's id; read again when it changes"
    )
    access_key_secret: Annotated[SecretStr, AfterValidator(_filled_secret)] | None = Field(
        None,
        description="the access key's secret; or `access_key_secret_file`; with neither,"
        " ALIBABA_CLOUD_ACCESS_KEY_SECRET counts",
    )
    access_key_secret_file: Text | None = Field(
        None, description="a file with the access key's secret; read again when it changes"
    )
    security_token_file: Text | None = Field(
        None,
        description="a file with the token of a temporary key (STS); read again when it changes; without it,"
        " ALIBABA_CLOUD_SECURITY_TOKEN counts",
    )
    credentials: Literal["default"] | None = Field(
        None,
        description="instead of a key: temporary ones from Alibaba Cloud's default chain (RAM roles, OIDC, profiles);"
        " needs the extra `chatapp-exporter[credentials]`",
    )
    isv_code: Text | None = Field(None, description="the IsvCode of all its spaces, where the API wants one")
    qps: float = Field(
        API_LIMIT_QPS / 2,
        ge=LEAST_QPS,
        le=API_LIMIT_QPS,
        description="queries a second that the exporter allows itself, of the 10 that all users of the account share",
    )
    poll_interval: Duration = Field(
        300.0,
        json_schema_extra={"default": "5m"},
        description="how often each space is polled; at least 30s, except against an endpoint on this machine",
    )
    poll_interval_unhealthy: Duration | None = Field(
        None,
        description="how often a space is polled that has a number that is not GREEN and CONNECTED; at least 30s, at"
        " most `poll_interval`; paid from the same `qps`",
    )
    spaces: list[Space] | None = Field(
        None,
        description="the customer spaces, at least one; without `spaces`, `space_files` and `discover`, the account's"
        " own numbers are polled",
    )
    space_files: list[Text] | None = Field(
        None,
        description="files or globs, each file with such a list, in YAML or (`*.json`) JSON; followed without a reload",
    )
    discover: bool = Field(
        False,
        description="whether to poll the spaces too that ListInstance names, asked hourly; what is configured of one"
        " counts",
    )

    @field_validator("poll_interval", "poll_interval_unhealthy")
    @classmethod
    def _not_too_short(cls, seconds: float | None, info: ValidationInfo) -> float | None:
        if seconds and seconds < SHORTEST_INTERVAL_SECONDS and not is_loopback(info.data.get("endpoint", "")):
            raise ValueError("at least 30s")
        return seconds

    @field_validator("poll_interval_unhealthy")
    @classmethod
    def _not_too_long(cls, seconds: float | None, info: ValidationInfo) -> float | None:
        longest = info.data.get("poll_interval", math.inf)
        if seconds and seconds > longest:
            raise ValueError(f"at most poll_interval, which is {format_duration(longest)}")
        return seconds

    @field_validator("spaces", "space_files")
    @classmethod
    def _not_empty(cls, items: list[object] | None) -> list[object] | None:
        if not items:
            raise ValueError("at least one; leave the key out to poll the account's own numbers")
        return items

    @property
    def polls_own_numbers(self) -> bool:
        """Whether no space is configured or discovered, so that the account's own numbers are asked for."""
        return self.spaces is None and self.space_files is None and not self.discover

    @property
    def polled_spaces(self) -> list[Space]:
        """What is polled: the configured spaces, or one that stands for the account's own numbers."""
        return [Space(id=OWN_NUMBERS)] if self.polls_own_numbers else list(self.spaces or ())

    def with_discovered(self, spaces: Iterable[Space]) -> Self:
        """The same with these spaces too, where it discovers any; a configured one stays as it is."""
        if not self.discover:
            return self
        configured = self.spaces or []
        known = {space.id for space in configured}
        return self.model_copy(update={"spaces": [*configured, *(space for space in spaces if space.id not in known)]})


class Settings(Strict):
    """The whole file."""

    accounts: Annotated[list[Account], Field(min_length=1, description="the accounts that are polled, at least one")]
    messaging_limits: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="people per 24 hours, by tier: for tiers that this version has no number for, or another one",
    )
    max_age: Duration = Field(
        3600.0,
        json_schema_extra={"default": "1h"},
        description="how old values may get before they are no longer shown",
    )
    state_file: Text | None = Field(
        None, description="where what is known is kept over a restart, in SQLite; without it, nothing is"
    )

    @field_validator("messaging_limits")
    @classmethod
    def _as_the_api_spells_them(cls, limits: dict[str, float]) -> dict[str, float]:
        return {tier.strip().upper(): limit for tier, limit in limits.items()}

    @property
    def spaces(self) -> dict[tuple[str, str], Space]:
        """What is polled, by account and space."""
        return {(account.name, space.id): space for account in self.accounts for space in account.polled_spaces}

    @property
    def endpoints(self) -> dict[str, str]:
        """Where each account asks."""
        return {account.name: account.endpoint for account in self.accounts}

    @property
    def limits(self) -> dict[str, float]:
        """Every tier that has a number: this version's, and over them the configuration's."""
        return {**MESSAGING_LIMITS, **self.messaging_limits}
