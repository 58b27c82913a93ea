"""Space discovery: discovered spaces are polled like configured spaces, and a failed list removes no space."""

import asyncio
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hostile import max_per_second
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs
from virtual_time import START, VirtualClock, run
from world import World, scenario

from exporter.config.effective import Shard
from exporter.config.settings import Settings
from exporter.metrics.instruments import Instruments
from exporter.polling.budget import Budget
from exporter.polling.discovery import Discovery
from exporter.polling.poller import Poller
from exporter.simulator.demo import demo_settings
from exporter.simulator.fleet import Fleet
from exporter.source import Attempt, Source
from exporter.sources.cams.settings import CamsAccount, CamsSpace
from exporter.web.routes import create_app

LIST_DENIED = {"answer": "NoPermission", "action": "ListInstance"}


def world_with_discovery(spaces: int, *configured: int, state_file: Path | None = None, **account: Any) -> World:
    """A world with one account that has `spaces` spaces and uses discovery. `configured` are the numbers of the spaces
    that are configured as well, counted from 1."""
    fleet = scenario(spaces, **account)
    settings = demo_settings(fleet, "http://127.0.0.1:1")
    (account_settings,) = settings.accounts
    configured_spaces = [account_settings.polled_spaces[number - 1] for number in configured]
    accounts = [account_settings.model_copy(update={"discover": True, "spaces": configured_spaces or None})]
    return World(fleet, settings=settings, accounts=accounts, state_file=state_file and str(state_file))


def listed_ids(world: World) -> list[str]:
    return [space.id for space in world.api.fleet.spaces["acme"]]


def gaps(times: list[float]) -> set[float]:
    return {round(later - earlier, 1) for earlier, later in pairwise(times)}


@dataclass(frozen=True)
class Scrape:
    """The spaces of a scrape and its discovery metrics. A list is empty if the metric has no series."""

    spaces: set[str]
    discovery_up: list[float]
    last_success: list[float]
    discovered: list[float]


def scrape(world: World) -> Scrape:
    exposition = b"".join(world.exporter.exposition(openmetrics=False)).decode()
    spaces = re.findall(r'chatapp_space_up{.*space="([^"]*)"', exposition)
    names = ("discovery_up", "discovery_last_success", "discovered_spaces")
    samples = (world.samples(f"chatapp_account_{name}") for name in names)
    return Scrape(set(spaces), *([float(line.rsplit(" ", 1)[1]) for line in lines] for lines in samples))


async def run_and_scrape(world: World, *times: float) -> list[Scrape]:
    """Start the exporter if the virtual time is 0. Scrape at these virtual times in seconds, then stop the exporter."""
    if not world.clock.monotonic():
        await world.exporter.start()
    scrapes = []
    for time in times:
        await asyncio.sleep(time - world.clock.monotonic())
        scrapes.append(scrape(world))
    await world.exporter.stop()
    return scrapes


def test_without_discovery_no_space_is_listed_and_no_discovery_metric_is_exported() -> None:
    async def main() -> tuple[World, list[Scrape]]:
        world = World(scenario(3))
        return world, await run_and_scrape(world, 2 * 3600)

    world, (after,) = run(main())

    assert world.list_requests == []
    assert after == Scrape(set(listed_ids(world)), [], [], [])


