"""`shortened` divides the durations in rules and Alertmanager files by a factor and changes nothing else."""

import pytest
from shortened import shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("for: 10m", "for: 10000ms"),
        ("keep_firing_for: 15m", "keep_firing_for: 15000ms"),
        ("interval: 1h", "interval: 60000ms"),
        ("last_over_time(x[1d]) offset 10m", "last_over_time(x[1440000ms]) offset 10000ms"),
        ("max_over_time(x[7d])", "max_over_time(x[10080000ms])"),
        ("group_wait: 30s", "group_wait: 500ms"),
        ("repeat_interval: 1w", "repeat_interval: 10080000ms"),
        ("time() - x > 6 * 3600", "time() - x > 6 * 3600 / 60"),
        ("3 * x > 0.05 # for 10 minutes, 5m", "3 * x > 0.05 # for 10 minutes, 5m"),
    ],
)
def test_only_durations_are_divided(text: str, expected: str) -> None:
    assert shortened(text, 60) == expected
