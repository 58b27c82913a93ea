"""Failures of an account and failures of single spaces, which the exporter must distinguish."""

import asyncio
from dataclasses import replace
from random import Random

import httpx
import pytest
from starlette.responses import Response
from structlog.testing import capture_logs
from virtual_time import VirtualClock, run
from world import Exporter, StaticCredentials, World, scenario

from exporter import sources
from exporter.metrics.instruments import Instruments
from exporter.polling.access import AccountAccess
from exporter.polling.account import AccountPolling
from exporter.polling.budget import Budget
from exporter.polling.poller import Poller
from exporter.polling.schedule import Schedule
from exporter.source import (
    DeniedError,
    MalformedError,
    Outcome,
    QueryError,
    RejectedError,
    RequestTimeout,
    ServerError,
    SourceContext,
    ThrottledError,
    TransportError,
)
from exporter.sources.cams.settings import CamsAccount
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.source import CamsSource


class TickingClock(VirtualClock):
    """Advances by a microsecond at each reading, as on a real machine: no two times are equal."""

    ticks = 0

    def monotonic(self) -> float:
        self.ticks += 1
        return super().monotonic() + self.ticks * 1e-6


def test_four_consecutive_denied_spaces_do_not_affect_the_account_or_other_spaces() -> None:
    denied = tuple({"at": "0s", "space": n, "answer": "Ram.PermissionDeny"} for n in (4, 5, 6, 7))

    async def main() -> tuple[World, list[str]]:
        world = World(scenario(30, qps=10, poll_interval="5m", events=denied), clock=TickingClock())
        await world.exporter.start()
        await asyncio.sleep(3600)
        await world.exporter.stop()
        return world, world.samples("chatapp_account_up")

    world, up = run(main())
    polls = [len(world.polls_of(world.space_id(n))) for n in range(1, 31)]

    assert up == ["chatapp_account_up{} 1"]
    assert all(11 <= count <= 14 for count in polls[:3] + polls[7:]), polls
    assert all(2 <= count <= 5 for count in polls[3:7]), polls


@pytest.mark.parametrize(
    ("space_denied", "key_revoked", "reload_at"),
    [(("50s", "5m"), ("100s", "5m"), 300), (("50s", "150s"), ("150s", "5m"), 140)],
    ids=["key revoked before the reload", "key revoked after the reload"],
)
def test_a_denied_space_determines_the_account_state_after_all_other_spaces_were_removed(
    space_denied: tuple[str, str], key_revoked: tuple[str, str], reload_at: int
) -> None:
    async def main() -> list[list[str]]:
        (space_at, space_for), (key_at, key_for) = space_denied, key_revoked
        events = (
            {"at": space_at, "for": space_for, "space": 1, "answer": "NoPermission"},
            {"at": key_at, "for": key_for, "answer": "InvalidAccessKeyId.NotFound"},
        )
        world = World(scenario(2, poll_interval="30s", events=events))
        await world.exporter.start()
        await asyncio.sleep(reload_at)
        (account,) = world.settings.accounts
        with_one_space = account.model_copy(update={"spaces": [account.polled_spaces[0]]})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [with_one_space]}))
        await asyncio.sleep(390 - reload_at)
        results = [world.samples("chatapp_account_up")]
        await asyncio.sleep(1000)
        results.append(world.samples("chatapp_account_up") + world.samples("chatapp_space_up"))
        await world.exporter.stop()
        return results

    assert run(main()) == [["chatapp_account_up{} 0"], ["chatapp_account_up{} 1", "chatapp_space_up{} 1"]]


def up_after_revocation(*failing: tuple[int, str], minutes: float) -> tuple[list[str], World]:
    """Return chatapp_account_up and the world, `minutes` after a revoked key works again. From minute 10, the `failing`
    spaces respond with these error codes."""
    events = [{"at": "60s", "answer": "InvalidAccessKeyId.NotFound", "for": "30m"}]
    events += [{"at": "10m", "space": str(space), "answer": code} for space, code in failing]

    async def main() -> tuple[list[str], World]:
        world = World(scenario(10, qps=10, poll_interval="5m", events=tuple(events)))
        await world.exporter.start()
        await asyncio.sleep(31 * 60)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        await asyncio.sleep(minutes * 60)
        up = world.samples("chatapp_account_up")
        await world.exporter.stop()
        return up, world

    return run(main())


