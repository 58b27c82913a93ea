"""How far a sweep is, as arithmetic."""

from exporter.polling.plan import Plan, Progress

BEGIN = Progress.of({"acme": Plan(spaces=30, interval=300, qps=10), "globex": Plan(spaces=4, interval=300, qps=0.5)})


def test_what_is_left_takes_as_long_as_the_slowest_account_needs() -> None:
    most = BEGIN
    for _ in range(4):
        most = most.after("globex", failed=False)

    assert (BEGIN.total, round(BEGIN.seconds_left, 6)) == (34, 8.8)
    assert (most.total, round(most.seconds_left, 6)) == (34, 3.6)


def test_what_was_polled_and_what_failed_is_counted() -> None:
    later = BEGIN.after("acme", failed=False).after("globex", failed=True)

    assert (later.done, later.failed, later.total) == (2, 1, 34)
    assert later.left == {"acme": 29, "globex": 3}


def test_without_an_account_nothing_is_left() -> None:
    assert (Progress.of({}).total, Progress.of({}).seconds_left) == (0, 0.0)
