"""Shorten the durations in rule files and Alertmanager configurations, for tests in real time."""

import re

from exporter.config.fields import parse_duration

_UNITS = {"w": 604_800, "d": 86_400}
_DURATION = r"\d+[smhdw]"
_KEYS = "for|keep_firing_for|interval|group_wait|group_interval|repeat_interval"
_PATTERN = re.compile(rf"(?P<before>\[|:(?=\d+[smhdw]\])|\boffset |\b(?:{_KEYS}): )(?P<duration>{_DURATION})\b")


def shortened(text: str, factor: int) -> str:
    """Return the text with the durations in ranges, offsets, keys and terms such as `6 * 3600` divided by `factor`."""

    def divide(match: re.Match[str]) -> str:
        return f"{match['before']}{round(_seconds(match['duration']) * 1000 / factor)}ms"

    return re.sub(r"\b\d+ \* 3600\b", rf"\g<0> / {factor}", _PATTERN.sub(divide, text))


def _seconds(duration: str) -> float:
    number, unit = int(duration[:-1]), duration[-1]
    return number * _UNITS[unit] if unit in _UNITS else parse_duration(duration)