@pytest.mark.parametrize("spaces", [1, 2, 3, 4])
def test_access_to_a_small_account_is_restored_within_two_intervals(spaces: int) -> None:
    async def main() -> set[str]:
        revoked = {"at": "1000s", "answer": "InvalidAccessKeyId.NotFound", "for": "700s"}
        world = World(scenario(spaces, qps=10, poll_interval="5m", events=(revoked,)))
        await world.exporter.start()
        await asyncio.sleep(1690)
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        await asyncio.sleep(10 + 600)
        up = {*world.samples("chatapp_account_up"), *world.samples("chatapp_space_up")}
        await world.exporter.stop()
        return up

    assert run(main()) == {"chatapp_account_up{} 1", "chatapp_space_up{} 1"}


def test_a_probe_that_fails_for_another_reason_does_not_keep_the_account_denied() -> None:
    for space in range(1, 11):
        up, _ = up_after_revocation((space, "InternalError"), minutes=6)

        assert up == ["chatapp_account_up{} 1"], space


def test_a_single_denied_space_does_not_keep_the_account_denied() -> None:
    for space in range(1, 11):
        up, _ = up_after_revocation((space, "NoPermission"), minutes=11)

        assert up == ["chatapp_account_up{} 1"], space


def test_a_rejected_probe_restores_access_to_the_account() -> None:
    up, _ = up_after_revocation(*((space, "Unknown.ResourceOwnerId") for space in range(1, 11)), minutes=6)

    assert up == ["chatapp_account_up{} 1"]


def test_an_error_page_of_a_proxy_does_not_restore_access_to_an_account() -> None:
    async def main() -> set[str]:
        world = World(scenario(10, poll_interval="5m", events=({"at": "0s", "answer": "InvalidAccessKeyId.NotFound"},)))
        await world.exporter.start()
        await asyncio.sleep(60)
        world.api.fixed_response = Response("<html>Not found</html>", 404)
        results = set()
        for _ in range(30):
            await asyncio.sleep(60)
            results |= set(world.samples("chatapp_account_up"))
        await world.exporter.stop()
        assert 'chatapp_api_requests_total{code="http_404"} 5.0' in world.samples("chatapp_api_requests_total")
        return results

    assert run(main()) == {"chatapp_account_up{} 0"}


def test_all_spaces_are_polled_immediately_after_access_to_the_account_is_restored() -> None:
    _, world = up_after_revocation(minutes=6)
    restored_at = next(at for at, _ in world.polls if at >= 31 * 60)

    assert len({space for at, space in world.polls if restored_at <= at < restored_at + 2}) == 10


def test_a_response_to_a_request_from_before_the_denial_does_not_restore_access() -> None:
    spaces = [{"id": f"s{number}"} for number in range(1, 11)]
    keys = {"access_key_id": "id", "access_key_secret": "secret"}
    account = {"name": "acme", "qps": 10, "poll_interval": "10m", "spaces": spaces, **keys}

    async def respond(request: httpx.Request) -> httpx.Response:
        if request.url.query == b"CustSpaceId=s1":
            await asyncio.sleep(5)  # a successful response that takes 5 seconds
            return httpx.Response(200, stream=httpx.ByteStream(b'{"Code": "OK", "PhoneNumbers": []}'))
        return httpx.Response(403, stream=httpx.ByteStream(b'{"Code": "NoPermission"}'))

    async def main() -> list[bool]:
        exporter = Exporter(
            sources.Settings.model_validate({"accounts": [account]}),
            SourceContext({}, VirtualClock(), lambda _: httpx.AsyncClient(transport=httpx.MockTransport(respond))),
        )
        await exporter.start()
        down = []
        await asyncio.sleep(1)
        for _ in range(160):
            await asyncio.sleep(0.05)
            down += [view.down for view in exporter.view.accounts()]
        await exporter.stop()
        return down

    assert set(run(main())) == {True}


RESULTS: dict[str, QueryError | None] = {
    "ok": None,
    "denied": DeniedError("NoPermission"),
    "rejected": RejectedError("Unknown.ResourceOwnerId"),
    "throttled": ThrottledError("Throttling"),
    "server": ServerError("InternalError"),
    "timeout": RequestTimeout("timeout"),
    "transport": TransportError("transport"),
    "proxy_malformed": MalformedError("malformed", from_api=False),
    "malformed": MalformedError("malformed"),
    "proxy_rejected": RejectedError("http_404", from_api=False),
}


