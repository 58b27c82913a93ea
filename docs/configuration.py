"""The page about configuration: every key of the configuration file and of the web configuration, from their schemas;
every environment variable; and every flag, from the command line."""

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

Written from the code by `make generate`.

Without a file, one account called `default` is polled for its own numbers, with the key from the environment. With
`--config.file exporter.yml` the file says everything.
[config/exporter.example.yml](../config/exporter.example.yml) shows every key at its place;
`chatapp-exporter check --config.file exporter.yml` says what is wrong with yours, all of it at once, or what polling it
will mean; `chatapp-exporter schema` prints a JSON Schema for editors.

- The file is YAML; JSON is read as YAML. A key that is not listed here is an error. `null` and `~` mean that the key
  is not set; a key with no value at all is an error if it needs one. A merge key (`<<: *anchor`) adds the keys of
  another mapping.
- An id, a name of an account or a label value with an invisible character, such as a no-break space (U+00A0) or a zero
  width space (U+200B), is an error that names the character.
- A **duration** is written as Prometheus writes it: `30s`, `5m`, `1h30m`, `1d`.
- The name of a file is relative to the directory of the file that names it.
- A key without a default, marked –, may be left out, unless it is **needed**.
- With `--config.expand-environment-variables`, `${NAME}` in a value of this file or of a space file is replaced by the
  environment variable NAME, and `$${NAME}` is a literal `${NAME}`. A variable that is not set is an error, and without
  the flag a value that is a placeholder is one. In a list or mapping in one line, a placeholder needs quotes:
  `{id: "${SPACE}"}`.

## Configuration file
"""
_WEB = """\
## Web configuration

The file of `--web.config.file`, in the format of Prometheus' exporter-toolkit: TLS and logins for whoever asks the
exporter. Keys of the toolkit that are not listed are refused. More in [operations](operations.md#tls-and-basic-auth).
"""
_ENVIRONMENT = """\
## Environment

"""
_VARIABLES = {
    variable_name("access_key_id"): "the access key's id, for accounts that name no part of a key",
    variable_name("access_key_secret"): "its secret, for the same accounts",
    variable_name("security_token"): "the token of a temporary key (STS), for the same accounts",
    "HTTPS_PROXY, ALL_PROXY": "the proxy for the API: `http://` or `https://`, a host and a port; reserved characters"
    " of a user and password are percent-encoded; SOCKS is not supported. No proxy is used for an endpoint on loopback",
    "NO_PROXY": "hosts without a proxy, separated by commas: `*`, `example.com` (with its subdomains), `.example.com`,"
    " `*.example.com`, `10.0.0.1`, `::1`, `10.0.0.0/8`, `fd00::/8`, each also with a port (`example.com:443`,"
    " `[::1]:443`); other entries are ignored",
    "SSL_CERT_FILE": "certificate authorities to trust, in PEM, instead of those that come with Python's certifi",
    "SSL_CERT_DIR": "a directory of trusted certificates, prepared with `openssl rehash`; used if SSL_CERT_FILE is not"
    " set",
    "SSLKEYLOGFILE": "a file to which the keys of TLS connections to the API are appended, for analysis",
}
_CHAIN = """
If a proxy variable is set in lower and in upper case, the one in lower case is used. `PROMETHEUS_MULTIPROC_DIR`
is ignored. A variable that cannot be used is an error at the start, in `check` and at a reload; its value is not shown.

With `credentials: default` the default chain of Alibaba Cloud reads more of them:
[its documentation](https://github.com/aliyun/credentials-python#credential-provider-chain).
"""
_FLAGS = """\
## Flags

`chatapp-exporter COMMAND --help` says the same. Without a command it serves.
"""
_PLACES = {
    "Settings": "At the top",
    "CamsAccount": "`accounts[]`",
    "CamsSpace": "`accounts[].spaces[]`, and each entry of a space file",
    "WebConfig": "At the top of the web configuration",
    "TlsServerConfig": "`tls_server_config`",
}
"""Where the keys of a model stand."""


def configuration_page() -> str:
    """The whole page."""
    files = "\n".join(_sections(sources.Settings.model_json_schema()))
    web = "\n".join(_sections(WebConfig.model_json_schema()))
    variables = table("variable | meaning", ((_codes(name), text) for name, text in _VARIABLES.items()))
    flags = "\n".join(_commands())
    return f"{_TOP}\n{files}\n{_WEB}\n{web}\n{_ENVIRONMENT}{variables}{_CHAIN}\n{_FLAGS}\n{flags}"


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    """The top first, then what stands in it."""
    for model in (schema, *schema["$defs"].values()):
        rows = [_row(name, key, name in model.get("required", ())) for name, key in model["properties"].items()]
        keys = table("key | type | default | meaning", rows)
        yield f"### {_PLACES[model['title']]}\n\n{model['description']}\n\n{keys}"


def _row(name: str, key: Mapping[str, Any], needed: bool) -> tuple[str, str, str, str]:
    return code(name), _type(key), "**needed**" if needed else _default(key), key.get("description", "")


def _default(key: Mapping[str, Any]) -> str:
    default = key.get("default")
    if default in (None, {}, ""):
        return "–"
    if default is False:
        return code("false")
    return code(f"{default:g}" if isinstance(default, float) else default)


def _type(key: Mapping[str, Any]) -> str:
    """In words, with the range where there is one."""
    if "anyOf" in key:
        return _type(next(one for one in key["anyOf"] if one.get("type") != "null"))
    if "$ref" in key:
        return "a mapping, below"
    if choices := key.get("enum", [key["const"]] if "const" in key else []):
        return " or ".join(map(code, choices))
    if key["type"] == "array":
        return f"a list of {_plural(key['items'])}"
    if key["type"] == "object":
        return f"a mapping of names to {_plural(key['additionalProperties'])}"
    return _scalar(key)


def _plural(key: Mapping[str, Any]) -> str:
    return _type(key).replace("a mapping", "mappings").replace("text", "texts").replace("number", "numbers")


def _scalar(key: Mapping[str, Any]) -> str:
    if "pattern" in key:
        return "duration"
    if "exclusiveMinimum" in key:
        return f"number above {key['exclusiveMinimum']:g}"
    if "minimum" in key:
        return f"number, {key['minimum']:g} to {key['maximum']:g}"
    return "true or false" if key["type"] == "boolean" else "text"


def _commands() -> Iterator[str]:
    for name, command in main.commands.items():
        rows = [row for option in command.params if (row := _flag(option))]
        flags = table("flag | default | meaning", rows) if rows else "No flags.\n"
        yield f"### chatapp-exporter {name}\n\n{_paragraph(command.help)}\n\n{flags}"


def _flag(option: click.Parameter) -> tuple[str, str, str] | None:
    if not isinstance(option, click.Option):
        return None
    defaults = option.default if isinstance(option.default, list) else [option.default]
    default = ", ".join(code(text) for text in defaults if isinstance(text, str)) or "–"
    choices = _codes(", ".join(option.type.choices)) if isinstance(option.type, click.Choice) else ""
    return code(option.opts[0]), default, " ".join(filter(None, (option.help, choices)))


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _codes(names: str) -> str:
    return ", ".join(map(code, names.split(", ")))
