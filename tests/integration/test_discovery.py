"""Spaces that are discovered: polled beside the configured ones, and never taken away by a failure."""

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
from hostile import busiest_second
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

DENIED = {"answer": "NoPermission", "action": "ListInstance"}


def discovering(spaces: int, *configured: int, state_file: Path | None = None, **account: Any) -> World:
    """An account of so many spaces that discovers them; these of them (from 1) are configured too."""
    fleet = scenario(spaces, **account)
    settings = demo_settings(fleet, "http://127.0.0.1:1")
    (polled,) = settings.accounts
    chosen = [polled.polled_spaces[number - 1] for number in configured]
    accounts = [polled.model_copy(update={"discover": True, "spaces": chosen or None})]
    return World(fleet, settings=settings, accounts=accounts, state_file=state_file and str(state_file))


def fleet_of(world: World) -> list[str]:
    return [space.id for space in world.api.fleet.spaces["acme"]]


def gaps(moments: list[float]) -> set[float]:
    return {round(later - earlier, 1) for earlier, later in pairwise(moments)}


@dataclass(frozen=True)
class Seen:
    """What a scrape shows: the spaces, and what is said of discovery (1 or 0, when it succeeded last, how many)."""

    spaces: set[str]
    up: list[float]
    last_success: list[float]
    discovered: list[float]


def seen(world: World) -> Seen:
    page = b"".join(world.exporter.exposition(openmetrics=False)).decode()
    spaces = re.findall(r'chatapp_space_up{.*space="([^"]*)"', page)
    names = ("discovery_up", "discovery_last_success", "discovered_spaces")
    samples = (world.samples(f"chatapp_account_{name}") for name in names)
    return Seen(set(spaces), *([float(line.rsplit(" ", 1)[1]) for line in lines] for lines in samples))


async def played(world: World, *until: float) -> list[Seen]:
    """What a scrape shows at each of these times, in seconds from the start, and then the end."""
    if not world.clock.monotonic():
        await world.exporter.start()
    scrapes = []
    for moment in until:
        await asyncio.sleep(moment - world.clock.monotonic())
        scrapes.append(seen(world))
    await world.exporter.stop()
    return scrapes


def test_without_discovery_nothing_is_listed_and_nothing_is_said_of_it() -> None:
    async def main() -> tuple[World, list[Seen]]:
        world = World(scenario(3))
        return world, await played(world, 2 * 3600)

    world, (after,) = run(main())

    assert world.list_requests == []
    assert after == Seen(set(fleet_of(world)), [], [], [])


def test_three_pages_are_polled_beside_the_configured_spaces_which_keep_their_names_and_labels() -> None:
    async def main() -> tuple[World, list[str], list[Seen]]:
        world = discovering(120, poll_interval="5m", qps=10)
        (account,) = world.settings.accounts
        own = CamsSpace(id=fleet_of(world)[2], name="Our name", labels={"team": "emea"})
        account = account.model_copy(update={"spaces": [own, CamsSpace(id="elsewhere")]})
        world.settings = world.settings.model_copy(update={"accounts": [account]})
        world.exporter = world.fresh_exporter()
        scrapes = await played(world, 30)
        return world, b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines(), scrapes

    world, page, (after,) = run(main())
    ids = fleet_of(world)

    assert [number for _, number in world.list_requests] == [1, 2, 3]
    assert after.spaces == {space for _, space in world.polls} == {*ids, "elsewhere"}
    assert (after.up, after.discovered) == ([1], [120])
    assert START <= after.last_success[0] <= START + 2
    assert 'chatapp_account_spaces{account="acme"} 121' in page
    assert f'chatapp_space_info{{account="acme",space="{ids[2]}",name="Our name",team="emea"}} 1' in page
    name = world.api.fleet.spaces["acme"][0].name
    assert f'chatapp_space_info{{account="acme",space="{ids[0]}",name="{name}"}} 1' in page


