"""The state of a phone number: the most severe state that applies."""

import pytest

from exporter.model import DOWN_STATUSES, PHONE_NUMBER_STATES, RANKS, RESTRICTED_STATUSES, STATUSES, PhoneNumber, State


def state(rating: str, status: str) -> State:
    return PhoneNumber("15550100001", quality_rating=rating, status=status).state


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
def test_the_state_of_a_number_is_the_most_severe_that_applies(rating: str, status: str, expected: str) -> None:
    assert state(rating, status) == expected


def test_only_a_connected_green_number_is_green() -> None:
    statuses = [*STATUSES, "", "SOMETHING_NEW"]
    pairs = [(rating, status) for rating in ("GREEN", "YELLOW", "RED", "UNKNOWN", "PURPLE") for status in statuses]

    assert [pair for pair in pairs if state(*pair) == "green"] == [("GREEN", "CONNECTED")]


def test_states_of_numbers_are_sorted_by_severity() -> None:
    assert list(PHONE_NUMBER_STATES) == ["down", "red", "restricted", "yellow", "unknown", "green"]
    assert list(PHONE_NUMBER_STATES) == sorted(PHONE_NUMBER_STATES, key=RANKS.__getitem__)


def test_statuses_are_divided_into_down_restricted_and_others() -> None:
    assert {"PENDING", "CONNECTED", "UNKNOWN", "UNVERIFIED"} == STATUSES - DOWN_STATUSES - RESTRICTED_STATUSES
    assert not DOWN_STATUSES & RESTRICTED_STATUSES
