"""The simulated API is as strict as the gateway, and does what its scenario says."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest
from virtual_time import VirtualClock, run
from world import World, scenario

from exporter.simulator.api import SimulatedApi, create_simulator
from exporter.simulator.fleet import Fleet, load_scenario
from exporter.simulator.scenario import Scenario
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import LIST_INSTANCES, QUERY_PHONE_NUMBERS, WireRequest, encode_request

KEY = Credentials("key-acme", "secret-acme")
HOST = "127.0.0.1:1"


def signed(nonce: str = "n", *, space: str | None = None, key: Credentials = KEY, skew: float = 0) -> WireRequest:
    now = VirtualClock(skew).now()
    return encode_request(HOST, QUERY_PHONE_NUMBERS, {"CustSpaceId": space}, key, now=now, nonce=nonce)


def with_header(name: str, value: str) -> Callable[[], WireRequest]:
    def tamper() -> WireRequest:
        request = signed()
        return replace(request, headers={**request.headers, name: value})

    return tamper


def without_header(name: str) -> Callable[[], WireRequest]:
    def strip() -> WireRequest:
        request = signed()
        return replace(request, headers={key: text for key, text in request.headers.items() if key != name})

    return strip


async def post(http: httpx.AsyncClient, request: WireRequest, method: str = "POST") -> httpx.Response:
    url = f"http://{HOST}/?{request.query}" if request.query else f"http://{HOST}/"
    return await http.request(method, url, headers=dict(request.headers))


async def ask(scenario: Scenario, *requests: Callable[[], WireRequest]) -> list[tuple[int, str]]:
    api = SimulatedApi(scenario, VirtualClock())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
        answers = [await post(http, request()) for request in requests]
    return [(answer.status_code, answer.json()["Code"]) for answer in answers]


def test_a_request_signed_as_it_should_be_is_answered() -> None:
    assert run(ask(scenario(1), signed)) == [(200, "OK")]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (lambda: signed(key=Credentials("key-acme", "wrong")), (400, "SignatureDoesNotMatch")),
        (lambda: signed(key=Credentials("key-nobody", "x")), (404, "InvalidAccessKeyId.NotFound")),
        (lambda: replace(signed(space="a"), query="CustSpaceId=b"), (400, "SignatureDoesNotMatch")),
        (lambda: signed(skew=-901), (400, "InvalidTimeStamp.Expired")),
        (lambda: signed(skew=901), (400, "InvalidTimeStamp.Expired")),
        (with_header("x-acs-date", "2027-01-15T08:00:01Z"), (400, "SignatureDoesNotMatch")),
        (with_header("x-acs-extra", "unsigned"), (400, "IncompleteSignature")),
        (with_header("authorization", "Bearer x"), (400, "IncompleteSignature")),
        (without_header("authorization"), (400, "IncompleteSignature")),
        (without_header("x-acs-date"), (400, "IncompleteSignature")),
        (lambda: signed(space="cams-nobody"), (400, "Unknown.ResourceOwnerId")),
    ],
)
def test_any_other_is_refused_as_the_gateway_refuses(
    request_: Callable[[], WireRequest], answer: tuple[int, str]
) -> None:
    assert run(ask(scenario(1), request_)) == [answer]


def listing(page: str, size: str = "2", channel: str = "whatsapp", nonce: str = "n") -> WireRequest:
    parameters = {"ChannelType": channel, "PageIndex": page, "PageSize": size}
    return encode_request(HOST, LIST_INSTANCES, parameters, KEY, now=VirtualClock().now(), nonce=nonce)


def test_instances_are_listed_in_pages_and_a_page_that_is_not_there_is_empty() -> None:
    async def main() -> list[Any]:
        api = SimulatedApi(scenario(3), VirtualClock())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
            return [(await post(http, listing(page, nonce=page))).json() for page in "124"]

    pages = run(main())
    spaces = [(space.id, space.name) for space in Fleet(scenario(3)).spaces["acme"]]

    listed = [[(entry["CustSpaceId"], entry["InstanceName"]) for entry in page["Data"]] for page in pages]
    assert listed == [spaces[:2], spaces[2:], []]
    assert [(page["Code"], page["TotalCount"]) for page in pages] == [("OK", 3)] * 3
    assert {(entry["ChannelType"], entry["State"]) for page in pages for entry in page["Data"]} == {
        ("WHATSAPP", "published")
    }


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (lambda: listing("0"), (400, "InvalidParameter")),
        (lambda: listing("1", "101"), (400, "InvalidParameter")),
        (lambda: listing("x"), (400, "InvalidParameter")),
        (lambda: replace(listing("1"), query="PageIndex=1&PageSize=2"), (400, "SignatureDoesNotMatch")),
    ],
)
def test_a_listing_that_is_not_as_it_should_be_is_refused(
    request_: Callable[[], WireRequest], answer: tuple[int, str]
) -> None:
    assert run(ask(scenario(1), request_)) == [answer]


def test_a_listing_counts_against_the_same_limit() -> None:
    pages = [(lambda n=n: listing("1", nonce=f"p{n}")) for n in range(5)]
    polls = [(lambda n=n: signed(f"q{n}")) for n in range(6)]

    assert run(ask(scenario(1), *pages, *polls)) == [(200, "OK")] * 10 + [(400, "Throttling.User")]


def test_an_account_can_refuse_its_listing_alone() -> None:
    events = ({"at": "0s", "answer": "NoPermission", "action": "ListInstance"},)

    assert run(ask(scenario(1, events=events), lambda: listing("1"), lambda: signed("other"))) == [
        (403, "NoPermission"),
        (200, "OK"),
    ]


def test_an_answer_to_one_action_is_an_account_s() -> None:
    with pytest.raises(ValueError, match="one of answer"):
        scenario(1, events=({"at": "0s", "space": 1, "answer": "NoPermission", "action": "ListInstance"},))


def test_a_nonce_is_taken_once() -> None:
    assert run(ask(scenario(1), signed, signed)) == [(200, "OK"), (400, "SignatureNonceUsed")]


def test_the_eleventh_request_within_a_second_is_throttled_and_told_how_long_to_wait() -> None:
    async def main() -> list[httpx.Response]:
        api = SimulatedApi(scenario(1), VirtualClock())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
            answers = [await post(http, signed(str(n))) for n in range(11)]
            await asyncio.sleep(1)
            return [*answers, await post(http, signed("later"))]

    *admitted, throttled, later = run(main())

    assert {answer.status_code for answer in admitted} == {200}
    assert (throttled.status_code, throttled.json()["Code"]) == (400, "Throttling.User")
    assert throttled.headers["x-acs-retry-after"] == "1000"
    assert later.status_code == 200


def test_the_limit_is_each_account_s_own() -> None:
    account = {"access_key_secret": "secret-acme", "spaces": 1}
    two = Scenario.model_validate(
        {"accounts": [{"name": n, "access_key_id": f"key-{n}", **account} for n in ("acme", "globex")]}
    )

    def of(name: str, nonce: int) -> Callable[[], WireRequest]:
        return lambda: signed(f"{name}{nonce}", key=Credentials(f"key-{name}", "secret-acme"))

    answers = run(ask(two, *(of(name, n) for n in range(10) for name in ("acme", "globex"))))

    assert answers == [(200, "OK")] * 20


def test_the_same_seed_gives_the_same_fleet_and_another_seed_another() -> None:
    def fleet(seed: int) -> list[Any]:
        spaces = Fleet(load_scenario(None).model_copy(update={"seed": seed})).spaces.values()
        return [(space.id, space.name, space.numbers) for of_account in spaces for space in of_account]

    assert fleet(7) == fleet(7)
    assert fleet(7) != fleet(8)


def test_a_number_moves_to_another_space_as_it_is_then_and_a_space_can_be_emptied() -> None:
    events = (
        {"at": "10s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},
        {"at": "20s", "for": "10s", "space": 1, "number": 1, "move_to": 2},
        {"at": "40s", "space": 2, "remove": True},
    )
    one, two = Fleet(scenario(2, events=events)).spaces["acme"]
    moved = one.numbers[0]["PhoneNumber"]

    def listed(elapsed: float) -> tuple[bool, bool]:
        return tuple(moved in [n["PhoneNumber"] for n in space.numbers_at(elapsed)] for space in (one, two))  # type: ignore[return-value]

    assert [listed(elapsed) for elapsed in (0, 19, 20, 29, 30)] == [
        (True, False),
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    assert two.numbers_at(25)[-1] == {**one.numbers[0], "QualityRating": "RED"}
    assert two.numbers_at(40) == []
    assert len(one.numbers_at(40)) == len(one.numbers)


def test_an_account_without_spaces_in_its_configuration_is_asked_for_its_own_numbers() -> None:
    async def main() -> list[str]:
        world = World(scenario(1))
        own = world.settings.accounts[0].model_copy(update={"spaces": None})
        world = World(scenario(1), accounts=[own])
        await world.exporter.start()
        await asyncio.sleep(1)
        await world.exporter.stop()
        assert world.polls[0][1] == ""
        return b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()

    assert 'chatapp_space_up{account="acme",space="own"} 1' in run(main())


def number_event(at: str, **fields: str) -> Mapping[str, Any]:
    return {"at": at, "space": 1, "number": 1, "set": fields}


def test_a_scenario_plays_through_to_the_metrics() -> None:
    events = (
        number_event("30s", QualityRating="YELLOW"),
        number_event("60s", QualityRating="RED"),
        number_event("60s", MessagingLimitTier="TIER_250"),
        {"at": "90s", "space": 1, "answer": "Authentication.NoAuth"},
    )

    async def main() -> list[list[str]]:
        world = World(scenario(1, poll_interval="5s", events=events))
        await world.exporter.start()
        seen = []
        for _ in range(4):
            await asyncio.sleep(25)
            first = world.api.fleet.spaces["acme"][0].numbers[0]["PhoneNumber"]
            lines = [line for line in world.samples("chatapp_phone_number") if first in line]
            rating = [
                line.split('rating="')[1].split('"')[0] for line in lines if "rating=" in line and line[-2:] == " 1"
            ]
            limit = [line.split(" ")[-1] for line in lines if line.startswith("chatapp_phone_number_messaging_limit{")]
            seen.append(rating + limit[-1:] + [world.samples("chatapp_space_up")[0][-1]])
        await world.exporter.stop()
        return seen

    assert [(rating, up) for rating, _, up in run(main())] == [
        ("GREEN", "1"),
        ("YELLOW", "1"),
        ("RED", "1"),
        ("RED", "0"),
    ]


def test_a_throttled_minute_is_counted_halves_the_rate_and_passes() -> None:
    throttled = {"at": "60s", "answer": "Throttling.User", "for": "60s"}

    async def main() -> tuple[float, float, float]:
        world = World(scenario(40, qps=10, poll_interval="5s", events=(throttled,)))
        await world.exporter.start()
        await asyncio.sleep(115)
        (account,) = world.exporter.view.accounts()
        lowered = account.current_qps
        counted = float(world.samples("chatapp_api_throttled_total")[0].split(" ")[-1])
        await asyncio.sleep(300)
        (account,) = world.exporter.view.accounts()
        await world.exporter.stop()
        return lowered, counted, account.current_qps

    lowered, counted, after = run(main())

    assert lowered < 5
    assert counted > 0
    assert after == 10


def test_a_throttled_poll_keeps_the_last_numbers_and_marks_the_space_down() -> None:
    throttled = {"at": "60s", "answer": "Throttling.User"}

    async def main() -> tuple[list[str], list[str]]:
        world = World(scenario(1, poll_interval="30s", events=(throttled,)))
        await world.exporter.start()
        await asyncio.sleep(120)
        await world.exporter.stop()
        return world.samples("chatapp_space_up"), world.samples("chatapp_phone_number_status")

    up, status = run(main())

    assert up == ["chatapp_space_up{} 0"]
    assert 'status="CONNECTED"' in status[0]


def test_numbers_leave_after_max_age_without_a_success_and_the_space_stays() -> None:
    revoked = {"at": "60s", "answer": "NoPermission"}

    async def main() -> tuple[list[str], list[str], list[str]]:
        world = World(scenario(1, poll_interval="30s", events=(revoked,)), max_age=600.0)
        await world.exporter.start()
        await asyncio.sleep(580)
        before = world.samples("chatapp_phone_number_status")
        await asyncio.sleep(120)
        await world.exporter.stop()
        return before, world.samples("chatapp_phone_number_status"), world.samples("chatapp_space_up")

    before, after, up = run(main())

    assert before
    assert (after, up) == ([], ["chatapp_space_up{} 0"])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"account": "acmee", "answer": "X"}, "scenario: events[0].account: expected one of acme, found acmee"),
        ({"space": 2, "answer": "X"}, "scenario: events[0].space: expected 1 to 1, found 2"),
        ({"space": 1, "number": 1, "move_to": 3}, "scenario: events[0].move_to: expected 1 to 1, found 3"),
    ],
)
def test_an_event_for_what_the_fleet_does_not_have_is_an_error(event: Mapping[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="expected") as caught:
        Fleet(scenario(1, events=({"at": "0s", **event},)))

    assert str(caught.value) == message