def test_listed_spaces_are_polled_and_configured_spaces_keep_their_names_and_labels() -> None:
    async def main() -> tuple[World, list[str], list[Scrape]]:
        world = world_with_discovery(120, poll_interval="5m", qps=10)
        (account,) = world.settings.accounts
        named = CamsSpace(id=listed_ids(world)[2], name="Our name", labels={"team": "emea"})
        account = account.model_copy(update={"spaces": [named, CamsSpace(id="not-listed")]})
        world.settings = world.settings.model_copy(update={"accounts": [account]})
        world.exporter = world.fresh_exporter()
        scrapes = await run_and_scrape(world, 30)
        return world, b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines(), scrapes

    world, lines, (after,) = run(main())
    ids = listed_ids(world)

    assert [number for _, number in world.list_requests] == [1, 2, 3]
    assert after.spaces == {space for _, space in world.polls} == {*ids, "not-listed"}
    assert (after.discovery_up, after.discovered) == ([1], [120])
    assert START <= after.last_success[0] <= START + 2
    assert 'chatapp_account_spaces{account="acme"} 121' in lines
    assert f'chatapp_space_info{{account="acme",space="{ids[2]}",name="Our name",team="emea"}} 1' in lines
    name = world.api.fleet.spaces["acme"][0].name
    assert f'chatapp_space_info{{account="acme",space="{ids[0]}",name="{name}"}} 1' in lines


def test_the_list_after_one_hour_adds_new_spaces_and_removes_deleted_spaces() -> None:
    async def main() -> tuple[World, Scrape, Scrape, str, str]:
        world = world_with_discovery(5, poll_interval="5m")
        fleet = world.api.fleet.spaces["acme"]
        added, deleted = fleet.pop(), fleet[0]
        await world.exporter.start()
        await asyncio.sleep(1800)
        before = scrape(world)
        fleet[:] = [*fleet[1:], added]
        (after,) = await run_and_scrape(world, 4210)
        return world, before, after, added.id, deleted.id

    world, before, after, added, deleted = run(main())

    assert before.spaces == {*listed_ids(world), deleted} - {added}
    assert after.spaces == set(listed_ids(world))
    assert [round(at) for at, _ in world.list_requests] == [0, 3600]
    assert min(world.polls_of(added)) < 3602
    assert max(world.polls_of(deleted)) < 3601
    for space in after.spaces - {added}:  # still polled once per interval
        assert gaps(world.polls_of(space)[1:]) == {300.0}


def test_a_failed_discovery_keeps_all_spaces_is_logged_and_is_retried_with_backoff() -> None:
    async def main() -> tuple[World, list[Scrape], list[str]]:
        world = world_with_discovery(5, 1, poll_interval="5m", events=({"at": "30m", "for": "2h", **LIST_DENIED},))
        scrapes = await run_and_scrape(world, 1800, 7200, 12_600)
        return world, scrapes, world.samples("chatapp_account_up") + world.samples("chatapp_space_up")

    with capture_logs() as logs:
        world, (healthy, failing, recovered), up = run(main())
    pauses = [later - at for at, later in pairwise(at for at, _ in world.list_requests[1:])]

    assert healthy.spaces == failing.spaces == recovered.spaces == set(listed_ids(world))
    assert (healthy.discovery_up, failing.discovery_up, recovered.discovery_up) == ([1], [0], [1])
    assert (failing.last_success, failing.discovered) == (healthy.last_success, healthy.discovered)
    assert recovered.last_success[0] > START + 9000
    for pause, max_pause in zip(pauses, (10, 20, 40, 80, 160, 300, 300), strict=False):
        assert max_pause / 2 <= pause <= max_pause + 0.1
    assert up == ["chatapp_account_up{} 1"] + ["chatapp_space_up{} 1"] * 5
    logged = [(line["event"], line.get("code")) for line in logs if "space discovery" in line["event"]]
    assert logged == [("space discovery failed", "NoPermission"), ("space discovery recovered", None)]


def test_poll_and_list_requests_together_stay_within_the_budget() -> None:
    async def main() -> tuple[World, list[str]]:
        failing = {"at": "1h", **LIST_DENIED}
        world = world_with_discovery(300, poll_interval="30s", qps=5, latency="300ms", events=(failing,))
        await run_and_scrape(world, 4200)
        return world, world.samples("chatapp_api_requests_total")

    world, request_counts = run(main())

    assert len(world.list_requests) > 12
    assert max_per_second(world.api.arrivals) <= 5
    assert sum(float(line.split(" ")[1]) for line in request_counts) == len(world.polls) + len(world.list_requests)


