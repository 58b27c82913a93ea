"""What is known of a space after a poll."""

from exporter.model import Answer, PhoneNumber
from exporter.source import Outcome, Reason, ServerError, ThrottledError
from exporter.state.store import Failure, Key, SpaceState, Store


def success(at: float, *numbers: PhoneNumber) -> Outcome:
    return Outcome("acme", "s1", at, Answer(numbers))


def failure(at: float) -> Outcome:
    return Outcome("acme", "s1", at, error=ServerError("http_500"))


GREEN = PhoneNumber("1", quality_rating="GREEN", messaging_limit_tier="TIER_1K", status="CONNECTED")
RED = PhoneNumber("1", quality_rating="RED", messaging_limit_tier="TIER_1K", status="FLAGGED")


def test_a_failure_keeps_the_last_numbers_and_marks_the_space_down() -> None:
    state = SpaceState().after(success(100, GREEN)).after(failure(200))

    assert (state.up, state.last_success, state.phone_numbers) == (False, 100, (GREEN,))
    assert (state.polls, state.failures) == (2, {Reason.SERVER: 1})


def test_failures_are_counted_by_reason() -> None:
    throttled = Outcome("acme", "s1", 1, error=ThrottledError("Throttling"))

    state = SpaceState().after(failure(1)).after(throttled).after(failure(2))

    assert state.failures == {Reason.SERVER: 2, Reason.THROTTLED: 1}


def test_the_last_failure_tells_since_when_polls_fail_and_stays_when_they_succeed_again() -> None:
    once = SpaceState().after(success(100, GREEN)).after(failure(200))
    thrice = once.after(failure(210)).after(failure(230))
    again = thrice.after(success(300, GREEN)).after(failure(400))

    assert thrice.last_failure == Failure(230, 200, 3, Reason.SERVER, "http_500", "", "")
    assert thrice.after(success(300, GREEN)).last_failure == thrice.last_failure
    assert again.last_failure == Failure(400, 400, 1, Reason.SERVER, "http_500", "", "")


def test_an_empty_answer_is_a_success_without_numbers() -> None:
    state = SpaceState().after(success(100, GREEN)).after(success(200))

    assert (state.up, state.last_success, state.phone_numbers) == (True, 200, ())


def test_a_first_value_is_no_change() -> None:
    assert SpaceState().after(success(100, GREEN)).changes == {}


def test_a_change_is_dated_by_field_and_the_date_stays() -> None:
    state = SpaceState().after(success(100, GREEN)).after(success(200, RED)).after(success(300, RED))

    assert state.changes == {("1", "quality_rating"): (200, "GREEN"), ("1", "status"): (200, "CONNECTED")}


def test_a_change_across_a_failure_is_dated_when_it_was_seen() -> None:
    state = SpaceState().after(success(100, GREEN)).after(failure(200)).after(success(300, RED))

    assert state.changes[("1", "quality_rating")].at == 300


def test_a_number_that_leaves_takes_its_dates_along() -> None:
    state = SpaceState().after(success(1, GREEN)).after(success(2, RED)).after(success(3)).after(success(4, GREEN))

    assert state.changes == {}


def test_the_store_tells_of_every_change_and_counts_what_was_not_polled() -> None:
    told: list[tuple[Key, SpaceState]] = []
    store = Store(lambda key, state: told.append((key, state)))
    store.retain([("acme", "s1"), ("acme", "s2")])

    store.record(success(100, GREEN))

    assert told[-1] == (("acme", "s1"), store["acme", "s1"])
    assert store["acme", "s1"] == SpaceState().after(success(100, GREEN))
    assert store.unpolled == {("acme", "s2")}


def test_a_space_that_is_restored_is_not_unpolled_if_its_values_are_fresh_enough_to_show() -> None:
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1"), ("acme", "s2")])
    fresh, old = (SpaceState().after(success(at, GREEN)) for at in (100, 10))

    store.restore({("acme", "s1"): fresh, ("acme", "s2"): old}, now=120, max_age=60)

    assert (store["acme", "s1"], store["acme", "s2"]) == (fresh, old)
    assert store.unpolled == {("acme", "s2")}


def test_a_space_that_is_not_retained_is_forgotten() -> None:
    store = Store(lambda key, state: None)
    store.retain([("acme", "s1")])
    store.record(success(100, GREEN))
    store.retain([("acme", "s2")])
    store.retain([("acme", "s1")])

    assert store["acme", "s1"] == SpaceState()
    assert store.unpolled == {("acme", "s1")}