def state_after(*results: str, spaces: int = 5) -> str | None:
    """Return the state of an account after these results. `a denied` is a result of space a."""
    access = AccountAccess(spaces)
    for result in results:
        space, _, name = result.partition(" ")
        access = access.after(Outcome("acme", space, 0, error=RESULTS[name]))
    return access.state


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ((), None),
        (("a denied", "b denied"), None),
        (("a denied", "b denied", "c denied"), "denied"),
        (("a denied", "b denied", "d ok", "c denied"), "ok"),
        (("a denied", "b denied", "d ok", "a denied", "b denied", "c denied"), "ok"),
        (("a denied", "b denied", "d ok", "c denied", "d denied", "e denied"), "denied"),
        (("a denied", "b denied", "c denied", "d server", "d throttled", "e denied"), "denied"),
        (("a denied", "b denied", "c denied", "d rejected"), "ok"),
        (("a ok",), "ok"),
        (("a throttled",), "ok"),
        (("a server", "b timeout"), None),
        (("a server", "b timeout", "c transport"), "unreachable"),
        (("a proxy_malformed", "b proxy_rejected", "c proxy_malformed"), "unreachable"),
        (("a server", "a server", "a server", "b server"), None),
        (("a ok", "a server", "b server"), "ok"),
        (("a server", "b server", "d ok", "c server"), "ok"),
        (("a server", "b server", "d throttled", "c server"), "ok"),
        (("a malformed", "b malformed", "c malformed"), "ok"),
        # two of the five spaces failed: further failures of such a space do not count before its next success
        (("a server", "b server", "d ok", "a server", "b server", "c server"), "ok"),
        (("a server", "b server", "d ok", "a server", "b server", "c server", "d server", "e server"), "unreachable"),
        (("a server", "b server", "d ok", "a ok", "b ok", "a server", "b server", "c server"), "unreachable"),
        (("a server", "b server", "d ok", "a denied", "b denied", "c denied"), "ok"),
        # most of the five spaces failed: the cause is the account, so their next failures count
        (("a server", "b server", "c server", "d ok", "a server", "b server", "c server"), "unreachable"),
        # repeated rejections of a space neither end nor hide an outage
        (("a rejected", "b server", "a rejected", "c server", "a rejected", "d server"), "unreachable"),
        (("a rejected", "b server", "c server", "d server", "a rejected"), "unreachable"),
        (("a rejected", "b server", "c server", "d server", "e rejected"), "ok"),
        (("a server", "b server", "d denied", "c server"), None),
        (("a server", "b server", "c server", "d ok"), "ok"),
        (("a server", "b server", "c server", "d rejected"), "ok"),
        (("a server", "b server", "c server", "d throttled"), "ok"),
        (("a server", "b server", "c server", "d denied"), None),
        (("a server", "b server", "c server", "d denied", "a denied", "b denied"), "denied"),
        (("a denied", "b denied", "c denied", "d server", "e server", "a server"), "denied"),
    ],
)
def test_the_account_state_depends_on_the_order_of_the_results(results: tuple[str, ...], state: str | None) -> None:
    assert state_after(*results) == state


@pytest.mark.parametrize(("result", "state"), [("denied", "denied"), ("server", "unreachable")])
def test_an_account_with_fewer_than_three_spaces_fails_only_if_all_spaces_fail(result: str, state: str) -> None:
    assert state_after(f"a {result}", spaces=1) == state
    assert state_after(f"a {result}", spaces=2) is None
    assert state_after(f"a {result}", f"b {result}", spaces=2) == state


def states_of(world: World) -> dict[str, str]:
    """Return the exported values of chatapp_account_state (only the current state) and chatapp_account_up."""
    current = [line for line in world.samples("chatapp_account_state") if line.endswith(" 1")]
    return {line.split(" ")[0]: line.split(" ")[1] for line in current + world.samples("chatapp_account_up")}


def test_four_failing_spaces_make_the_account_unreachable_for_less_than_a_minute() -> None:
    """The four spaces are adjacent, so their polls are consecutive."""

    async def main() -> tuple[int, int]:
        failing = tuple({"at": "10m", "space": space, "answer": "InternalError"} for space in (1, 2, 3, 4))
        world = World(scenario(20, poll_interval="5m", qps=5, latency="200ms", events=failing))
        await world.exporter.start()
        down = 0
        for _ in range(7200):
            await asyncio.sleep(1)
            down += states_of(world)["chatapp_account_up{}"] == "0"
        await world.exporter.stop()
        return down, max(len(world.polls_of(world.space_id(space))) for space in (1, 2, 3, 4))

    with capture_logs() as logs:
        down, polls = run(main())

    assert down < 60
    assert polls < 50
    assert len([line for line in logs if line["event"] == "account unreachable"]) <= 1