def test_an_hour_later_a_new_space_has_come_and_one_that_is_gone_has_left() -> None:
    async def main() -> tuple[World, Seen, Seen, str, str]:
        world = discovering(5, poll_interval="5m")
        fleet = world.api.fleet.spaces["acme"]
        late, early = fleet.pop(), fleet[0]
        await world.exporter.start()
        await asyncio.sleep(1800)
        before = seen(world)
        fleet[:] = [*fleet[1:], late]
        (after,) = await played(world, 4210)
        return world, before, after, late.id, early.id

    world, before, after, late, early = run(main())

    assert before.spaces == {*fleet_of(world), early} - {late}
    assert after.spaces == set(fleet_of(world))
    assert [round(at) for at, _ in world.list_requests] == [0, 3600]
    assert min(world.polls_of(late)) < 3602
    assert max(world.polls_of(early)) < 3601
    for space in after.spaces - {late}:  # their pace as before
        assert gaps(world.polls_of(space)[1:]) == {300.0}


def test_a_listing_that_fails_keeps_every_space_and_is_told_and_tried_again_after_growing_pauses() -> None:
    async def main() -> tuple[World, list[Seen], list[str]]:
        world = discovering(5, 1, poll_interval="5m", events=({"at": "30m", "for": "2h", **DENIED},))
        scrapes = await played(world, 1800, 7200, 12_600)
        return world, scrapes, world.samples("chatapp_account_up") + world.samples("chatapp_space_up")

    with capture_logs() as logs:
        world, (good, failing, mended), up = run(main())
    pauses = [later - at for at, later in pairwise(at for at, _ in world.list_requests[1:])]

    assert good.spaces == failing.spaces == mended.spaces == set(fleet_of(world))
    assert (good.up, failing.up, mended.up) == ([1], [0], [1])
    assert (failing.last_success, failing.discovered) == (good.last_success, good.discovered)
    assert mended.last_success[0] > START + 9000
    for pause, longest in zip(pauses, (10, 20, 40, 80, 160, 300, 300), strict=False):
        assert longest / 2 <= pause <= longest + 0.1
    assert up == ["chatapp_account_up{} 1"] + ["chatapp_space_up{} 1"] * 5
    told = [(line["event"], line.get("code")) for line in logs if "space discovery" in line["event"]]
    assert told == [("space discovery failed", "NoPermission"), ("space discovery recovered", None)]


def test_the_budget_holds_with_listings() -> None:
    async def main() -> tuple[World, list[str]]:
        failing = {"at": "1h", **DENIED}
        world = discovering(300, poll_interval="30s", qps=5, latency="300ms", events=(failing,))
        await played(world, 4200)
        return world, world.samples("chatapp_api_requests_total")

    world, counted = run(main())

    assert len(world.list_requests) > 12
    assert busiest_second(world.api.arrivals) <= 5
    assert sum(float(line.split(" ")[1]) for line in counted) == len(world.polls) + len(world.list_requests)


CONTOSO = {"InstanceId": "1", "InstanceName": "Contoso", "CustSpaceId": "cams-1", "ChannelType": "WHATSAPP"}


def page(*entries: object, **fields: Any) -> Response:
    return JSONResponse({"Code": "OK", "Data": list(entries), "TotalCount": len(entries), **fields})


@pytest.mark.parametrize(
    "answer",
    [
        Response(b"", 200),
        Response(b"<html>", 200),
        Response(b"<html>", 502),
        JSONResponse([]),
        JSONResponse({"Code": "OK"}),
        JSONResponse({"Data": [], "TotalCount": 0, "Success": True}),
        JSONResponse({"code": "OK", "data": [], "totalCount": 0}),
        page(),
        page(Data=None),
        page(TotalCount=5),
        page(None),
        page({}),
        page({**CONTOSO, "CustSpaceId": ""}),
        page({**CONTOSO, "ChannelType": "VIBER"}),
        page(CONTOSO, TotalCount=2),
        page(CONTOSO, TotalCount=0),
        page(CONTOSO, TotalCount=None),
        page(CONTOSO, CONTOSO),
        page(CONTOSO, None),
    ],
    ids=lambda answer: answer.body.decode()[:60] or "nothing",
)
def test_no_answer_that_we_cannot_trust_takes_a_space_away(answer: Response) -> None:
    async def main() -> tuple[World, Seen]:
        world = discovering(3, poll_interval="5m")
        await world.exporter.start()
        await asyncio.sleep(3590)
        world.api.list_portal = answer
        (after,) = await played(world, 3690)
        return world, after

    world, after = run(main())

    assert 3 < len(world.list_requests) < 20
    assert (after.spaces, after.up, after.discovered) == (set(fleet_of(world)), [0], [3])


