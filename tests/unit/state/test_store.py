"""What is known of a space after a poll."""

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
    state = SpaceRecord().after(success(100, GREEN)).after(failure(200))

    assert (state.up, state.last_success, state.phone_numbers) == (False, 100, (GREEN,))
    assert (state.polls, state.failures) == (2, {Reason.SERVER: 1})


def test_failures_are_counted_by_reason() -> None:
    throttled = Outcome("acme", "s1", 1, error=ThrottledError("Throttling"))

    state = SpaceRecord().after(failure(1)).after(throttled).after(failure(2))

    assert state.failures == {Reason.SERVER: 2, Reason.THROTTLED: 1}


def test_the_last_failure_tells_since_when_polls_fail_and_stays_when_they_succeed_again() -> None:
    once = SpaceRecord().after(success(100, GREEN)).after(failure(200))
    thrice = once.after(failure(210)).after(failure(230))
    again = thrice.after(success(300, GREEN)).after(failure(400))

    assert thrice.last_failure == Failure(230, 200, 3, Reason.SERVER, "http_500", "", "")
    assert thrice.after(success(300, GREEN)).last_failure == thrice.last_failure
    assert again.last_failure == Failure(400, 400, 1, Reason.SERVER, "http_500", "", "")


def test_an_empty_answer_is_a_success_without_numbers() -> None:
    state = SpaceRecord().after(success(100, GREEN)).after(success(200))

    assert (state.up, state.last_success, state.phone_numbers) == (True, 200, ())


def test_a_first_value_is_no_change() -> None:
    assert SpaceRecord().after(success(100, GREEN)).changes == {}


def test_a_change_is_dated_by_field_and_the_date_stays() -> None:
    state = SpaceRecord().after(success(100, GREEN)).after(success(200, RED)).after(success(300, RED))

    assert state.changes == {("1", "quality_rating"): (200, "GREEN"), ("1", "status"): (200, "CONNECTED")}


def test_a_change_across_a_failure_is_dated_when_it_was_seen() -> None:
    state = SpaceRecord().after(success(100, GREEN)).after(failure(200)).after(success(300, RED))

    assert state.changes[("1", "quality_rating")].at == 300


def test_a_number_that_leaves_takes_its_dates_along() -> None:
    state = SpaceRecord().after(success(1, GREEN)).after(success(2, RED)).after(success(3)).after(success(4, GREEN))

    assert state.changes == {}


RATING, TIER, STATUS = (("1", field) for field in ("quality_rating", "messaging_limit_tier", "status"))


def test_a_field_that_is_not_reported_any_more_is_missing_and_is_no_change() -> None:
    known = SpaceRecord().after(success(100, RED))
    for at in (200, 300):
        known = known.after(success(at, PhoneNumber("1", status="FLAGGED")))

    assert known.missing == {RATING: (200, "RED"), TIER: (200, "TIER_1K")}
    assert known.changes == {}


def test_a_field_that_was_never_reported_is_not_missing() -> None:
    state = SpaceRecord().after(success(100, PhoneNumber("1"))).after(success(200, PhoneNumber("1")))

    assert state.missing == {}
    assert state.after(success(300, RED)).changes == {}


def test_a_value_that_is_reported_again_is_compared_with_the_one_before_the_gap() -> None:
    gap = SpaceRecord().after(success(100, RED)).after(success(200, PhoneNumber("1")))

    same, other = gap.after(success(300, RED)), gap.after(success(300, GREEN))

    assert (same.missing, same.changes) == ({}, {})
    assert (other.missing, other.changes) == ({}, {RATING: (300, "RED"), STATUS: (300, "FLAGGED")})


def test_a_change_keeps_its_date_while_the_field_is_missing() -> None:
    changed = SpaceRecord().after(success(100, GREEN)).after(success(200, RED))

    assert changed.after(success(300, PhoneNumber("1"))).changes == changed.changes


def test_of_a_number_that_is_not_listed_any_more_nothing_is_missing() -> None:
    gap = SpaceRecord().after(success(100, RED)).after(success(200, PhoneNumber("1")))

    assert gap.after(success(300)).after(success(400, PhoneNumber("1"))).missing == {}


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
def test_a_missing_field_improves_no_state_and_an_old_green_is_not_green(
    before: dict[str, str], now: dict[str, str], state: str
) -> None:
    was, number = (replace(GREEN, **changes) for changes in (before, now))  # type: ignore[arg-type]  # all of them texts
    known = SpaceRecord().after(success(100, was)).after(success(200, number))

    assert known.state_of(number) == state


def test_the_age_of_what_this_process_polled_counts_by_the_monotonic_clock() -> None:
    state = SpaceRecord().after(success(100, GREEN))

    assert [state.seconds_since_success(Now(unix, 40)) for unix in (130, 99_999, -99_999)] == [30, 30, 30]
    assert state.is_fresh(Now(99_999, 69), max_age=60)
    assert not state.is_fresh(Now(130, 70), max_age=60)


def test_the_age_of_what_another_process_polled_counts_by_the_wall_clock() -> None:
    state = SpaceRecord(True, 100, (GREEN,))

    assert [state.seconds_since_success(Now(unix, 7)) for unix in (130, 70)] == [30, 30]


def test_before_its_first_success_a_space_counts_from_when_it_was_added() -> None:
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1")], now=Now(10, 5))
    store.record(failure(100))

    assert store["acme", "s1"].seconds_since_success(Now(100, 25)) == 20


def test_a_space_that_had_no_success_counts_over_a_restart_from_when_it_was_added() -> None:
    failing = SpaceRecord(added=1000).after(failure(1100))
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1")], now=Now(2000, 5))
    store.record(failure(2000))
    store.restore({("acme", "s1"): failing}, now=Now(2000, 5), max_age=60)

    assert store["acme", "s1"].seconds_since_success(Now(2010, 15)) == 1010


def test_the_store_reports_new_spaces_and_returns_the_state_after_a_poll() -> None:
    reported: list[tuple[Key, SpaceRecord]] = []
    store = Store(lambda key, state: reported.append((key, state)))
    store.retain([("acme", "s1"), ("acme", "s2")], now=Now(10, 5))

    state = store.record(success(100, GREEN))

    assert [key for key, _ in reported] == [("acme", "s1"), ("acme", "s2")]
    assert store["acme", "s1"] is state
    assert state == SpaceRecord(added=10).after(success(100, GREEN))
    assert store.unpolled == {("acme", "s2")}


def test_a_space_that_is_restored_is_not_unpolled_if_its_values_are_fresh_enough_to_show() -> None:
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1"), ("acme", "s2")], now=Now(10, 5))
    fresh, old = (SpaceRecord(True, at, (GREEN,)) for at in (100, 10))

    store.restore({("acme", "s1"): fresh, ("acme", "s2"): old}, now=Now(120, 30), max_age=60)

    assert (store["acme", "s1"], store["acme", "s2"]) == (fresh, old)
    assert store.unpolled == {("acme", "s2")}


def test_a_space_that_is_not_retained_is_forgotten() -> None:
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1")], now=Now(10, 5))
    store.record(success(100, GREEN))
    store.retain([("acme", "s2")], now=Now(10, 5))
    store.retain([("acme", "s1")], now=Now(10, 5))

    assert store["acme", "s1"] == SpaceRecord(added=10)
    assert store.unpolled == {("acme", "s1")}