def test_repeated_rejections_of_a_space_do_not_end_an_outage() -> None:
    async def main() -> list[dict[str, str]]:
        rejected = {"at": "0s", "space": 1, "answer": "Authentication.NoAuth"}
        down = tuple({"at": "30m", "for": "50m", "space": s, "answer": "InternalError"} for s in range(2, 11))
        world = World(scenario(10, poll_interval="5m", events=(rejected, *down)))
        await world.exporter.start()
        await asyncio.sleep(35 * 60)
        results = []
        for _ in range(44):
            await asyncio.sleep(60)
            results.append(states_of(world))
        await world.exporter.stop()
        return results

    with capture_logs() as logs:
        results = run(main())

    assert [states["chatapp_account_up{}"] for states in results] == ["0"] * 44
    events = [line["event"] for line in logs if line["event"].startswith("account ")]
    assert events == ["account polling started", "account unreachable"]


def test_an_account_has_no_state_before_the_first_response() -> None:
    async def main() -> list[dict[str, str]]:
        world = World(scenario(5, qps=1, poll_interval="1m", latency="1s"))
        shown = [states_of(world)]
        await world.exporter.start()
        await asyncio.sleep(10)
        shown.append(states_of(world))
        await world.exporter.stop()
        return shown

    assert run(main()) == [{}, {'chatapp_account_state{state="ok"}': "1", "chatapp_account_up{}": "1"}]


@pytest.mark.parametrize(
    ("code", "state", "up", "start_event", "end_event"),
    [
        ("InternalError", "unreachable", "0", "account unreachable", "account reachable again"),
        (
            "InvalidAccessKeyId.NotFound",
            "denied",
            "0",
            "account authorization failed, probing once per interval",
            "account access restored",
        ),
        (
            "Throttling.User",
            "throttled",
            "1",
            "account throttled, polling at a lower rate",
            "account no longer throttled",
        ),
    ],
)
def test_an_account_failure_is_logged_once_at_its_start_and_once_at_its_end(
    code: str, state: str, up: str, start_event: str, end_event: str
) -> None:
    async def main() -> dict[str, str]:
        failing = {"at": "10m", "for": "30m", "answer": code}
        world = World(scenario(100, qps=10, poll_interval="1m", events=(failing,)))
        await world.exporter.start()
        await asyncio.sleep(1800)
        shown = states_of(world)
        await asyncio.sleep(1800)
        assert states_of(world) == {'chatapp_account_state{state="ok"}': "1", "chatapp_account_up{}": "1"}
        await world.exporter.stop()
        return shown

    with capture_logs() as logs:
        shown = run(main())

    assert shown == {f'chatapp_account_state{{state="{state}"}}': "1", "chatapp_account_up{}": up}
    account_lines = [line for line in logs if line["event"] in (start_event, end_event)]
    assert [line["event"] for line in account_lines] == [start_event, end_event]
    assert account_lines[0]["code"] == code
    # until three consecutive spaces have failed, failures are logged for each space
    assert len([line for line in logs if "space" in line and line["event"] != "account polling started"]) <= 4


def test_the_end_of_an_outage_is_logged_even_if_the_first_response_is_a_denial() -> None:
    async def main() -> None:
        down = {"at": "10m", "for": "10m", "answer": "InternalError"}
        denied = tuple({"at": "1s", "space": space, "answer": "NoPermission"} for space in (1, 2))
        world = World(scenario(4, poll_interval="1m", events=(down, *denied)))
        await world.exporter.start()
        await asyncio.sleep(3600)
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    events = [line["event"] for line in logs if line["event"].startswith("account ")]
    assert events == ["account polling started", "account unreachable", "account reachable again"]


def test_a_throttled_account_is_ok_after_its_rate_recovers_without_another_poll() -> None:
    async def main() -> list[dict[str, str]]:
        throttled = {"at": "70m", "for": "1m", "answer": "Throttling.User"}
        world = World(scenario(100, qps=10, poll_interval="1h", events=(throttled,)))
        await world.exporter.start()
        await asyncio.sleep(71 * 60)
        shown = [states_of(world)]
        world.exporter.service.schedule.pause()  # no more polls
        await asyncio.sleep(600)
        shown.append(states_of(world))
        await world.exporter.stop()
        return shown

    throttled, later = run(main())

    assert throttled == {'chatapp_account_state{state="throttled"}': "1", "chatapp_account_up{}": "1"}
    assert later == {'chatapp_account_state{state="ok"}': "1", "chatapp_account_up{}": "1"}