CONTOSO = {"InstanceId": "1", "InstanceName": "Contoso", "CustSpaceId": "cams-1", "ChannelType": "WHATSAPP"}


def list_response(*entries: object, **fields: Any) -> Response:
    return JSONResponse({"Code": "OK", "Data": list(entries), "TotalCount": len(entries), **fields})


@pytest.mark.parametrize(
    "response",
    [
        Response(b"", 200),
        Response(b"<html>", 200),
        Response(b"<html>", 502),
        JSONResponse([]),
        JSONResponse({"Code": "OK"}),
        JSONResponse({"Data": [], "TotalCount": 0, "Success": True}),
        JSONResponse({"code": "OK", "data": [], "totalCount": 0}),
        list_response(),
        list_response(Data=None),
        list_response(TotalCount=5),
        list_response(None),
        list_response({}),
        list_response({**CONTOSO, "CustSpaceId": ""}),
        list_response({**CONTOSO, "ChannelType": "VIBER"}),
        list_response(CONTOSO, TotalCount=2),
        list_response(CONTOSO, TotalCount=0),
        list_response(CONTOSO, TotalCount=None),
        list_response(CONTOSO, CONTOSO),
        list_response(CONTOSO, None),
    ],
    ids=lambda response: response.body.decode()[:60] or "empty body",
)
def test_an_incomplete_or_malformed_list_removes_no_space(response: Response) -> None:
    async def main() -> tuple[World, Scrape]:
        world = world_with_discovery(3, poll_interval="5m")
        await world.exporter.start()
        await asyncio.sleep(3590)
        world.api.fixed_list_response = response
        (after,) = await run_and_scrape(world, 3690)
        return world, after

    world, after = run(main())

    assert 3 < len(world.list_requests) < 20
    assert (after.spaces, after.discovery_up, after.discovered) == (set(listed_ids(world)), [0], [3])


def test_all_pages_are_requested_again_if_the_list_changes_between_pages() -> None:
    async def main() -> tuple[World, str, list[Scrape]]:
        world = world_with_discovery(120, poll_interval="5m", latency="4s")
        await world.exporter.start()
        await asyncio.sleep(3600)
        scrapes, fleet = [], world.api.fleet.spaces["acme"]
        moved = fleet[50]  # the first space of page 2; the deletion of fleet[0] moves it to page 1
        for _ in range(100):
            await asyncio.sleep(0.5)
            scrapes.append(scrape(world))
            if [number for _, number in world.list_requests] == [1, 2, 3, 1, 2] and moved is fleet[50]:
                del fleet[0]
        return world, moved.id, [*scrapes, *await run_and_scrape(world, 3700)]

    world, moved, scrapes = run(main())

    assert [number for _, number in world.list_requests] == [1, 2, 3, 1, 2, 1, 2, 3]
    assert all(moved in scrape.spaces for scrape in scrapes)
    assert (scrapes[-1].spaces, scrapes[-1].discovery_up) == (set(listed_ids(world)), [1])


def test_discovery_of_an_account_without_instances_succeeds_and_nothing_is_polled() -> None:
    async def main() -> tuple[World, list[Scrape]]:
        world = world_with_discovery(1, poll_interval="5m")
        world.api.fleet.spaces["acme"].clear()
        return world, await run_and_scrape(world, 600)

    world, (after,) = run(main())

    assert (world.polls, len(world.list_requests)) == ([], 1)
    assert (after.spaces, after.discovery_up, after.discovered) == (set(), [1], [0])