def test_a_listing_that_changes_under_way_is_listed_again() -> None:
    async def main() -> tuple[World, str, list[Seen]]:
        world = discovering(120, poll_interval="5m", latency="4s")
        await world.exporter.start()
        await asyncio.sleep(3600)
        scrapes, fleet = [], world.api.fleet.spaces["acme"]
        moved = fleet[50]  # from the second page to the first, which has been read
        for _ in range(100):
            await asyncio.sleep(0.5)
            scrapes.append(seen(world))
            if [number for _, number in world.list_requests] == [1, 2, 3, 1, 2] and moved is fleet[50]:
                del fleet[0]
        return world, moved.id, [*scrapes, *await played(world, 3700)]

    world, moved, scrapes = run(main())

    assert [number for _, number in world.list_requests] == [1, 2, 3, 1, 2, 1, 2, 3]
    assert all(moved in scrape.spaces for scrape in scrapes)
    assert (scrapes[-1].spaces, scrapes[-1].up) == (set(fleet_of(world)), [1])


def test_an_account_without_any_instances_is_listed_well_and_polls_nothing() -> None:
    async def main() -> tuple[World, list[Seen]]:
        world = discovering(1, poll_interval="5m")
        world.api.fleet.spaces["acme"].clear()
        return world, await played(world, 600)

    world, (after,) = run(main())

    assert (world.polls, len(world.list_requests)) == ([], 1)
    assert (after.spaces, after.up, after.discovered) == (set(), [1], [0])


def test_a_refused_account_is_not_asked_for_its_spaces_beyond_its_probes() -> None:
    async def main() -> tuple[World, list[Seen]]:
        revoked = {"at": "30m", "for": "3h", "answer": "InvalidAccessKeyId.NotFound"}
        world = discovering(5, poll_interval="5m", events=(revoked,))
        return world, await played(world, 12_599, 13_200)

    world, (refused, let_in) = run(main())
    first, second = (at for at, _ in world.list_requests)

    assert first == 0
    assert 12_600 < second < 12_600 + 300 + 6
    assert len([at for at, _ in world.polls if 1900 < at < 12_600]) <= 10_700 / 300 + 1
    assert (refused.up, let_in.up) == ([1], [1])
    assert refused.spaces == let_in.spaces == set(fleet_of(world))


def test_it_is_not_ready_before_the_spaces_are_listed_and_polled() -> None:
    async def main() -> list[tuple[int, str]]:
        world = discovering(5, poll_interval="5m", qps=1, events=({"at": "0s", "for": "15s", **DENIED},))
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        await world.exporter.start()
        answers = []
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            for _ in range(60):
                await asyncio.sleep(1)
                response = await http.get("/-/ready")
                answers.append((response.status_code, response.text))
        await world.exporter.stop()
        return list(dict.fromkeys(answers))

    assert run(main()) == [
        (503, "not ready: spaces of 1 accounts not listed yet\n"),
        *((503, f"not ready: {left} spaces not polled yet\n") for left in (5, 4, 3, 2, 1)),
        (200, "ready\n"),
    ]


def changed(world: World, **changes: Any) -> Settings:
    """The world's settings with its account changed."""
    (account,) = world.settings.accounts
    return world.settings.model_copy(update={"accounts": [account.model_copy(update=changes)]})


