"""The configuration keys of an Alibaba Cloud account."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import dataclass

from exporter.config.fields import Endpoint, FileName, Id, Secret, Text, format_duration, is_loopback
from exporter.config.settings import Account, ConfiguredSpace
from exporter.source import Source, SourceContext, SourceError
from exporter.sources.cams import default_chain
from exporter.sources.cams.credentials import AccessKey
from exporter.sources.cams.source import CamsSource

MIN_INTERVAL_SECONDS = 30.0
_KEY_SETTINGS = (
    "access_key_id",
    "access_key_id_file",
    "access_key_secret",
    "access_key_secret_file",
    "security_token_file",
)


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class CamsSpace(ConfiguredSpace):
    """A customer space."""

    isv_code: Id | None = Field(
        default=None, description="IsvCode of the space, instead of the IsvCode of the account."
    )


class CamsAccount(Account):
    """An entry under `accounts`: an endpoint, an access key and a budget."""

    source: Literal["cams"] = Field("cams", description="Type of the API: Alibaba Cloud CAMS.")
    endpoint: Endpoint = Field(
        "https://cams.ap-southeast-1.aliyuncs.com",
        description="URL of the API: https:// (http:// only for loopback), a host and an optional port.",
    )
    access_key_id: Annotated[Text, PlainSerializer(lambda _: "<secret>", when_used="json")] | None = Field(
        None,
        repr=False,
        description="ID of the access key.",
    )
    access_key_id_file: FileName | None = Field(None, description="File with the ID of the access key.")
    access_key_secret: Secret | None = Field(
        None,
        description="Secret of the access key.",
    )
    access_key_secret_file: FileName | None = Field(None, description="File with the secret of the access key.")
    security_token_file: FileName | None = Field(
        None,
        description="File with the security token of a temporary key (STS).",
    )
    credentials: Literal["default"] | None = Field(
        None,
        description="`default`: use Alibaba Cloud's default credential chain (RAM role, OIDC, profile) instead of an"
        " access key.",
    )
    isv_code: Id | None = Field(None, description="IsvCode of all spaces of the account, if the API requires one.")
    spaces: list[CamsSpace] | None = Field(None, description=Account.model_fields["spaces"].description)

    @classmethod
    def space_type(cls) -> type[CamsSpace]:
        return CamsSpace

    @property
    def identity(self) -> str:
        return self.endpoint

    @property
    def is_remote(self) -> bool:
        return not is_loopback(self.endpoint)

    def rate_limit_id(self, environ: Mapping[str, str]) -> str | None:
        """Return the ID of the access key, because the rate limit applies to the key. The endpoint is ignored: the API
        has one region, so other addresses, also on loopback, can have the same rate limit. Accounts with the default
        chain share one key. The chain uses the key from the environment first."""
        return self.access_key(environ).read_id() or self.credentials

    def has_temporary_key(self, environ: Mapping[str, str]) -> bool:
        return self.credentials is not None or self.access_key(environ).is_temporary

    def problems(self, environ: Mapping[str, str]) -> Iterator[SourceError]:
        if self.poll_interval < MIN_INTERVAL_SECONDS and self.is_remote:
            found = format_duration(self.poll_interval)
            yield SourceError("poll_interval", f"expected at least 30s, found {found!r}")
        if self.credentials is None:
            yield from self.access_key(environ).problems()
            return
        if any(getattr(self, key) is not None for key in _KEY_SETTINGS):
            yield SourceError("credentials", "expected either credentials or an access key, found both")
        if not default_chain.is_installed():
            install = "pip install -r requirements-credentials.lock"
            yield SourceError("credentials", f"expected the extra `credentials` to be installed; run `{install}`")

    def open(self, context: SourceContext) -> Source:
        key = default_chain.DefaultChain() if self.credentials else self.access_key(context.environ)
        if isinstance(key, AccessKey):
            key.read()
        return CamsSource(context.http(self.endpoint), self.endpoint, key, context.clock, self.isv_code)

    def access_key(self, environ: Mapping[str, str]) -> AccessKey:
        """Return the access key from the configuration or from the environment."""
        secret = self.access_key_secret
        literals = {
            "access_key_id": self.access_key_id,
            "access_key_secret": secret.get_secret_value() if secret else None,
        }
        files = {
            "access_key_id": self.access_key_id_file,
            "access_key_secret": self.access_key_secret_file,
            "security_token": self.security_token_file,
        }
        return AccessKey(self.name, literals, files, environ)