def test_a_denied_account_is_probed_in_the_first_slot_after_each_interval_and_its_spaces_are_not_listed() -> None:
    async def main() -> tuple[World, list[Scrape], list[str]]:
        revoked = {"at": "30m", "for": "3h", "answer": "InvalidAccessKeyId.NotFound"}
        world = world_with_discovery(5, poll_interval="5m", events=(revoked,))
        await world.exporter.start()
        await asyncio.sleep(12_000)
        account_up = world.samples("chatapp_account_up")
        return world, await run_and_scrape(world, 12_599, 13_200), account_up

    world, (denied, restored), account_up = run(main())
    first, second = (at for at, _ in world.list_requests)

    assert first == 0
    assert 12_600 < second < 12_600 + 300 + 6
    assert account_up == ["chatapp_account_up{} 0"]
    # one interval of 300 s, and 60 s until the slot of the next space
    assert gaps([at for at, _ in world.polls if 2400 < at < 12_600]) == {360.0}
    assert (denied.discovery_up, restored.discovery_up) == ([1], [1])
    assert denied.spaces == restored.spaces == set(listed_ids(world))


def test_the_exporter_is_not_ready_before_all_spaces_are_listed_and_polled() -> None:
    async def main() -> list[tuple[int, str]]:
        world = world_with_discovery(5, poll_interval="5m", qps=1, events=({"at": "0s", "for": "15s", **LIST_DENIED},))
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        await world.exporter.start()
        responses = []
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            for _ in range(60):
                await asyncio.sleep(1)
                response = await http.get("/-/ready")
                responses.append((response.status_code, response.text))
        await world.exporter.stop()
        return list(dict.fromkeys(responses))

    assert run(main()) == [
        (503, "not ready: spaces of 1 accounts not listed yet\n"),
        *((503, f"not ready: {left} spaces not polled yet\n") for left in (5, 4, 3, 2, 1)),
        (200, "ready\n"),
    ]


def changed_settings(world: World, **changes: Any) -> Settings:
    """Return the settings of the world with these changes to its account."""
    (account,) = world.settings.accounts
    return world.settings.model_copy(update={"accounts": [account.model_copy(update=changes)]})


def test_a_reload_keeps_discovered_spaces() -> None:
    async def main() -> tuple[World, Scrape, list[str]]:
        world = world_with_discovery(5, 1, 2, poll_interval="5m")
        await world.exporter.start()
        await asyncio.sleep(1000)
        (account,) = world.settings.accounts
        await world.exporter.reconfigure(changed_settings(world, spaces=(account.spaces or [])[:1], qps=7.0))
        after, up = scrape(world), world.samples("chatapp_space_up")
        await run_and_scrape(world, 2000)
        return world, after, up

    world, after, up = run(main())

    assert (after.spaces, len(world.list_requests)) == (set(listed_ids(world)), 1)
    assert up == ["chatapp_space_up{} 1"] * 5
    for space in after.spaces:  # still polled once per interval
        assert gaps(world.polls_of(space)[1:]) == {300.0}


def test_a_reload_can_enable_and_disable_discovery() -> None:
    async def main() -> tuple[World, list[Scrape], list[int], Scrape]:
        world = world_with_discovery(5, 1, 2, poll_interval="5m")
        on, off = world.settings, changed_settings(world, discover=False)
        await world.exporter.reconfigure(off)
        await world.exporter.start()
        scrapes, list_requests = [], []
        for settings in (off, on, off, on):
            await world.exporter.reconfigure(settings)
            at_once = scrape(world)
            await asyncio.sleep(100)
            scrapes.append(scrape(world))
            list_requests.append(len(world.list_requests))
        await world.exporter.stop()
        return world, scrapes, list_requests, at_once

    world, scrapes, list_requests, enabled_again = run(main())
    ids = listed_ids(world)

    assert [scrape.spaces for scrape in scrapes] == [set(ids[:2]), set(ids), set(ids[:2]), set(ids)]
    assert [scrape.discovery_up for scrape in scrapes] == [[], [1], [], [1]]
    assert enabled_again == Scrape(set(ids[:2]), [0], [], [])
    assert list_requests == [0, 1, 1, 2]
    # at the start and in the regular slot
    assert [len(world.polls_of(space)) for space in ids[:2]] == [2, 2]


