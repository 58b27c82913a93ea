"""Rules and Alertmanager files in which every duration is shorter by one factor, for tests in real time."""

import re

from exporter.config.fields import parse_duration

_UNITS = {"w": 604_800, "d": 86_400}
_DURATION = r"\d+[smhdw]"
_KEYS = "for|keep_firing_for|interval|group_wait|group_interval|repeat_interval"
_PLACES = re.compile(rf"(?P<before>\[|\boffset |\b(?:{_KEYS}): )(?P<duration>{_DURATION})\b")


def shortened(text: str, factor: int) -> str:
    """The file with every duration divided; in ranges, offsets and the keys that hold durations."""

    def divided(match: re.Match[str]) -> str:
        return f"{match['before']}{round(_seconds(match['duration']) * 1000 / factor)}ms"

    return _PLACES.sub(divided, text)


def _seconds(duration: str) -> float:
    number, unit = int(duration[:-1]), duration[-1]
    return number * _UNITS[unit] if unit in _UNITS else parse_duration(duration)
