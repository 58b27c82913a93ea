"""The simulated API: it rejects invalid requests as the real gateway does, and plays the events of its scenario."""

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


async def send_requests(scenario: Scenario, *requests: Callable[[], WireRequest]) -> list[tuple[int, str]]:
    api = SimulatedApi(scenario, VirtualClock())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
        responses = [await post(http, request()) for request in requests]
    return [(response.status_code, response.json()["Code"]) for response in responses]


def test_a_correctly_signed_request_succeeds() -> None:
    assert run(send_requests(scenario(1), signed)) == [(200, "OK")]


@pytest.mark.parametrize(
    ("build_request", "expected"),
    [
        (lambda: signed(key=Credentials("key-acme", "wrong")), (400, "SignatureDoesNotMatch")),
        (lambda: signed(key=Credentials("key-unknown", "x")), (404, "InvalidAccessKeyId.NotFound")),
        (lambda: replace(signed(space="a"), query="CustSpaceId=b"), (400, "SignatureDoesNotMatch")),
        (lambda: signed(skew=-901), (400, "InvalidTimeStamp.Expired")),
        (lambda: signed(skew=901), (400, "InvalidTimeStamp.Expired")),
        (with_header("x-acs-date", "2027-01-15T08:00:01Z"), (400, "SignatureDoesNotMatch")),
        (with_header("x-acs-extra", "unsigned"), (400, "IncompleteSignature")),
        (with_header("authorization", "Bearer x"), (400, "IncompleteSignature")),
        (without_header("authorization"), (400, "IncompleteSignature")),
        (without_header("x-acs-date"), (400, "IncompleteSignature")),
        (lambda: signed(space="cams-unknown"), (400, "Unknown.ResourceOwnerId")),
    ],
)
def test_an_invalid_request_is_rejected_with_the_error_code_of_the_gateway(
    build_request: Callable[[], WireRequest], expected: tuple[int, str]
) -> None:
    assert run(send_requests(scenario(1), build_request)) == [expected]


def list_request(page: str, size: str = "2", channel: str = "whatsapp", nonce: str = "n") -> WireRequest:
    parameters = {"ChannelType": channel, "PageIndex": page, "PageSize": size}
    return encode_request(HOST, LIST_INSTANCES, parameters, KEY, now=VirtualClock().now(), nonce=nonce)


def test_instances_are_listed_in_pages_and_a_page_after_the_last_page_is_empty() -> None:
    async def main() -> list[Any]:
        api = SimulatedApi(scenario(3), VirtualClock())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
            return [(await post(http, list_request(page, nonce=page))).json() for page in "124"]

    pages = run(main())
    spaces = [(space.id, space.name) for space in Fleet(scenario(3)).spaces["acme"]]

    listed = [[(entry["CustSpaceId"], entry["InstanceName"]) for entry in page["Data"]] for page in pages]
    assert listed == [spaces[:2], spaces[2:], []]
    assert [(page["Code"], page["TotalCount"]) for page in pages] == [("OK", 3)] * 3
    assert {(entry["ChannelType"], entry["State"]) for page in pages for entry in page["Data"]} == {
        ("WHATSAPP", "published")
    }


@pytest.mark.parametrize(
    ("build_request", "expected"),
    [
        (lambda: list_request("0"), (400, "InvalidParameter")),
        (lambda: list_request("1", "101"), (400, "InvalidParameter")),
        (lambda: list_request("x"), (400, "InvalidParameter")),
        (lambda: replace(list_request("1"), query="PageIndex=1&PageSize=2"), (400, "SignatureDoesNotMatch")),
    ],
)
def test_an_invalid_list_request_is_rejected(
    build_request: Callable[[], WireRequest], expected: tuple[int, str]
) -> None:
    assert run(send_requests(scenario(1), build_request)) == [expected]


def test_list_requests_and_queries_have_the_same_rate_limit() -> None:
    pages = [(lambda n=n: list_request("1", nonce=f"p{n}")) for n in range(5)]
    polls = [(lambda n=n: signed(f"q{n}")) for n in range(6)]

    assert run(send_requests(scenario(1), *pages, *polls)) == [(200, "OK")] * 10 + [(400, "Throttling.User")]


def test_an_event_can_deny_only_the_list_requests_of_an_account() -> None:
    events = ({"at": "0s", "answer": "NoPermission", "action": "ListInstance"},)

    assert run(send_requests(scenario(1, events=events), lambda: list_request("1"), lambda: signed("other"))) == [
        (403, "NoPermission"),
        (200, "OK"),
    ]


def test_an_event_with_an_action_for_a_single_space_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of answer"):
        scenario(1, events=({"at": "0s", "space": 1, "answer": "NoPermission", "action": "ListInstance"},))


def test_a_nonce_is_accepted_only_once() -> None:
    assert run(send_requests(scenario(1), signed, signed)) == [(200, "OK"), (400, "SignatureNonceUsed")]


