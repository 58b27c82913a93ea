"""Types of the values in configuration files. If a value is invalid, the ValueError describes the expected value."""

import glob
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from unicodedata import category
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)

_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?")
_DURATION_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_MAX_DURATION_SECONDS = 3650 * 86_400.0
_MAX_DURATION_LENGTH = 40
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_INVISIBLE_CATEGORIES = frozenset(("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"))
"""Unicode categories: control, format, private use, surrogate, separators."""
_JOINERS = "\u200c\u200d"
_INVISIBLE_LETTERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible characters of other categories: fillers and variation selectors."""
_ORIGIN = re.compile(r"https?://([a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*|\[(?P<six>[0-9a-fA-F:.]+)\])(:[0-9]{1,5})?")


def parse_duration(text: object) -> float:
    """Return the seconds of a duration in Prometheus notation: 30s, 5m, 1h30m, 1d, 500ms.

    Raises:
        ValueError: the text is not a duration, or the duration is zero or longer than 3650 days.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) and len(text) <= _MAX_DURATION_LENGTH else None
    if not match or not text:
        raise ValueError("a duration such as 30s, 5m or 1h30m")
    seconds = sum(int(n) * unit for n, unit in zip(match.groups("0"), _DURATION_UNITS, strict=True))
    if not seconds:
        raise ValueError("a duration longer than 0s")
    if seconds > _MAX_DURATION_SECONDS:
        raise ValueError("a duration of at most 3650d")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the duration in Prometheus notation with the largest units, such as 1d1h, rounded to milliseconds. Zero is
    0s, which `parse_duration` rejects."""
    parts, remainder = [], round(seconds * 1000)
    for name, unit in zip(("d", "h", "m", "s", "ms"), _DURATION_UNITS, strict=True):
        count, remainder = divmod(remainder, round(unit * 1000))
        parts.append(f"{count}{name}" if count else "")
    return "".join(parts) or "0s"


def is_loopback(endpoint: str) -> bool:
    """Whether the endpoint is a loopback address."""
    try:
        host = urlsplit(endpoint).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_origin(text: str) -> bool:
    """Whether the text is only a scheme, a host and an optional port."""
    match = _ORIGIN.fullmatch(text)
    try:
        return match is not None and urlsplit(text).port != 0 and bool(ip_address(match["six"] or "::1"))
    except ValueError:
        return False


def _endpoint(text: str) -> str:
    text = text.strip().removesuffix("/")
    _, _, rest = text.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise ValueError("a URL without user name and password")
    if authority != rest:
        raise ValueError("a URL without path, query and fragment")
    if not is_origin(text):
        raise ValueError("a URL such as https://cams.ap-southeast-1.aliyuncs.com")
    if not text.startswith("https://") and not is_loopback(text):
        raise ValueError("a URL with https:// (http:// is allowed only for a loopback address)")
    return text


def _non_empty(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("text without NUL characters" if "\0" in text else "text")
    return text.strip()


def _visible_id(text: str) -> str:
    """Reject all invisible characters, because two different ids must not look the same."""

    def is_invisible(character: str) -> bool:
        return category(character) in _INVISIBLE_CATEGORIES or bool(_INVISIBLE_LETTERS.match(character))

    return _require_visible(text, is_invisible)


def _visible_label(text: str) -> str:
    """Reject invisible characters except joiners, fillers and variation selectors: some scripts and emoji need them."""

    def is_invisible(character: str) -> bool:
        return category(character) in _INVISIBLE_CATEGORIES and character not in _JOINERS

    return _require_visible(text, is_invisible)


def _require_visible(text: str, is_invisible: Callable[[str], bool]) -> str:
    if text.isascii() and text.isprintable():  # fast path for most texts
        return text
    for character in text.strip(" \t\r\n"):
        if character != " " and is_invisible(character):
            raise ValueError(f"text without the invisible character U+{ord(character):04X}")
    return text


def _non_empty_secret(secret: SecretStr) -> SecretStr:
    return SecretStr(_non_empty(secret.get_secret_value()))


def _label_name(name: str) -> str:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__") or name in ("account", "space", "name"):
        raise ValueError("a label name: letters, digits and _, no digit or __ at the start, not account, space or name")
    return name


def _resolve_file(path: str, info: ValidationInfo) -> str:
    return str(Path(_base_directory(info), path))


def _resolve_pattern(pattern: str, info: ValidationInfo) -> str:
    return str(Path(glob.escape(_base_directory(info)), pattern))


def _base_directory(info: ValidationInfo) -> str:
    return str((info.context or {}).get("directory", ""))


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}),
]
Scalar = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]
"""Text. The JSON Schema also allows numbers and booleans, because editors read an unquoted 5 as a number."""
Text = Annotated[Scalar, AfterValidator(_non_empty)]
Id = Annotated[Scalar, AfterValidator(_visible_id), AfterValidator(_non_empty)]
"""Text that is compared character by character. Invisible characters are not allowed."""
LabelValue = Annotated[Scalar, AfterValidator(_visible_label)]
LabelName = Annotated[str, AfterValidator(_label_name)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
FileName = Annotated[Text, AfterValidator(_resolve_file)]
"""A file name, relative to the directory of the configuration file."""
FilePattern = Annotated[Text, AfterValidator(_resolve_pattern)]
"""A `glob` pattern, relative to the directory of the configuration file."""
Secret = Annotated[
    SecretStr,
    AfterValidator(_non_empty_secret),
    PlainSerializer(lambda _: "<secret>", return_type=str, when_used="json"),
]


class Strict(BaseModel):
    """Base class of the file schemas: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