def test_a_reload_keeps_what_is_discovered() -> None:
    async def main() -> tuple[World, Seen, list[str]]:
        world = discovering(5, 1, 2, poll_interval="5m")
        await world.exporter.start()
        await asyncio.sleep(1000)
        (account,) = world.settings.accounts
        await world.exporter.reconfigure(changed(world, spaces=(account.spaces or [])[:1], qps=7.0))
        after, up = seen(world), world.samples("chatapp_space_up")
        await played(world, 2000)
        return world, after, up

    world, after, up = run(main())

    assert (after.spaces, len(world.list_requests)) == (set(fleet_of(world)), 1)
    assert up == ["chatapp_space_up{} 1"] * 5
    for space in after.spaces:  # their pace as before
        assert gaps(world.polls_of(space)[1:]) == {300.0}


def test_discovery_can_be_turned_on_and_off_by_a_reload() -> None:
    async def main() -> tuple[World, list[Seen], list[int], Seen]:
        world = discovering(5, 1, 2, poll_interval="5m")
        on, off = world.settings, changed(world, discover=False)
        await world.exporter.reconfigure(off)
        await world.exporter.start()
        scrapes, listings = [], []
        for settings in (off, on, off, on):
            await world.exporter.reconfigure(settings)
            at_once = seen(world)
            await asyncio.sleep(100)
            scrapes.append(seen(world))
            listings.append(len(world.list_requests))
        await world.exporter.stop()
        return world, scrapes, listings, at_once

    world, scrapes, listings, on_again = run(main())
    ids = fleet_of(world)

    assert [scrape.spaces for scrape in scrapes] == [set(ids[:2]), set(ids), set(ids[:2]), set(ids)]
    assert [scrape.up for scrape in scrapes] == [[], [1], [], [1]]
    assert on_again == Seen(set(ids[:2]), [0], [], [])
    assert listings == [0, 1, 1, 2]
    assert [len(world.polls_of(space)) for space in ids[:2]] == [2, 2]  # at the start, and in their slots


def test_at_another_endpoint_nothing_is_discovered_yet() -> None:
    async def main() -> tuple[World, Seen, list[Seen]]:
        world = discovering(5, 1, poll_interval="5m", latency="2s")
        await world.exporter.start()
        await asyncio.sleep(60)
        await world.exporter.reconfigure(changed(world, endpoint="http://127.0.0.1:2"))
        return world, seen(world), await played(world, 120)

    world, at_once, (later,) = run(main())

    assert (at_once.spaces, at_once.up, at_once.discovered) == ({world.space_id(1)}, [0], [])
    assert (later.spaces, later.up) == (set(fleet_of(world)), [1])


def test_a_listing_under_way_of_an_account_that_leaves_tells_nobody_and_is_the_last() -> None:
    async def main() -> tuple[World, list[Seen]]:
        world = discovering(5, poll_interval="5m", latency="4s")
        await world.exporter.start()
        await asyncio.sleep(1)
        other = CamsAccount(name="globex", endpoint="http://127.0.0.1:1", access_key_id="a", access_key_secret="b")
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [other]}))
        return world, await played(world, 7200)

    with capture_logs() as logs:
        world, scrapes = run(main())

    assert scrapes == [Seen({"own"}, [], [], [])]
    assert len(world.list_requests) == 1
    assert not any("list" in line["event"] for line in logs)


def test_the_shown_configuration_is_what_was_written() -> None:
    async def main() -> list[str]:
        world = discovering(3, poll_interval="5m")
        await played(world, 60)
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


def test_a_sweep_polls_what_is_discovered_and_tells_of_a_listing_that_failed() -> None:
    async def main(*events: Any) -> tuple[list[str], dict[str, str]]:
        world = discovering(5, 1, events=events)
        swept = await world.exporter.sweep()
        await world.exporter.stop()
        assert {polled.error for polled in swept.spaces} == {None}
        ids = [polled.view.space.id for polled in swept.spaces]
        return ids, {name: error.code for name, error in swept.list_errors.items()}

    ids = [space.id for space in Fleet(scenario(5)).spaces["acme"]]

    assert run(main()) == ([ids[0], *sorted(ids[1:])], {})
    assert run(main({"at": "0s", **DENIED})) == (ids[:1], {"acme": "NoPermission"})


