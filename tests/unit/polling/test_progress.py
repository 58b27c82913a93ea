"""The progress of a sweep: counts and the remaining time."""

from exporter.polling.plan import Plan, Progress

START = Progress.of({"acme": Plan(spaces=30, interval=300, qps=10), "globex": Plan(spaces=4, interval=300, qps=0.5)})


def test_the_remaining_time_of_a_sweep_is_the_longest_of_its_accounts() -> None:
    later = START
    for _ in range(4):
        later = later.after("globex", failed=False)

    # globex: 4 polls, each with 2 s hold time and 0.2 s latency
    assert (START.total, round(START.seconds_left, 6)) == (34, 8.8)
    # acme: 30 polls at 10 / 1.2 polls per second
    assert (later.total, round(later.seconds_left, 6)) == (34, 3.6)


def test_polled_and_failed_spaces_are_counted() -> None:
    later = START.after("acme", failed=False).after("globex", failed=True)

    assert (later.done, later.failed, later.total) == (2, 1, 34)
    assert later.left == {"acme": 29, "globex": 3}


def test_a_sweep_without_accounts_has_no_remaining_time() -> None:
    assert (Progress.of({}).total, Progress.of({}).seconds_left) == (0, 0.0)
