"""Generates docs/configuration.md from the schemas of the files, the environment variables and the command line."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from docs.tables import code, table
from exporter import sources
from exporter.cli import main
from exporter.sources.cams.credentials import variable_name
from exporter.web.web_config import WebConfig

_TOP = """\
# Configuration

This page lists all keys of the two configuration files, all environment variables and all flags. It is for engineers
who install or operate the exporter. `make generate` writes it from the code.

- Start with a copy of [config/exporter.example.yml](../config/exporter.example.yml). It contains all keys.
- `chatapp-exporter check --config.file exporter.yml` validates the file and prints the poll schedule.
- `chatapp-exporter schema` prints a JSON Schema for editors.
- Without `--config.file`, one account named `default` is polled for its own phone numbers, with the access key from the
  [environment](#environment).

## Configuration file

The file of `--config.file` is YAML or JSON.

- An unknown key is an error. An empty value is an error if the key requires a value. The value `null` or `~` means
  that the key is not set.
- A duration has the format of Prometheus: `30s`, `5m`, `1h30m`, `1d`.
- File names are relative to the directory of the configuration file.
- Ids, account names and label values must not contain invisible characters, such as a no-break space (U+00A0) or a
  zero width space (U+200B).
- A merge key (`<<: *anchor`) adds the keys of another map.
- With the flag `--config.expand-environment-variables`, `${NAME}` in a value is replaced with the environment variable
  NAME. Write `$${NAME}` for a literal `${NAME}`. A variable that is not set is an error. Without the flag, a value that
  is only a placeholder is an error. In a list or map on one line, quote the placeholder: `{id: "${SPACE}"}`.

- The API allows 10 queries per second per access key, and all programs that use the key share this limit. The total of
  `qps` of accounts with the same access key must not exceed 10.
- If an account sets none of `spaces`, `space_files` and `discover`, its own numbers are polled. If a discovered space
  is also configured, its configured name, labels and isv_code are used.
- If an account sets no part of an access key and no `credentials`, the key is read from the
  [environment](#environment). Files with a key are read for each request. `credentials: default` requires
  `requirements-credentials.lock` ([installation](installation.md#ram-roles)).
- A change of a space file reloads the configuration. A file that matches several patterns is read once.

In the tables, – means that an optional key has no default.
"""
_WEB = """\
## Web configuration

The file of `--web.config.file` configures TLS and basic auth of the exporter's HTTP server, in the format of the
Prometheus exporter-toolkit. File names are relative to the directory of this file. Keys of the toolkit that are not
listed here are errors. See also
[operations](operations.md#tls-and-basic-auth).
"""
_ENVIRONMENT = """\
## Environment

The values are checked at startup, by `check` and at a reload. Errors do not show the value of a variable.

"""
_VARIABLES = {
    variable_name("access_key_id"): "Access key ID of accounts that set no part of an access key.",
    variable_name("access_key_secret"): "Access key secret of these accounts.",
    variable_name("security_token"): "Security token of these accounts, for a temporary key (STS).",
    "HTTPS_PROXY, ALL_PROXY": "`http://` or `https://` URL of the proxy for the API, for example"
    " `http://user:p%23ss@proxy.example:8080`. Reserved characters in user and password must be percent-encoded. SOCKS"
    " is not supported. Not used for loopback endpoints.",
    "NO_PROXY": "Comma-separated hosts that are accessed without a proxy: `*`, domains with their subdomains"
    " (`example.com`, `.example.com`, `*.example.com`), IP addresses and networks (`10.0.0.1`, `10.0.0.0/8`, `::1`)."
    " Each entry can have a port (`example.com:443`, `[::1]:443`). Invalid entries are ignored.",
    "SSL_CERT_FILE": "File with trusted CA certificates in PEM. Default: the certificates of Python's certifi.",
    "SSL_CERT_DIR": "Directory of trusted CA certificates, prepared with `openssl rehash`. Not used if SSL_CERT_FILE is"
    " set.",
    "SSLKEYLOGFILE": "File to which TLS session keys of API connections are appended, for debugging.",
}
_ENVIRONMENT_NOTES = """
`HTTPS_PROXY` has precedence over `ALL_PROXY`. A proxy variable in lower case has precedence over the same variable in
upper case, even if its value is empty. With `credentials: default`, Alibaba Cloud's default credential chain reads
[more variables](https://github.com/aliyun/credentials-python#credential-provider-chain).
"""
_FLAGS = """\
## Flags

Without a command, `serve` runs. `chatapp-exporter COMMAND --help` explains a command with examples. See also
[commands](usage.md#commands).

"""
_PLACES = {
    "Settings": "Top level",
    "CamsAccount": "`accounts[]`",
    "CamsSpace": "`accounts[].spaces[]`, and each entry of a space file",
    "WebConfig": "Top level of the web configuration",
    "TlsServerConfig": "`tls_server_config`",
}
"""The place of each model in its file."""
_EXAMPLES = {
    "Settings.accounts": "[{name: acme}]",
    "Settings.messaging_limits": "{TIER_5M: 5000000}",
    "Settings.max_age": "2h",
    "Settings.state_file": "state.db",
    "CamsAccount.name": "acme",
    "CamsAccount.source": "cams",
    "CamsAccount.qps": "2.5",
    "CamsAccount.poll_interval": "10m",
    "CamsAccount.spaces": '[{id: "29348393884000"}]',
    "CamsAccount.space_files": "[spaces/*.yml]",
    "CamsAccount.discover": "true",
    "CamsAccount.endpoint": "https://cams.ap-southeast-1.aliyuncs.com",
    "CamsAccount.access_key_id": "LTAI0123456789",
    "CamsAccount.access_key_id_file": "/run/secrets/acme-id",
    "CamsAccount.access_key_secret": '"${ACME_SECRET}"',
    "CamsAccount.access_key_secret_file": "/run/secrets/acme-secret",
    "CamsAccount.security_token_file": "/run/secrets/acme-token",
    "CamsAccount.credentials": "default",
    "CamsAccount.isv_code": '"1234567890"',
    "CamsSpace.id": '"29348393884000"',
    "CamsSpace.name": "Contoso",
    "CamsSpace.labels": "{team: emea}",
    "CamsSpace.isv_code": '"1234567890"',
    "WebConfig.tls_server_config": "{cert_file: tls.crt, key_file: tls.key}",
    "WebConfig.basic_auth_users": "{prometheus: $2y$10$…}",
    "TlsServerConfig.cert_file": "tls.crt",
    "TlsServerConfig.key_file": "tls.key",
    "TlsServerConfig.client_ca_file": "ca.crt",
    "TlsServerConfig.client_auth_type": "RequireAndVerifyClientCert",
    "TlsServerConfig.min_version": "TLS13",
}
"""An example value of each key."""


def configuration_page() -> str:
    """Return the text of docs/configuration.md."""
    files = "\n".join(_sections(sources.Settings.model_json_schema()))
    web = "\n".join(_sections(WebConfig.model_json_schema()))
    variables = table("variable | meaning", ((_codes(name), text) for name, text in _VARIABLES.items()))
    flags = table("flag | commands | default | meaning", _flag_rows())
    return f"{_TOP}\n{files}\n{_WEB}\n{web}\n{_ENVIRONMENT}{variables}{_ENVIRONMENT_NOTES}\n{_FLAGS}{flags}"


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield one section per model, the top level first."""
    for model in (schema, *schema["$defs"].values()):
        keys = table("key | type | default (or required) | example | meaning", _rows(model))
        yield f"### {_PLACES[model['title']]}\n\n{model['description']}\n\n{keys}"


def _rows(model: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, key in model["properties"].items():
        default = "**required**" if name in model.get("required", ()) else _default(key)
        example = code(_EXAMPLES[f"{model['title']}.{name}"])
        yield code(name), _type(key), default, example, key["description"]


def _default(key: Mapping[str, Any]) -> str:
    default = key.get("default")
    if default in (None, {}, ""):
        return "–"
    if default is False:
        return code("false")
    return code(f"{default:g}" if isinstance(default, float) else default)


def _type(key: Mapping[str, Any]) -> str:
    """Return the type in words, with the range of a number."""
    if "anyOf" in key:
        return _type(next(option for option in key["anyOf"] if option.get("type") != "null"))
    if "$ref" in key:
        return "map, see below"
    if choices := key.get("enum", [key["const"]] if "const" in key else []):
        return " or ".join(map(code, choices))
    if key["type"] == "array":
        return f"list of {_plural_type(key['items'])}"
    if key["type"] == "object":
        return f"map of names to {_plural_type(key['additionalProperties'])}"
    return _scalar_type(key)


def _plural_type(key: Mapping[str, Any]) -> str:
    return re.sub("^(map|string|number)", r"\1s", _type(key))


def _scalar_type(key: Mapping[str, Any]) -> str:
    if "pattern" in key:
        return "duration"
    if "exclusiveMinimum" in key:
        return f"number above {key['exclusiveMinimum']:g}"
    if "minimum" in key:
        return f"number, {key['minimum']:g} to {key['maximum']:g}"
    return "boolean" if key["type"] == "boolean" else "string"


def _flag_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield a row per flag. If a later command has another default, the row names this command."""
    flags: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, command in main.commands.items():
        for option in command.params:
            if isinstance(option, click.Option):
                flags.setdefault(code(option.opts[0]), {}).setdefault(_default_and_help(option), []).append(name)
    for flag, variants in flags.items():
        (default, meaning), *others = variants
        for other_default, other_meaning in others:
            commands = _codes(", ".join(variants[other_default, other_meaning]))
            default, meaning = f"{default}; {commands}: {other_default}", f"{meaning} {commands}: {other_meaning}"
        yield flag, _codes(", ".join(name for names in variants.values() for name in names)), default, meaning


def _default_and_help(option: click.Option) -> tuple[str, str]:
    defaults = option.default if isinstance(option.default, list) else [option.default]
    default = ", ".join(code(text) for text in defaults if isinstance(text, str))
    text, _, default_text = (option.help or "").rstrip("]").partition(" [default: ")
    choices = f"One of {_codes(', '.join(option.type.choices))}." if isinstance(option.type, click.Choice) else ""
    return default or default_text or "–", " ".join(filter(None, (text, choices)))


def _codes(names: str) -> str:
    return ", ".join(map(code, names.split(", ")))
