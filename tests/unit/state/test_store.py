"""The record of a space after polls and restarts."""

from dataclasses import replace

import pytest

from exporter.clock import Now
from exporter.model import Answer, PhoneNumber
from exporter.source import Outcome, Reason, ServerError, ThrottledError
from exporter.state.store import Failure, Key, SpaceRecord, Store


def success(at: float, *numbers: PhoneNumber) -> Outcome:
    return Outcome("acme", "s1", at, Answer(numbers), monotonic=at - 90)


def failure(at: float) -> Outcome:
    return Outcome("acme", "s1", at, error=ServerError("http_500"))


GREEN = PhoneNumber("1", quality_rating="GREEN", messaging_limit_tier="TIER_1K", status="CONNECTED")
RED = PhoneNumber("1", quality_rating="RED", messaging_limit_tier="TIER_1K", status="FLAGGED")


def test_a_failure_keeps_the_last_numbers_and_marks_the_space_down() -> None:
    record = SpaceRecord().after(success(100, GREEN)).after(failure(200))

    assert (record.up, record.last_success, record.phone_numbers) == (False, 100, (GREEN,))
    assert (record.polls, record.failures) == (2, {Reason.SERVER: 1})


def test_failures_are_counted_by_reason() -> None:
    throttled = Outcome("acme", "s1", 1, error=ThrottledError("Throttling"))

    record = SpaceRecord().after(failure(1)).after(throttled).after(failure(2))

    assert record.failures == {Reason.SERVER: 2, Reason.THROTTLED: 1}


def test_the_last_failure_has_the_start_and_count_of_failures_and_is_kept_after_a_success() -> None:
    failed_once = SpaceRecord().after(success(100, GREEN)).after(failure(200))
    failed_thrice = failed_once.after(failure(210)).after(failure(230))
    failed_again = failed_thrice.after(success(300, GREEN)).after(failure(400))

    assert failed_thrice.last_failure == Failure(230, 200, 3, Reason.SERVER, "http_500", "", "")
    assert failed_thrice.after(success(300, GREEN)).last_failure == failed_thrice.last_failure
    assert failed_again.last_failure == Failure(400, 400, 1, Reason.SERVER, "http_500", "", "")


def test_an_empty_list_of_numbers_is_a_success() -> None:
    record = SpaceRecord().after(success(100, GREEN)).after(success(200))

    assert (record.up, record.last_success, record.phone_numbers) == (True, 200, ())


def test_the_first_value_is_not_a_change() -> None:
    assert SpaceRecord().after(success(100, GREEN)).changes == {}


def test_a_change_has_the_time_of_the_first_poll_with_the_new_value_and_the_value_before() -> None:
    record = SpaceRecord().after(success(100, GREEN)).after(success(200, RED)).after(success(300, RED))

    assert record.changes == {("1", "quality_rating"): (200, "GREEN"), ("1", "status"): (200, "CONNECTED")}


def test_a_change_after_a_failed_poll_has_the_time_of_its_detection() -> None:
    record = SpaceRecord().after(success(100, GREEN)).after(failure(200)).after(success(300, RED))

    assert record.changes[("1", "quality_rating")].at == 300


def test_the_changes_of_a_number_are_removed_when_it_is_no_longer_listed() -> None:
    record = SpaceRecord().after(success(1, GREEN)).after(success(2, RED)).after(success(3)).after(success(4, GREEN))

    assert record.changes == {}


RATING, TIER, STATUS = (("1", field) for field in ("quality_rating", "messaging_limit_tier", "status"))


def test_a_field_that_is_no_longer_reported_is_missing_and_not_changed() -> None:
    record = SpaceRecord().after(success(100, RED))
    for at in (200, 300):
        record = record.after(success(at, PhoneNumber("1", status="FLAGGED")))

    assert record.missing == {RATING: (200, "RED"), TIER: (200, "TIER_1K")}
    assert record.changes == {}


def test_a_field_that_was_never_reported_is_not_missing() -> None:
    record = SpaceRecord().after(success(100, PhoneNumber("1"))).after(success(200, PhoneNumber("1")))

    assert record.missing == {}
    assert record.after(success(300, RED)).changes == {}


def test_a_value_that_is_reported_again_is_compared_with_the_last_reported_value() -> None:
    unreported = SpaceRecord().after(success(100, RED)).after(success(200, PhoneNumber("1")))

    unchanged, changed = unreported.after(success(300, RED)), unreported.after(success(300, GREEN))

    assert (unchanged.missing, unchanged.changes) == ({}, {})
    assert (changed.missing, changed.changes) == ({}, {RATING: (300, "RED"), STATUS: (300, "FLAGGED")})


def test_a_change_keeps_its_time_while_the_field_is_missing() -> None:
    changed = SpaceRecord().after(success(100, GREEN)).after(success(200, RED))

    assert changed.after(success(300, PhoneNumber("1"))).changes == changed.changes