def test_a_reload_with_a_new_endpoint_removes_discovered_spaces_until_the_next_list() -> None:
    async def main() -> tuple[World, Scrape, list[Scrape]]:
        world = world_with_discovery(5, 1, poll_interval="5m", latency="2s")
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.reconfigure(changed_settings(world, endpoint="http://127.0.0.1:2"))
        return world, scrape(world), await run_and_scrape(world, 120)

    world, at_once, (later,) = run(main())

    assert (at_once.spaces, at_once.discovery_up, at_once.discovered) == ({world.space_id(1)}, [0], [])
    assert (later.spaces, later.discovery_up) == (set(listed_ids(world)), [1])


def test_the_list_request_in_flight_of_a_removed_account_adds_no_series_and_no_log_event() -> None:
    async def main() -> tuple[World, list[Scrape]]:
        world = world_with_discovery(5, poll_interval="5m", latency="4s")
        await world.exporter.start()
        await asyncio.sleep(1)
        globex = CamsAccount(name="globex", endpoint="http://127.0.0.1:1", access_key_id="a", access_key_secret="b")
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [globex]}))
        return world, await run_and_scrape(world, 7200)

    with capture_logs() as logs:
        world, scrapes = run(main())

    assert scrapes == [Scrape({"own"}, [], [], [])]
    assert len(world.list_requests) == 1
    assert not any("discover" in line["event"] for line in logs)


def test_the_shown_configuration_does_not_include_discovered_spaces() -> None:
    async def main() -> list[str]:
        world = world_with_discovery(3, poll_interval="5m")
        await run_and_scrape(world, 60)
        return world.exporter.view.redacted_config().splitlines()

    assert run(main()) == [
        "accounts:",
        "- name: acme",
        "  qps: 10.0",
        "  discover: true",
        "  endpoint: http://127.0.0.1:1",
        "  access_key_id: <secret>",
        "  access_key_secret: <secret>",
    ]


def test_a_sweep_polls_discovered_spaces_and_returns_discovery_errors() -> None:
    async def main(*events: Any) -> tuple[list[str], dict[str, str]]:
        world = world_with_discovery(5, 1, events=events)
        swept = await world.exporter.sweep()
        await world.exporter.stop()
        assert {polled.error for polled in swept.spaces} == {None}
        ids = [polled.view.space.id for polled in swept.spaces]
        return ids, {name: error.code for name, error in swept.discovery_errors.items()}

    ids = [space.id for space in Fleet(scenario(5)).spaces["acme"]]

    assert run(main()) == ([ids[0], *sorted(ids[1:])], {})
    assert run(main({"at": "0s", **LIST_DENIED})) == (ids[:1], {"acme": "NoPermission"})


def test_an_exception_in_on_listed_fails_that_attempt_and_the_next_attempt_succeeds() -> None:
    class ListingSource(Source):
        async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
            return {"cams-1": "Contoso"}

    calls: list[int] = []

    def fail_first_call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    async def main() -> list[tuple[str, bool]]:
        clock = VirtualClock()
        poller = Poller(
            "acme", ListingSource(), Budget(10, clock), Budget(10, clock), clock, Instruments(["acme"]), lambda _: False
        )
        discovery = Discovery(poller, lambda: True, clock, fail_first_call, Random(1), {})
        return [(str(await discovery.list_once()), discovery.result.up) for _ in range(2)]

    assert run(main()) == [("internal: ZeroDivisionError", False), ("None", True)]
    assert len(calls) == 2


def stored_spaces(file: Path) -> set[str]:
    """Return the ids of the spaces in a state file."""
    with closing(sqlite3.connect(file)) as database:
        return {space for (space,) in database.execute("SELECT space FROM space")}