def test_the_eleventh_request_within_a_second_is_throttled_with_a_retry_after_header() -> None:
    async def main() -> list[httpx.Response]:
        api = SimulatedApi(scenario(1), VirtualClock())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_simulator(api))) as http:
            responses = [await post(http, signed(str(n))) for n in range(11)]
            await asyncio.sleep(1)
            return [*responses, await post(http, signed("later"))]

    *admitted, throttled, later = run(main())

    assert {response.status_code for response in admitted} == {200}
    assert (throttled.status_code, throttled.json()["Code"]) == (400, "Throttling.User")
    assert throttled.headers["x-acs-retry-after"] == "1000"
    assert later.status_code == 200


def test_each_account_has_its_own_rate_limit() -> None:
    account = {"access_key_secret": "secret-acme", "spaces": 1}
    two = Scenario.model_validate(
        {"accounts": [{"name": n, "access_key_id": f"key-{n}", **account} for n in ("acme", "globex")]}
    )

    def request_of(name: str, nonce: int) -> Callable[[], WireRequest]:
        return lambda: signed(f"{name}{nonce}", key=Credentials(f"key-{name}", "secret-acme"))

    responses = run(send_requests(two, *(request_of(name, n) for n in range(10) for name in ("acme", "globex"))))

    assert responses == [(200, "OK")] * 20


def test_the_same_seed_creates_the_same_fleet_and_another_seed_a_different_fleet() -> None:
    def fleet(seed: int) -> list[Any]:
        accounts = Fleet(load_scenario(None).model_copy(update={"seed": seed})).spaces.values()
        return [(space.id, space.name, space.numbers) for spaces in accounts for space in spaces]

    assert fleet(7) == fleet(7)
    assert fleet(7) != fleet(8)


def test_a_moved_number_keeps_its_fields_and_all_numbers_of_a_space_can_be_removed() -> None:
    events = (
        {"at": "10s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},
        {"at": "20s", "for": "10s", "space": 1, "number": 1, "move_to": 2},
        {"at": "40s", "space": 2, "remove": True},
    )
    first, second = Fleet(scenario(2, events=events)).spaces["acme"]
    moved = first.numbers[0]["PhoneNumber"]

    def lists_moved_number(elapsed: float) -> tuple[bool, bool]:
        return tuple(moved in [n["PhoneNumber"] for n in space.numbers_at(elapsed)] for space in (first, second))  # type: ignore[return-value]

    assert [lists_moved_number(elapsed) for elapsed in (0, 19, 20, 29, 30)] == [
        (True, False),
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    assert second.numbers_at(25)[-1] == {**first.numbers[0], "QualityRating": "RED"}
    assert second.numbers_at(40) == []
    assert len(first.numbers_at(40)) == len(first.numbers)


def test_an_account_without_configured_spaces_is_polled_for_its_own_numbers() -> None:
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


def test_the_metrics_show_the_events_of_a_scenario() -> None:
    events = (
        number_event("30s", QualityRating="YELLOW"),
        number_event("60s", QualityRating="RED"),
        number_event("60s", MessagingLimitTier="TIER_250"),
        {"at": "90s", "space": 1, "answer": "Authentication.NoAuth"},
    )

    async def main() -> list[list[str]]:
        world = World(scenario(1, poll_interval="5s", events=events))
        await world.exporter.start()
        results = []
        for _ in range(4):
            await asyncio.sleep(25)
            first = world.api.fleet.spaces["acme"][0].numbers[0]["PhoneNumber"]
            lines = [line for line in world.samples("chatapp_phone_number") if first in line]
            rating = [
                line.split('rating="')[1].split('"')[0] for line in lines if "rating=" in line and line[-2:] == " 1"
            ]
            limit = [line.split(" ")[-1] for line in lines if line.startswith("chatapp_phone_number_messaging_limit{")]
            results.append(rating + limit[-1:] + [world.samples("chatapp_space_up")[0][-1]])
        await world.exporter.stop()
        return results

    assert [(rating, up) for rating, _, up in run(main())] == [
        ("GREEN", "1"),
        ("YELLOW", "1"),
        ("RED", "1"),
        ("RED", "0"),
    ]


def test_throttling_is_counted_and_halves_the_rate_until_the_rate_recovers() -> None:
    throttled = {"at": "60s", "answer": "Throttling.User", "for": "60s"}

    async def main() -> tuple[float, float, float]:
        world = World(scenario(40, qps=10, poll_interval="5s", events=(throttled,)))
        await world.exporter.start()
        await asyncio.sleep(115)
        (account,) = world.exporter.view.accounts()
        lowered = account.current_qps
        throttled_requests = float(world.samples("chatapp_api_throttled_total")[0].split(" ")[-1])
        await asyncio.sleep(300)
        (account,) = world.exporter.view.accounts()
        await world.exporter.stop()
        return lowered, throttled_requests, account.current_qps

    lowered, throttled_requests, after = run(main())

    assert lowered < 5
    assert throttled_requests > 0
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


def test_number_series_are_removed_after_max_age_without_a_success_and_space_up_is_kept() -> None:
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
def test_an_event_for_an_unknown_account_or_space_is_an_error(event: Mapping[str, Any], message: str) -> None:
    with pytest.raises(Exception, match="expected") as error:
        Fleet(scenario(1, events=({"at": "0s", **event},)))

    assert str(error.value) == message