def test_a_number_that_is_no_longer_listed_has_no_missing_fields() -> None:
    unreported = SpaceRecord().after(success(100, RED)).after(success(200, PhoneNumber("1")))

    assert unreported.after(success(300)).after(success(400, PhoneNumber("1"))).missing == {}


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [
        ({"quality_rating": "RED"}, {"quality_rating": ""}, "red"),
        ({"status": "BANNED"}, {"status": ""}, "down"),
        ({"status": "FLAGGED"}, {"status": ""}, "restricted"),
        ({"quality_rating": "YELLOW"}, {"quality_rating": ""}, "yellow"),
        ({"quality_rating": "YELLOW", "status": "BANNED"}, {"quality_rating": "RED", "status": ""}, "down"),
        ({"quality_rating": "RED"}, {"quality_rating": "", "status": "BANNED"}, "down"),
        ({"quality_rating": "RED"}, {"messaging_limit_tier": ""}, "green"),
        ({}, {"quality_rating": ""}, "unknown"),
        ({}, {"status": ""}, "unknown"),
        ({}, {"messaging_limit_tier": ""}, "green"),
    ],
)
def test_a_missing_field_does_not_improve_the_state_and_after_green_the_state_is_unknown(
    before: dict[str, str], now: dict[str, str], state: str
) -> None:
    first, second = (replace(GREEN, **changes) for changes in (before, now))  # type: ignore[arg-type]  # all are strings
    record = SpaceRecord().after(success(100, first)).after(success(200, second))

    assert record.state_of(second) == state


def test_the_age_of_values_that_this_process_polled_uses_the_monotonic_clock() -> None:
    record = SpaceRecord().after(success(100, GREEN))

    assert [record.seconds_since_success(Now(unix, 40)) for unix in (130, 99_999, -99_999)] == [30, 30, 30]
    assert record.is_fresh(Now(99_999, 69), max_age=60)
    assert not record.is_fresh(Now(130, 70), max_age=60)


def test_the_age_of_values_that_another_process_polled_uses_the_system_clock() -> None:
    record = SpaceRecord(True, 100, (GREEN,))

    assert [record.seconds_since_success(Now(unix, 7)) for unix in (130, 70)] == [30, 30]


def test_before_the_first_success_the_age_of_a_space_starts_when_it_is_added() -> None:
    store = Store(lambda key, record: None)
    store.set_spaces([("acme", "s1")], now=Now(10, 5))
    store.add_outcome(failure(100))

    assert store["acme", "s1"].seconds_since_success(Now(100, 25)) == 20


def test_the_age_of_a_space_without_a_success_continues_after_a_restart() -> None:
    failing = SpaceRecord(added=1000).after(failure(1100))
    store = Store(lambda key, record: None)
    store.set_spaces([("acme", "s1")], now=Now(2000, 5))
    store.add_outcome(failure(2000))
    store.restore({("acme", "s1"): failing}, now=Now(2000, 5), max_age=60)

    assert store["acme", "s1"].seconds_since_success(Now(2010, 15)) == 1010


def test_the_store_reports_new_spaces_and_returns_the_record_after_a_poll() -> None:
    reported: list[tuple[Key, SpaceRecord]] = []
    store = Store(lambda key, record: reported.append((key, record)))
    store.set_spaces([("acme", "s1"), ("acme", "s2")], now=Now(10, 5))

    record = store.add_outcome(success(100, GREEN))

    assert [key for key, _ in reported] == [("acme", "s1"), ("acme", "s2")]
    assert store["acme", "s1"] is record
    assert record == SpaceRecord(added=10).after(success(100, GREEN))
    assert store.unpolled == {("acme", "s2")}


def test_a_restored_space_counts_as_polled_if_its_values_are_fresh() -> None:
    store = Store(lambda key, record: None)
    store.set_spaces([("acme", "s1"), ("acme", "s2")], now=Now(10, 5))
    fresh, stale = (SpaceRecord(True, at, (GREEN,)) for at in (100, 10))

    store.restore({("acme", "s1"): fresh, ("acme", "s2"): stale}, now=Now(120, 30), max_age=60)

    assert (store["acme", "s1"], store["acme", "s2"]) == (fresh, stale)
    assert store.unpolled == {("acme", "s2")}


def test_the_record_of_a_space_that_is_not_retained_is_removed() -> None:
    store = Store(lambda key, record: None)
    store.set_spaces([("acme", "s1")], now=Now(10, 5))
    store.add_outcome(success(100, GREEN))
    store.set_spaces([("acme", "s2")], now=Now(10, 5))
    store.set_spaces([("acme", "s1")], now=Now(10, 5))

    assert store["acme", "s1"] == SpaceRecord(added=10)
    assert store.unpolled == {("acme", "s1")}