def test_after_a_restart_stored_spaces_are_exported_until_the_first_complete_list(tmp_path: Path) -> None:
    failing = {"at": "590s", "for": "1000s", **LIST_DENIED}
    red = {"at": "60s", "space": 2, "number": 1, "set": {"QualityRating": "RED"}}

    async def main() -> tuple[World, list[list[str]], int, list[Scrape]]:
        world = world_with_discovery(5, 1, poll_interval="5m", state_file=tmp_path / "state.db", events=(red, failing))
        await run_and_scrape(world, 600)
        deleted = world.api.fleet.spaces["acme"].pop()
        shown = [world.samples("chatapp_phone_number")]
        world.exporter = world.fresh_exporter()
        shown.append(world.samples("chatapp_phone_number"))
        unpolled, at_once = world.exporter.view.unpolled(), scrape(world)
        await world.exporter.start()
        scrapes = [at_once, *await run_and_scrape(world, 1500, 2000)]
        assert deleted.id in scrapes[1].spaces
        return world, shown, unpolled, scrapes

    world, (before, after), unpolled, (at_once, still_failing, listed) = run(main())

    assert any('quality_rating="RED"} 1' in line for line in before)
    assert (sorted(after), unpolled) == (sorted(before), 0)
    assert len(at_once.spaces) == len(still_failing.spaces) == 5
    assert (still_failing.discovery_up, still_failing.last_success, still_failing.discovered) == ([0], [], [])
    assert listed.spaces == stored_spaces(tmp_path / "state.db") == set(listed_ids(world))
    for space in listed.spaces:  # still polled once per interval
        assert gaps(world.polls_of(space)[1:]) == {300.0}


@pytest.mark.parametrize("change", ["other endpoint", "discovery disabled", "discovery enabled"])
def test_stored_spaces_are_removed_if_endpoint_or_discovery_changed_before_a_restart(
    tmp_path: Path, change: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "other endpoint": {"endpoint": "http://127.0.0.1:2"},
        "discovery disabled": {"discover": False, "spaces": [CamsSpace(id="configured")]},
        "discovery enabled": {},
    }

    async def main() -> tuple[Scrape, set[str]]:
        world = world_with_discovery(5, state_file=tmp_path / "state.db")
        with_discovery = world.settings
        if change == "discovery enabled":
            world.settings = changed_settings(world, discover=False)
            world.exporter = world.fresh_exporter()
        await run_and_scrape(world, 60)
        world.settings = with_discovery
        world.settings = changed_settings(world, **changes[change])
        world.exporter = world.fresh_exporter()
        after = scrape(world)
        await world.exporter.stop()
        return after, stored_spaces(tmp_path / "state.db")

    after, stored = run(main())

    assert after.spaces == ({"configured"} if change == "discovery disabled" else set())
    assert stored == set()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_after_a_restart_the_exporter_is_ready_at_once_only_if_spaces_are_stored(tmp_path: Path, stored: bool) -> None:
    async def main() -> tuple[int, str]:
        world = world_with_discovery(5, state_file=tmp_path / "state.db" if stored else None)
        await run_and_scrape(world, 60)
        world.exporter = world.fresh_exporter()
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            response = await http.get("/-/ready")
        await world.exporter.stop()
        return response.status_code, response.text

    not_ready = (503, "not ready: spaces of 1 accounts not listed yet\n")
    assert run(main()) == ((200, "ready\n") if stored else not_ready)


def test_after_a_restart_stored_configured_spaces_do_not_count_as_discovered(tmp_path: Path) -> None:
    """Otherwise, each later list without spaces would count as a failure."""

    async def main() -> tuple[World, list[Scrape]]:
        world = world_with_discovery(5, 1, 2, state_file=tmp_path / "state.db")
        world.api.fixed_list_response = list_response()
        scrapes = await run_and_scrape(world, 60)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        return world, [*scrapes, *await run_and_scrape(world, 120)]

    world, (before, after) = run(main())

    assert (before.discovery_up, after.discovery_up, after.discovered) == ([1], [1], [0])
    assert after.spaces == set(listed_ids(world)[:2])


