"""How a number is, in one word: the worst that is true of it."""

import pytest

from exporter.model import DOWN_STATUSES, RESTRICTED_STATUSES, STATUSES, Condition, PhoneNumber


def condition(rating: str, status: str) -> Condition:
    return PhoneNumber("15550100001", quality_rating=rating, status=status).condition


@pytest.mark.parametrize(
    ("rating", "status", "expected"),
    [
        ("RED", "BANNED", "down"),
        ("GREEN", "OFFLINE", "down"),
        ("UNKNOWN", "DELETED", "down"),
        ("RED", "FLAGGED", "red"),
        ("RED", "CONNECTED", "red"),
        ("YELLOW", "RATE_LIMITED", "restricted"),
        ("GREEN", "FLAGGED", "restricted"),
        ("YELLOW", "CONNECTED", "yellow"),
        ("YELLOW", "SOMETHING_NEW", "yellow"),
        ("GREEN", "PENDING", "unknown"),
        ("GREEN", "", "unknown"),
        ("GREEN", "SOMETHING_NEW", "unknown"),
        ("UNKNOWN", "CONNECTED", "unknown"),
        ("PURPLE", "CONNECTED", "unknown"),
        ("GREEN", "CONNECTED", "green"),
    ],
)
def test_the_worst_that_is_true_of_a_number_is_its_condition(rating: str, status: str, expected: str) -> None:
    assert condition(rating, status) == expected


def test_only_a_connected_green_number_is_healthy() -> None:
    statuses = [*STATUSES, "", "SOMETHING_NEW"]
    pairs = [(rating, status) for rating in ("GREEN", "YELLOW", "RED", "UNKNOWN", "PURPLE") for status in statuses]

    assert [pair for pair in pairs if PhoneNumber("1", quality_rating=pair[0], status=pair[1]).is_healthy] == [
        ("GREEN", "CONNECTED")
    ]


def test_conditions_are_in_order_of_badness() -> None:
    assert list(Condition) == ["down", "red", "restricted", "yellow", "unknown", "green"]


def test_a_status_is_down_or_restricted_or_neither() -> None:
    assert {"PENDING", "CONNECTED", "UNKNOWN", "UNVERIFIED"} == STATUSES - DOWN_STATUSES - RESTRICTED_STATUSES
    assert not DOWN_STATUSES & RESTRICTED_STATUSES