def test_a_bug_in_what_follows_a_listing_is_told_and_mended_by_the_next() -> None:
    class Lister(Source):
        async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
            return {"cams-1": "Contoso"}

    calls: list[int] = []

    def fails_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    async def main() -> list[tuple[str, bool]]:
        clock = VirtualClock()
        poller = Poller(
            "acme", Lister(), Budget(10, clock), Budget(10, clock), clock, Instruments(["acme"]), lambda _: False
        )
        discovery = Discovery(poller, lambda: True, clock, fails_once, Random(1), {})
        return [(str(await discovery.list_once()), discovery.result.up) for _ in range(2)]

    assert run(main()) == [("internal: ZeroDivisionError", False), ("None", True)]
    assert len(calls) == 2


def stored(file: Path) -> set[str]:
    """The spaces that a state file has."""
    with closing(sqlite3.connect(file)) as database:
        return {space for (space,) in database.execute("SELECT space FROM space")}


def test_a_restart_shows_the_discovered_spaces_as_they_were_until_the_first_whole_listing(tmp_path: Path) -> None:
    failing = {"at": "590s", "for": "1000s", **DENIED}
    red = {"at": "60s", "space": 2, "number": 1, "set": {"QualityRating": "RED"}}

    async def main() -> tuple[World, list[list[str]], int, list[Seen]]:
        world = discovering(5, 1, poll_interval="5m", state_file=tmp_path / "state.db", events=(red, failing))
        await played(world, 600)
        gone = world.api.fleet.spaces["acme"].pop()
        shown = [world.samples("chatapp_phone_number")]
        world.exporter = world.fresh_exporter()
        shown.append(world.samples("chatapp_phone_number"))
        unpolled, at_once = world.exporter.view.unpolled(), seen(world)
        await world.exporter.start()
        scrapes = [at_once, *await played(world, 1500, 2000)]
        assert gone.id in scrapes[1].spaces
        return world, shown, unpolled, scrapes

    world, (before, after), unpolled, (at_once, failing_still, listed) = run(main())

    assert any('quality_rating="RED"} 1' in line for line in before)
    assert (sorted(after), unpolled) == (sorted(before), 0)
    assert len(at_once.spaces) == len(failing_still.spaces) == 5
    assert (failing_still.up, failing_still.last_success, failing_still.discovered) == ([0], [], [])
    assert listed.spaces == stored(tmp_path / "state.db") == set(fleet_of(world))
    for space in listed.spaces:  # their pace as before
        assert gaps(world.polls_of(space)[1:]) == {300.0}


@pytest.mark.parametrize("change", ["endpoint", "discover", "own"])
def test_after_a_restart_only_spaces_that_were_discovered_count(tmp_path: Path, change: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "endpoint": {"endpoint": "http://127.0.0.1:2"},
        "discover": {"discover": False, "spaces": [CamsSpace(id="elsewhere")]},
        "own": {},
    }

    async def main() -> tuple[Seen, set[str]]:
        world = discovering(5, state_file=tmp_path / "state.db")
        discovers = world.settings
        if change == "own":
            world.settings = changed(world, discover=False)
            world.exporter = world.fresh_exporter()
        await played(world, 60)
        world.settings = discovers
        world.settings = changed(world, **changes[change])
        world.exporter = world.fresh_exporter()
        after = seen(world)
        await world.exporter.stop()
        return after, stored(tmp_path / "state.db")

    after, kept = run(main())

    assert after.spaces == ({"elsewhere"} if change == "discover" else set())
    assert kept == set()


