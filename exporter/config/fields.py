"""Types of the values in a configuration file. A validator's error says what was expected."""

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

EXPECTED_DURATION = "a duration such as 30s, 5m or 1h30m"
_DURATION = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?")
_DURATION_UNITS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)
_MAX_DURATION_SECONDS = 3650 * 86_400.0
_MAX_DURATION_TEXT = 40
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_INVISIBLE = frozenset(("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"))
"""Categories of Unicode: control, format, private use, surrogate, separators."""
_JOINERS = "\u200c\u200d"
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Characters of other categories that are invisible: fillers and variation selectors."""
_ORIGIN = re.compile(r"https?://([a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*|\[(?P<six>[0-9a-fA-F:.]+)\])(:[0-9]{1,5})?")


def parse_duration(text: object) -> float:
    """Seconds of a duration in Prometheus' notation: 30s, 5m, 1h30m, 1d, 500ms.

    Raises:
        ValueError: it is no duration, it is zero, or it is longer than ten years.
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) and len(text) <= _MAX_DURATION_TEXT else None
    seconds = sum(int(n) * unit for n, unit in zip(found.groups("0"), _DURATION_UNITS, strict=True)) if found else 0.0
    if not 0 < seconds <= _MAX_DURATION_SECONDS:
        raise ValueError(EXPECTED_DURATION)
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest notation that `parse_duration` reads, to the millisecond."""
    parts, left = [], round(seconds * 1000)
    for name, unit in zip(("d", "h", "m", "s", "ms"), _DURATION_UNITS, strict=True):
        count, left = divmod(left, round(unit * 1000))
        parts.append(f"{count}{name}" if count else "")
    return "".join(parts) or "0s"


def is_loopback(endpoint: str) -> bool:
    """Whether the endpoint is on this machine, where the API's limits do not apply."""
    try:
        host = urlsplit(endpoint).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_origin(text: str) -> bool:
    """Whether it is a scheme, a host and an optional port, and nothing more."""
    found = _ORIGIN.fullmatch(text)
    try:
        return found is not None and urlsplit(text).port != 0 and bool(ip_address(found["six"] or "::1"))
    except ValueError:
        return False


def _endpoint(text: str) -> str:
    text = text.strip().removesuffix("/")
    if not is_origin(text) or not (text.startswith("https://") or is_loopback(text)):
        raise ValueError("an address such as https://cams.ap-southeast-1.aliyuncs.com (http:// for loopback only)")
    return text


def _filled(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("text without NUL characters" if "\0" in text else "text")
    return text.strip()


def _visible_id(text: str) -> str:
    """Ids are compared character by character: a difference that cannot be seen is hard to find."""
    return _visible(text, lambda character: category(character) in _INVISIBLE or bool(_BLANK.match(character)))


def _visible_label(text: str) -> str:
    """Label values are compared too, but can be words: some scripts and emoji need joiners."""
    return _visible(text, lambda character: category(character) in _INVISIBLE and character not in _JOINERS)


def _visible(text: str, is_invisible: Callable[[str], bool]) -> str:
    if text.isascii() and text.isprintable():  # nearly all
        return text
    for character in text.strip(" \t\r\n"):
        if character != " " and is_invisible(character):
            raise ValueError(f"text without the invisible character U+{ord(character):04X}")
    return text


def _filled_secret(secret: SecretStr) -> SecretStr:
    return SecretStr(_filled(secret.get_secret_value()))


def _label_name(name: str) -> str:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__") or name in ("account", "space", "name"):
        raise ValueError("a label name (letters, digits and _) other than account, space and name")
    return name


def _in_directory(path: str, info: ValidationInfo) -> str:
    return str(Path(_directory(info), path))


def _pattern_in_directory(pattern: str, info: ValidationInfo) -> str:
    return str(Path(glob.escape(_directory(info)), pattern))


def _directory(info: ValidationInfo) -> str:
    return str((info.context or {}).get("directory", ""))


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}),
]
Scalar = Annotated[str, WithJsonSchema({"type": ["string", "number", "boolean"]})]
"""Text, read as it is written; editors read an unquoted 5 as a number."""
Text = Annotated[Scalar, AfterValidator(_filled)]
Id = Annotated[Scalar, AfterValidator(_visible_id), AfterValidator(_filled)]
"""Text that is the same as another only if each character is."""
LabelValue = Annotated[Scalar, AfterValidator(_visible_label)]
LabelName = Annotated[str, AfterValidator(_label_name)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
FileName = Annotated[Text, AfterValidator(_in_directory)]
"""A file, relative to the directory of the file that names it."""
FilePattern = Annotated[Text, AfterValidator(_pattern_in_directory)]
"""A pattern for `glob`, relative to that directory."""
Secret = Annotated[
    SecretStr,
    AfterValidator(_filled_secret),
    PlainSerializer(lambda _: "<secret>", return_type=str, when_used="json"),
]


class Strict(BaseModel):
    """Base of every file's shape: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