def test_a_space_deleted_from_the_configuration_before_a_restart_is_removed_if_discovery_fails(tmp_path: Path) -> None:
    async def main() -> tuple[World, Scrape]:
        world = world_with_discovery(5, 1, 2, state_file=tmp_path / "state.db", events=({"at": "0s", **LIST_DENIED},))
        await run_and_scrape(world, 60)
        (account,) = world.settings.accounts
        world.settings = changed_settings(world, spaces=(account.spaces or [])[:1])
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        (after,) = await run_and_scrape(world, 7200)
        return world, after

    world, after = run(main())

    assert after.spaces == {listed_ids(world)[0]}


def test_discovered_spaces_keep_their_names_after_a_restart(tmp_path: Path) -> None:
    async def main() -> list[list[str]]:
        world = world_with_discovery(5, 1, state_file=tmp_path / "state.db")
        await run_and_scrape(world, 60)
        before = world.samples("chatapp_space_info")
        world.exporter = world.fresh_exporter()
        after = world.samples("chatapp_space_info")
        await world.exporter.stop()
        return [sorted(before), sorted(after)]

    before, after = run(main())

    assert before == after
    assert not any('name=""' in line for line in after)


def test_the_first_complete_list_restores_access_of_a_denied_account_without_configured_spaces() -> None:
    async def main() -> tuple[World, list[Scrape], list[list[str]]]:
        revoked = {"at": "0s", "for": "1h", "answer": "InvalidAccessKeyId.NotFound"}
        world = world_with_discovery(5, 1, poll_interval="5m", events=(revoked,))
        await world.exporter.start()
        await asyncio.sleep(600)
        account_up = [world.samples("chatapp_account_up")]
        await world.exporter.reconfigure(changed_settings(world, spaces=None))
        await asyncio.sleep(1200)
        account_up.append(world.samples("chatapp_account_up"))
        scrapes = await run_and_scrape(world, 4200)
        return world, scrapes, [*account_up, world.samples("chatapp_account_up")]

    world, (after,), account_up = run(main())

    assert account_up == [["chatapp_account_up{} 0"], ["chatapp_account_up{} 0"], ["chatapp_account_up{} 1"]]
    assert (after.spaces, after.discovery_up) == (set(listed_ids(world)), [1])


def test_an_account_without_known_spaces_is_denied_until_discovery_succeeds() -> None:
    async def main() -> list[list[str]]:
        world = world_with_discovery(5, poll_interval="5m", events=({"at": "0s", "for": "30m", **LIST_DENIED},))
        await world.exporter.start()
        await asyncio.sleep(600)
        up = [world.samples("chatapp_account_up")]
        await run_and_scrape(world, 3000)
        return [*up, world.samples("chatapp_account_up")]

    assert run(main()) == [["chatapp_account_up{} 0"], ["chatapp_account_up{} 1"]]


def test_the_exporter_is_ready_with_configured_spaces_if_discovery_is_denied() -> None:
    async def main() -> int:
        world = world_with_discovery(5, 1, 2, events=({"at": "0s", **LIST_DENIED},))
        await run_and_scrape(world, 60)
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            return (await http.get("/-/ready")).status_code

    assert run(main()) == 200


def test_shards_without_an_account_are_ready_without_account_metrics_if_discovery_is_denied() -> None:
    async def main() -> list[tuple[list[str], int]]:
        world = world_with_discovery(5, 1, qps=3, events=({"at": "0s", **LIST_DENIED},))
        shards = [world.fresh_exporter(shard=Shard(number, 3)) for number in (1, 2, 3)]
        for shard in shards:
            await shard.start()
        await asyncio.sleep(600)
        results = []
        for shard in shards:
            lines = b"".join(shard.exposition(openmetrics=False)).decode().splitlines()
            transport = httpx.ASGITransport(create_app(shard.view))
            async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
                ready = (await http.get("/-/ready")).status_code
            results.append(([line for line in lines if line.startswith("chatapp_account_up{")], ready))
            await shard.stop()
        return results

    assert sorted(run(main())) == [([], 200), ([], 200), (['chatapp_account_up{account="acme"} 1'], 200)]