def test_a_space_that_is_still_rejected_after_an_outage_of_the_account_is_logged() -> None:
    async def main() -> None:
        down = {"at": "10m", "for": "10m", "answer": "InternalError"}
        rejected = {"at": "15m", "for": "30m", "space": 15, "answer": "Unknown.ResourceOwnerId"}
        world = World(scenario(20, qps=10, poll_interval="1m", events=(down, rejected)))
        await world.exporter.start()
        await asyncio.sleep(3600)
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    events = [line["event"] for line in logs if line.get("reason") == "rejected" or "reachable" in line["event"]]
    assert events == ["account unreachable", "account reachable again", "space polls failing"]


def test_all_spaces_are_polled_immediately_after_an_outage() -> None:
    async def main() -> World:
        world = World(
            scenario(
                50, qps=10, poll_interval="1h", events=({"at": "2h", "for": "3h", "answer": "ServiceUnavailable"},)
            )
        )
        await world.exporter.start()
        await asyncio.sleep(6 * 3600)
        await world.exporter.stop()
        return world

    world = run(main())
    recovered_at = next(at for at, _ in world.polls if at >= 5 * 3600)

    assert len({space for at, space in world.polls if recovered_at <= at < recovered_at + 6}) == 50


def test_a_retry_uses_a_permit_and_is_counted() -> None:
    stale = {"at": "0s", "answer": "InvalidTimeStamp.Expired"}

    async def main() -> tuple[list[float], list[str]]:
        world = World(scenario(1, qps=0.5, poll_interval="5m", events=(stale,)))
        await world.exporter.start()
        await asyncio.sleep(10)
        await world.exporter.stop()
        return [at for at, _ in world.polls], world.samples("chatapp_api_requests_total")

    times, requests = run(main())

    assert [round(at, 3) for at in times] == [0, 2]
    assert requests == ['chatapp_api_requests_total{code="InvalidTimeStamp.Expired"} 2.0']


def test_a_probe_of_a_denied_account_is_a_single_request() -> None:
    stale = {"at": "0s", "answer": "InvalidTimeStamp.Expired"}

    async def main() -> list[float]:
        world = World(scenario(3, poll_interval="5m", events=(stale,)))
        await world.exporter.start()
        await asyncio.sleep(1000)
        await world.exporter.stop()
        assert world.samples("chatapp_account_up") == ["chatapp_account_up{} 0"]
        return [at for at, _ in world.polls]

    polls = run(main())

    assert len([at for at in polls if at < 2]) == 6  # three spaces with one retry each, before the account is denied
    assert [round(at) for at in polls if at > 2] == [400, 800]


def test_a_stop_does_not_wait_for_permits() -> None:
    throttled = {"at": "0s", "answer": "Throttling.User"}

    async def main() -> float:
        world = World(scenario(40, qps=10, poll_interval="5s", events=(throttled,)))
        await world.exporter.start()
        await asyncio.sleep(20.2)
        before = world.clock.monotonic()
        await world.exporter.stop()
        return world.clock.monotonic() - before

    assert run(main()) < 0.5


def test_an_exception_after_a_poll_does_not_stop_later_polls() -> None:
    outcomes: list[Outcome] = []

    def fails_once(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 1:
            raise ZeroDivisionError

    async def main() -> None:
        clock, schedule = VirtualClock(), Schedule(VirtualClock())
        account = CamsAccount.model_validate({"name": "acme", "poll_interval": "1m", "qps": 1})
        transport = httpx.MockTransport(
            lambda _: httpx.Response(200, stream=httpx.ByteStream(b'{"Code": "OK", "PhoneNumbers": []}'))
        )
        async with httpx.AsyncClient(transport=transport) as http:
            budget = Budget(account.qps, clock)
            source = CamsSource(http, account.endpoint, StaticCredentials(Credentials("id", "secret")), clock)
            poller = Poller(
                account.name, source, budget, Budget(10, clock), clock, Instruments(["acme"]), lambda _: False
            )
            polling = AccountPolling(account, poller, budget, schedule, clock, fails_once, Random(1))
            schedule.start()
            polling.start({})
            await asyncio.sleep(200)
            await polling.stop()
            await schedule.stop()

    run(main())

    assert len(outcomes) == 4


def test_account_and_space_names_with_slashes_are_not_confused() -> None:
    async def main() -> int:
        world = World(scenario(1))
        account = world.settings.accounts[0]
        space = account.polled_spaces[0]
        accounts = [
            account.model_copy(update={"name": "a", "spaces": [replace(space, id="b/c")]}),
            account.model_copy(update={"name": "a/b", "spaces": [replace(space, id="c")]}),
        ]
        world = World(scenario(1), accounts=accounts)
        await world.exporter.start()
        await asyncio.sleep(1)
        await world.exporter.stop()
        return world.exporter.view.unpolled()

    assert run(main()) == 0