@pytest.mark.parametrize("known", [True, False])
def test_a_restart_is_ready_at_once_where_the_spaces_are_known(tmp_path: Path, known: bool) -> None:
    async def main() -> tuple[int, str]:
        world = discovering(5, state_file=tmp_path / "state.db" if known else None)
        await played(world, 60)
        world.exporter = world.fresh_exporter()
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            response = await http.get("/-/ready")
        await world.exporter.stop()
        return response.status_code, response.text

    unlisted = (503, "not ready: spaces of 1 accounts not listed yet\n")
    assert run(main()) == ((200, "ready\n") if known else unlisted)


def test_a_restart_does_not_take_configured_spaces_for_discovered_ones(tmp_path: Path) -> None:
    """Where the API lists none, that would make every later listing a failure."""

    async def main() -> tuple[World, list[Seen]]:
        world = discovering(5, 1, 2, state_file=tmp_path / "state.db")
        world.api.list_portal = page()
        scrapes = await played(world, 60)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        return world, [*scrapes, *await played(world, 120)]

    world, (before, after) = run(main())

    assert (before.up, after.up, after.discovered) == ([1], [1], [0])
    assert after.spaces == set(fleet_of(world)[:2])


def test_a_space_that_left_the_configuration_while_nothing_ran_is_gone_whatever_listings_say(tmp_path: Path) -> None:
    async def main() -> tuple[World, Seen]:
        world = discovering(5, 1, 2, state_file=tmp_path / "state.db", events=({"at": "0s", **DENIED},))
        await played(world, 60)
        (account,) = world.settings.accounts
        world.settings = changed(world, spaces=(account.spaces or [])[:1])
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        (after,) = await played(world, 7200)
        return world, after

    world, after = run(main())

    assert after.spaces == {fleet_of(world)[0]}


def test_discovered_spaces_keep_their_names_over_a_restart(tmp_path: Path) -> None:
    async def main() -> list[list[str]]:
        world = discovering(5, 1, state_file=tmp_path / "state.db")
        await played(world, 60)
        before = world.samples("chatapp_space_info")
        world.exporter = world.fresh_exporter()
        after = world.samples("chatapp_space_info")
        await world.exporter.stop()
        return [sorted(before), sorted(after)]

    before, after = run(main())

    assert before == after
    assert not any('name=""' in line for line in after)


def test_a_refused_account_whose_last_configured_space_leaves_is_let_in_by_a_listing() -> None:
    async def main() -> tuple[World, list[Seen], list[list[str]]]:
        revoked = {"at": "0s", "for": "1h", "answer": "InvalidAccessKeyId.NotFound"}
        world = discovering(5, 1, poll_interval="5m", events=(revoked,))
        await world.exporter.start()
        await asyncio.sleep(600)
        up = [world.samples("chatapp_account_up")]
        await world.exporter.reconfigure(changed(world, spaces=None))
        await asyncio.sleep(1200)
        up.append(world.samples("chatapp_account_up"))
        scrapes = await played(world, 4200)
        return world, scrapes, [*up, world.samples("chatapp_account_up")]

    world, (after,), up = run(main())

    assert up == [["chatapp_account_up{} 0"], ["chatapp_account_up{} 0"], ["chatapp_account_up{} 1"]]
    assert (after.spaces, after.up) == (set(fleet_of(world)), [1])


def test_an_account_that_may_not_list_and_has_nothing_else_is_refused_until_it_may() -> None:
    async def main() -> list[list[str]]:
        world = discovering(5, poll_interval="5m", events=({"at": "0s", "for": "30m", **DENIED},))
        await world.exporter.start()
        await asyncio.sleep(600)
        up = [world.samples("chatapp_account_up")]
        await played(world, 3000)
        return [*up, world.samples("chatapp_account_up")]

    assert run(main()) == [["chatapp_account_up{} 0"], ["chatapp_account_up{} 1"]]


def test_configured_spaces_make_it_ready_where_none_may_be_listed() -> None:
    async def main() -> int:
        world = discovering(5, 1, 2, events=({"at": "0s", **DENIED},))
        await played(world, 60)
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            return (await http.get("/-/ready")).status_code

    assert run(main()) == 200