def test_the_exporter_is_not_ready_before_discovered_spaces_are_polled_too() -> None:
    async def main() -> tuple[int, int]:
        world = world_with_discovery(60, 1, poll_interval="5m", qps=1)
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        await world.exporter.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            for _ in range(300):
                await asyncio.sleep(1)
                status = (await http.get("/-/ready")).status_code
                if status == 200:
                    break
        polled_spaces = {space for _, space in world.polls}
        await world.exporter.stop()
        return status, len(polled_spaces)

    assert run(main()) == (200, 60)


def test_an_outage_does_not_end_the_denied_state_of_an_account() -> None:
    outage = {"at": "10m", "for": "30m", "answer": "ServiceUnavailable", "action": "ListInstance"}
    events = (outage, {"at": "0s", **LIST_DENIED})

    async def main() -> list[list[str]]:
        world = world_with_discovery(5, poll_interval="5m", events=events)
        await world.exporter.start()
        states = []
        for _ in range(3):
            await asyncio.sleep(900)
            states.append([line for line in world.samples("chatapp_account_state") if line.endswith(" 1")])
        await world.exporter.stop()
        return states

    assert run(main()) == [['chatapp_account_state{state="denied"} 1']] * 3


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response('{"Code": "InternalError"}', 503), ['chatapp_account_state{state="unreachable"} 1']),
        (Response('{"Code": "Throttling.User"}', 400), ['chatapp_account_state{state="throttled"} 1']),
        (Response('{"Code": "OK", "TotalCount": 2, "Data": []}'), []),
    ],
    ids=["server error", "throttled", "incomplete list"],
)
def test_an_account_without_known_spaces_gets_a_state_from_errors_but_not_from_an_incomplete_list(
    response: Response, expected: list[str]
) -> None:
    async def main() -> list[str]:
        world = world_with_discovery(5, poll_interval="5m")
        world.api.fixed_list_response = response
        await world.exporter.start()
        await asyncio.sleep(900)
        await world.exporter.stop()
        return [line for line in world.samples("chatapp_account_state") if line.endswith(" 1")]

    assert run(main()) == expected


@pytest.mark.parametrize("polled_again", [False, True], ids=["not polled again", "polled again"])
def test_a_space_that_changes_from_configured_to_discovered_is_kept_after_a_restart(
    tmp_path: Path, polled_again: bool
) -> None:
    async def main() -> tuple[World, Scrape]:
        failing = {"at": "700s", **LIST_DENIED}
        world = world_with_discovery(3, 1, poll_interval="5m", state_file=tmp_path / "state.db", events=(failing,))
        await world.exporter.start()
        await asyncio.sleep(650)
        world.settings = changed_settings(world, spaces=None)
        await world.exporter.reconfigure(world.settings)
        await asyncio.sleep(400 if polled_again else 1)
        await world.exporter.stop()
        await asyncio.sleep(100)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        (after,) = await run_and_scrape(world, 2000)
        return world, after

    world, after = run(main())

    assert after.spaces == set(listed_ids(world))


def test_stored_spaces_are_not_scheduled_before_the_start(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        world = world_with_discovery(5, state_file=tmp_path / "state.db")
        await run_and_scrape(world, 60)
        world.exporter = world.fresh_exporter()
        before = len(world.exporter.service.schedule)
        await world.exporter.start()
        after = len(world.exporter.service.schedule)
        await world.exporter.stop()
        return before, after

    assert run(main()) == (0, 5)