def test_shards_without_an_account_deny_nothing_and_are_ready_where_listing_is_denied() -> None:
    async def main() -> list[tuple[list[str], int]]:
        world = discovering(5, 1, qps=3, events=({"at": "0s", **DENIED},))
        shards = [world.fresh_exporter(shard=Shard(number, 3)) for number in (1, 2, 3)]
        for one in shards:
            await one.start()
        await asyncio.sleep(600)
        told = []
        for one in shards:
            page = b"".join(one.exposition(openmetrics=False)).decode().splitlines()
            transport = httpx.ASGITransport(create_app(one.view))
            async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
                ready = (await http.get("/-/ready")).status_code
            told.append(([line for line in page if line.startswith("chatapp_account_up{")], ready))
            await one.stop()
        return told

    assert sorted(run(main())) == [([], 200), ([], 200), (['chatapp_account_up{account="acme"} 1'], 200)]


def test_configured_spaces_do_not_make_it_ready_before_those_that_are_listed() -> None:
    async def main() -> int:
        world = discovering(60, 1, poll_interval="5m", qps=1)
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        await world.exporter.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            for _ in range(300):
                await asyncio.sleep(1)
                if (await http.get("/-/ready")).status_code == 200:
                    break
        await world.exporter.stop()
        return len({space for _, space in world.polls})

    assert run(main()) == 60


def test_an_outage_does_not_let_a_refused_account_in() -> None:
    outage = {"at": "10m", "for": "30m", "answer": "ServiceUnavailable", "action": "ListInstance"}
    world_events = (outage, {"at": "0s", **DENIED})

    async def main() -> list[list[str]]:
        world = discovering(5, poll_interval="5m", events=world_events)
        await world.exporter.start()
        up = []
        for _ in range(3):
            await asyncio.sleep(900)
            up.append([line for line in world.samples("chatapp_account_state") if line.endswith(" 1")])
        await world.exporter.stop()
        return up

    assert run(main()) == [['chatapp_account_state{state="denied"} 1']] * 3


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (Response('{"Code": "InternalError"}', 503), ['chatapp_account_state{state="unreachable"} 1']),
        (Response('{"Code": "Throttling.User"}', 400), ['chatapp_account_state{state="throttled"} 1']),
        (Response('{"Code": "OK", "TotalCount": 2, "Data": []}'), []),
    ],
    ids=["server error", "throttled", "list that is not complete"],
)
def test_the_state_of_an_account_without_a_known_space_is_that_of_its_lists(answer: Response, shown: list[str]) -> None:
    async def main() -> list[str]:
        world = discovering(5, poll_interval="5m")
        world.api.list_portal = answer
        await world.exporter.start()
        await asyncio.sleep(900)
        await world.exporter.stop()
        return [line for line in world.samples("chatapp_account_state") if line.endswith(" 1")]

    assert run(main()) == shown


@pytest.mark.parametrize("polled_since", [False, True])
def test_a_space_that_turned_from_a_configured_into_a_discovered_one_survives_a_restart(
    tmp_path: Path, polled_since: bool
) -> None:
    async def main() -> tuple[World, Seen]:
        failing = {"at": "700s", **DENIED}
        world = discovering(3, 1, poll_interval="5m", state_file=tmp_path / "state.db", events=(failing,))
        await world.exporter.start()
        await asyncio.sleep(650)
        world.settings = changed(world, spaces=None)
        await world.exporter.reconfigure(world.settings)
        await asyncio.sleep(400 if polled_since else 1)
        await world.exporter.stop()
        await asyncio.sleep(100)
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        (after,) = await played(world, 2000)
        return world, after

    world, after = run(main())

    assert after.spaces == set(fleet_of(world))


def test_nothing_is_due_before_the_start_also_where_spaces_are_known(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        world = discovering(5, state_file=tmp_path / "state.db")
        await played(world, 60)
        world.exporter = world.fresh_exporter()
        before = len(world.exporter.service.schedule)
        await world.exporter.start()
        after = len(world.exporter.service.schedule)
        await world.exporter.stop()
        return before, after

    assert run(main()) == (0, 5)
