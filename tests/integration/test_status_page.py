"""What is answered to people and programs that look at the fleet: pages, and JSON for programs."""

import asyncio
import re
from collections.abc import Mapping
from html import unescape
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from virtual_time import VirtualClock, run
from world import World, scenario

from exporter.config.effective import Shard
from exporter.web.routes import create_app

USAGE = Path(__file__).parents[2] / "docs" / "usage.md"
EVENTS: tuple[Mapping[str, Any], ...] = (
    {"at": "30s", "space": 1, "number": 1, "set": {"QualityRating": "RED"}},
    {"at": "30s", "space": 2, "number": 1, "set": {"MessagingLimitTier": "TIER_250"}},
    {"at": "45s", "space": 1, "number": 1, "set": {"Status": "FLAGGED", "VerifiedName": "<b>Bold</b> & 'Co'"}},
    {"at": "40s", "space": 3, "answer": "InternalError"},
    {"at": "0s", "space": 4, "answer": "Unknown.ResourceOwnerId"},
)


async def asked(world: World, *paths: str) -> list[httpx.Response]:
    transport = httpx.ASGITransport(create_app(world.exporter.view))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
        return [await http.get(path) for path in paths]


def get(*paths: str, seconds: float = 60, **changes: Any) -> list[httpx.Response]:
    """The answers of an exporter that has polled a fleet of five spaces for so many seconds."""

    async def main() -> list[httpx.Response]:
        world = World(scenario(5, events=EVENTS, qps=10, poll_interval="5s"), **changes)
        await world.exporter.start()
        await asyncio.sleep(seconds)
        answers = await asked(world, *(path.format(*map(world.space_id, range(1, 6))) for path in paths))
        await world.exporter.stop()
        return answers

    return run(main())


def text_of(response: httpx.Response) -> str:
    """What a page says, without its markup."""
    body = re.sub(r"(?s)<style>.*?</style>", "", response.text)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def rows_of(response: httpx.Response) -> list[str]:
    """The rows of the first table."""
    table = re.search(r"(?s)<tbody>(.*?)</tbody>", response.text)
    rows = re.findall(r"(?s)<tr.*?</tr>", table[1]) if table else []
    return [re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", row))).strip() for row in rows]


def test_the_page_shows_what_is_wrong_first_and_says_since_when() -> None:
    (page,) = get("/")

    first, second, *_ = rows_of(page)
    assert first.startswith("● RED")
    assert "RED was GREEN until 28 s ago" in first
    assert second.startswith("◌ blind Ember Foods")
    assert second.endswith("21 s ago failing: server")
    assert any(row.startswith("◌ blind no current values") for row in rows_of(page))
    assert "1 ✖" not in text_of(page)
    assert "1 ● RED" in text_of(page)


def test_what_the_api_says_is_text_and_never_markup() -> None:
    fleet, space = get("/?q=bold", "/space?account=acme&space={0}")

    for page in (fleet, space):
        assert "&lt;b&gt;Bold&lt;/b&gt; &amp; &#39;Co&#39;" in page.text
        assert "<b>" not in page.text


def test_a_tier_that_dropped_is_seen_where_the_tier_stands() -> None:
    page, api = get("/?q={1}", "/api/v1/phone-numbers?q={1}")

    (dropped,) = (row for row in rows_of(page) if "TIER_250" in row and "was TIER" in row)
    assert "until 27 s ago" in dropped
    assert {entry["state"] for entry in api.json()["phone_numbers"]} == {"green"}


def test_page_and_json_find_a_number_in_every_usual_spelling() -> None:
    (fleet,) = get("/api/v1/phone-numbers?per_page=1")
    digits = fleet.json()["phone_numbers"][0]["phone_number"]
    spelled = quote(f"+{digits[:2]} ({digits[2:5]}) {digits[5:]}")

    page, api = get(f"/?q={spelled}", f"/api/v1/phone-numbers?q={spelled}")

    assert [number["phone_number"] for number in api.json()["phone_numbers"]] == [digits]
    assert len(rows_of(page)) == 1
    assert digits in page.text


def test_the_address_filters_and_links_of_the_page_keep_what_is_asked_for() -> None:
    (page,) = get("/?q=a&account=acme&state=red&state=down&refresh=30")

    links = [unescape(link) for link in re.findall(r'<a href="(\./\?[^"]*)"', page.text)]
    assert "./?q=a&account=acme&state=blind&refresh=30" in links
    assert "./?q=a&account=acme&refresh=30" in links  # the state that is chosen, to choose it no more
    assert "./?q=a&account=acme&state=red&state=down" in links  # to stop refreshing
    assert page.headers["refresh"] == "30"


def test_nothing_is_loaded_anew_that_was_not_asked_for() -> None:
    (page,) = get("/")

    assert "refresh" not in page.headers
    assert not re.search(r"(?i)http-equiv|<script|<img|<link", page.text)


@pytest.mark.parametrize("path", ["/", "/api/v1/phone-numbers", "/api/v1/spaces"])
def test_what_cannot_be_asked_for_is_refused_with_what_can(path: str) -> None:
    page, state, misspelt, twice = get(
        f"{path}?page=x", f"{path}?state=purple", f"{path}?stat=red", f"{path}?account=a&account=b"
    )

    assert {answer.status_code for answer in (page, state, misspelt, twice)} == {400}
    assert "page: " in text_of(page)
    assert "found 'x'" in text_of(page)
    assert "'down', 'red', 'blind'" in text_of(state)
    assert "stat: unknown parameter, expected one of q, account, state, page, per_page" in text_of(misspelt)
    assert "account: " in text_of(twice)


def test_a_space_tells_how_its_polls_go_and_what_changed() -> None:
    changed, failing, rejected = (
        text_of(page) for page in get(*(f"/space?account=acme&space={{{index}}}" for index in (0, 2, 3)))
    )

    assert re.search("status CONNECTED FLAGGED .* quality rating GREEN RED", changed)  # the last one first
    assert "● RED the quality rating is RED" in changed
    assert re.search(r"Polls \d+ since the start of the exporter; failed: \d+ server", failing)
    assert re.search(r"Failing 5 consecutive polls; first \d+ s ago , last \d+ s ago : server , InternalError", failing)
    assert re.search(
        r"Last success never .* rejected , Unknown.ResourceOwnerId : .* \(request [0-9A-F]{32} \)", rejected
    )
    assert "No successful poll yet." in rejected
    assert "consecutive polls; first at or before the start of the exporter" in rejected
    assert "✔" not in failing


def test_what_is_too_old_to_count_is_shown_as_that() -> None:
    page, fleet = get("/space?account=acme&space={2}", "/?q={2}", seconds=120, max_age=60.0)

    assert (
        "The values below are older than max_age and are not exported. The last successful poll of this space was at"
        " 2027-01-15"
    ) in text_of(page)
    assert "✔" not in text_of(page)
    assert [row.split("  ")[0][:7] for row in rows_of(fleet)] == ["◌ blind"]


def test_a_space_that_is_not_polled_here_is_not_found() -> None:
    for answer in get("/space", "/space?account=acme&space=nothing", "/space?account=globex&space={0}"):
        assert (answer.status_code, "This exporter does not poll this space." in text_of(answer)) == (404, True)


def of_account(code: str, *, seconds: float = 700, **account: Any) -> list[httpx.Response]:
    """The answers of an exporter whose account is answered with this code from the 20th second on."""

    async def main() -> list[httpx.Response]:
        event = {"at": "20s", "answer": code}
        world = World(scenario(3, events=(event,), **{"poll_interval": "5m", "qps": 10, **account}))
        await world.exporter.start()
        await asyncio.sleep(seconds)
        space = f"/space?account=acme&space={world.space_id(1)}"
        answers = await asked(world, "/", space, "/api/v1/phone-numbers", "/api/v1/spaces?q=nobody")
        await world.exporter.stop()
        return answers

    return run(main())


@pytest.mark.parametrize(
    ("code", "state", "message", "meaning", "check"),
    [
        (
            "InvalidAccessKeyId.NotFound",
            "denied",
            "Specified access key is not found.",
            "The API denies access to this account.",
            "Check the access key, its permissions (RAM policy), the subscription and this machine's clock.",
        ),
        (
            "ServiceUnavailable",
            "unreachable",
            "The request has failed due to a temporary failure of the server.",
            "The API does not respond or returns server errors.",
            "Check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the endpoint",
        ),
    ],
)
def test_of_an_account_that_is_down_nothing_is_green_and_every_page_says_why_and_since_when(
    code: str, state: str, message: str, meaning: str, check: str
) -> None:
    page, space, *listings = of_account(code)

    for text in (re.sub(" ([:,.])", r"\1", text_of(answer)) for answer in (page, space)):
        since = r"since 2027-01-15 08:0\d:\d\dZ \(\d+ min ago\)"
        banner = rf"Account acme has been {state} {since}: {code}: {re.escape(message)} \(request [0-9A-F]{{32}} ?\)"
        blind = r"All spaces of this account are blind: their values may be out of date\."
        assert re.search(f"{banner} {re.escape(meaning)} {blind} {re.escape(check)}", text)
        assert "✔" not in text
    assert text_of(page).index("Account acme has been") < text_of(page).index("found")
    assert f"acme ● {state}" in text_of(page)
    assert ("Next poll when access to the account is restored" in text_of(space)) == (state == "denied")
    for answer in (listing.json() for listing in listings):
        (account,) = answer["accounts"]
        assert re.fullmatch(r"2027-01-15T08:0\d:\d\dZ", account.pop("since"))
        assert re.fullmatch("[0-9A-F]{32}", account.pop("request_id"))
        assert account == {"account": "acme", "state": state, "code": code, "detail": message}
    assert [answer.json()["blind_spaces"] for answer in listings] == [3, 0]  # the second is of no space
    assert {number["state"] for number in listings[0].json()["phone_numbers"]} == {"blind"}


def test_a_throttled_account_says_at_which_rate_and_how_often_it_is_polled() -> None:
    page, space, numbers, _ = of_account("Throttling.User", seconds=60, qps=0.2, poll_interval="10s")

    for answer in (page, space):
        text = re.sub(" ([:,.])", r"\1", text_of(answer))
        banner = r"Account acme has been throttled since 2027-01-15 08:00:\d\dZ \(\d+ s ago\): Throttling\.User: .*"
        rate = r"The current rate is 0\.0\d+ of 0\.2 queries per second\. Each space is polled every \d+\w+ instead of"
        assert re.search(
            rf"{banner} The API throttles requests with this access key\. {rate} every 10s\. Check which other"
            r" programs use this access key, or lower qps\.",
            text,
        )
    assert re.search(
        r"acme ▲ throttled 3 0\.0\d+ \(throttled\) 0\.2 10s \d+\w+ \(limited by throttling\)", text_of(page)
    )
    (account,) = numbers.json()["accounts"]
    assert (account["state"], account["code"]) == ("throttled", "Throttling.User")
    assert numbers.json()["blind_spaces"] == 0


def test_an_account_that_is_ok_has_no_banner_and_before_the_first_answers_its_state_is_not_known() -> None:
    page, numbers = get("/", "/api/v1/phone-numbers")
    early, before = get("/", "/api/v1/phone-numbers", seconds=0)

    assert "Account acme has been" not in text_of(page) + text_of(early)
    assert "acme ok 5" in text_of(page)
    assert "acme not known yet 5" in text_of(early)
    (ok,), (unknown,) = numbers.json()["accounts"], before.json()["accounts"]
    assert ok == {
        "account": "acme",
        "state": "ok",
        "since": None,
        "code": "",
        "detail": "",
        "request_id": "",
    }
    assert unknown == {**ok, "state": None, "since": None}


def test_an_account_that_needs_longer_than_its_interval_says_what_limits_it() -> None:
    page, *_ = of_account("InternalError", seconds=10, qps=0.2, poll_interval="10s")

    assert "acme ok 3 0.2 0.2 10s 15s (limited by budget and latency)" in text_of(page)


NOT_REPORTED = [
    ("QualityRating", "quality_rating", "RED", "red"),
    ("QualityRating", "quality_rating", "GREEN", "unknown"),
    ("Status", "status", "BANNED", "down"),
    ("Status", "status", "CONNECTED", "unknown"),
    ("MessagingLimitTier", "messaging_limit_tier", "TIER_250", "green"),
]


@pytest.mark.parametrize(("name", "field", "before", "state"), NOT_REPORTED)
def test_a_field_that_is_not_reported_says_so_and_what_it_was_until_it_is_reported_again(
    name: str, field: str, before: str, state: str
) -> None:
    """Of a number that had another value even earlier."""

    async def main() -> list[list[httpx.Response]]:
        events = [{"at": "10s", "set": {name: before}}, {"at": "45m", "for": "10d", "set": {name: ""}}]
        world = World(
            scenario(1, qps=10, poll_interval="30m", events=tuple({"space": 1, "number": 1, **one} for one in events))
        )
        await world.exporter.start()
        seen = []
        for seconds in (3700, 8 * 86_400, 3 * 86_400):
            await asyncio.sleep(seconds)
            space = f"/space?account=acme&space={world.space_id(1)}"
            seen.append(await asked(world, "/", space, "/api/v1/phone-numbers"))
        await world.exporter.stop()
        return seen

    soon, after_days, again = run(main())

    for (page, space, numbers), age in ((soon, r"\d+ (s|min)"), (after_days, "8 d")):
        for answer in (page, space):
            assert re.search(f"not reported was {before} until {age} ago", text_of(answer))
        (number,) = (one for one in numbers.json()["phone_numbers"] if one["not_reported"])
        assert number[field] is None
        assert number["state"] == state
        lost = number["not_reported"].pop(field)
        assert (lost["before"], lost["since"][:15], number["not_reported"]) == (before, "2027-01-15T09:0", {})
    page, space, numbers = again
    assert not any("until 11 d ago" in text_of(answer) for answer in (page, space))
    listed = [(one[field], one["not_reported"]) for one in numbers.json()["phone_numbers"]]
    assert (before, {}) in listed
    assert not any(value is None for value, _ in listed)


@pytest.mark.parametrize("step", [7200, -7200])
def test_a_step_of_the_clock_by_more_than_max_age_hides_no_number_and_changes_no_age(step: float) -> None:
    async def main() -> list[list[httpx.Response]]:
        clock = VirtualClock()
        world = World(scenario(3, qps=10, poll_interval="5m"), clock=clock)
        await world.exporter.start()
        await asyncio.sleep(130)
        paths = ("/", f"/space?account=acme&space={world.space_id(1)}", "/api/v1/phone-numbers", "/api/v1/spaces")
        seen = [await asked(world, *paths)]
        clock.offset = step
        seen.append(await asked(world, *paths))
        await world.exporter.stop()
        return seen

    before, after = run(main())

    def shown(pages: list[httpx.Response]) -> list[str]:
        return [re.sub(r"\d\d:\d\d:\d\dZ", "…", text_of(page)).replace("2027-01-15", "") for page in pages[:2]]

    assert shown(after) == shown(before)
    assert {re.sub(r"\d+", "N", row[-9:]) for row in rows_of(after[0])} <= {" N min ago", "N min ago", " N s ago"}
    assert re.search(r"Last success \d+ (s|min) ago ,", shown(after)[1])
    assert re.search(r"Next poll in \d+ (s|min) ", shown(after)[1])
    for index in (2, 3):
        old, new = before[index].json(), after[index].json()
        assert old.pop("as_of") != new.pop("as_of")
        assert new == old
        assert (new["blind_spaces"], new["waiting_spaces"]) == (0, 0)


def test_a_space_that_fails_from_its_start_is_waiting_and_blind_after_three_intervals() -> None:
    async def main() -> list[tuple[str, str]]:
        world = World(
            scenario(
                4, qps=10, poll_interval="5m", events=({"at": "0s", "space": 1, "answer": "Unknown.ResourceOwnerId"},)
            )
        )
        await world.exporter.start()
        seen = []
        for seconds in (1, 898, 2):
            await asyncio.sleep(seconds)
            page, spaces = await asked(world, f"/space?account=acme&space={world.space_id(1)}", "/api/v1/spaces")
            (failing,) = (one for one in spaces.json()["spaces"] if one["space"] == world.space_id(1))
            seen.append((failing["state"], (re.search("[…◌] (waiting|blind)", text_of(page)) or [""])[0]))
        await world.exporter.stop()
        return seen

    waiting = ("waiting", "… waiting")
    assert run(main()) == [waiting, waiting, ("blind", "◌ blind")]


def test_ready_says_that_every_space_was_polled_and_not_that_the_api_answers() -> None:
    async def main() -> list[httpx.Response]:
        world = World(scenario(3, qps=1, poll_interval="30s", events=({"at": "0s", "answer": "ServiceUnavailable"},)))
        await world.exporter.start()
        seen = await asked(world, "/-/ready")
        await asyncio.sleep(60)
        seen += await asked(world, "/-/ready", "/api/v1/spaces")
        await world.exporter.stop()
        return seen

    early, late, spaces = run(main())

    assert (early.status_code, late.status_code) == (503, 200)
    assert spaces.json()["accounts"][0]["state"] == "unreachable"


def test_spaces_that_could_not_be_listed_are_missed_and_not_left_out() -> None:
    async def main() -> list[httpx.Response]:
        denied = {"at": "0s", "answer": "NoPermission", "action": "ListInstance"}
        world = World(scenario(3, events=(denied,), poll_interval="5s"))
        world.settings = world.settings.model_copy(
            update={"accounts": [world.settings.accounts[0].model_copy(update={"discover": True})]}
        )
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(60)
        answers = await asked(world, "/", "/api/v1/spaces")
        await world.exporter.stop()
        return answers

    page, spaces = run(main())

    assert "Space discovery of account acme failed or is not complete : spaces may be missing on this page." in text_of(
        page
    )
    assert spaces.json()["accounts_with_unknown_spaces"] == ["acme"]


def test_a_shard_says_that_it_is_one() -> None:
    async def main(shard: Shard) -> list[httpx.Response]:
        world = World(scenario(20, qps=4))
        world.exporter = world.fresh_exporter(shard=shard)
        answers = await asked(world, "/", "/api/v1/spaces")
        await world.exporter.stop()
        return answers

    page, spaces = run(main(Shard(1, 2)))
    without, none = run(main(Shard(2, 2)))

    assert "This is shard 1 of 2. The pages of the other shards show the other accounts." in text_of(page)
    assert (spaces.json()["shard"], spaces.json()["total"]) == ("1/2", 20)
    assert "No account is assigned to this shard. The pages of the other shards show the accounts." in text_of(without)
    assert (none.json()["shard"], none.json()["total"]) == ("2/2", 0)


def test_a_space_is_found_by_any_of_its_numbers() -> None:
    (everything,) = get("/api/v1/phone-numbers")
    numbers = everything.json()["phone_numbers"]
    assert len(numbers) > len({number["space"] for number in numbers})

    answers = get(*(f"/api/v1/spaces?q={number['phone_number']}" for number in numbers))

    assert [[space["space"] for space in answer.json()["spaces"]] for answer in answers] == [
        [number["space"]] for number in numbers
    ]


def test_an_account_that_is_not_there_is_an_error_and_no_empty_list() -> None:
    page, numbers = get("/?account=acmee", "/api/v1/phone-numbers?account=acmee")

    assert (page.status_code, numbers.status_code) == (400, 400)
    assert numbers.json() == {"error": "account: expected one of acme, found 'acmee'"}


def test_a_state_may_be_spelt_as_the_page_spells_it_and_a_page_that_is_not_there_leads_back() -> None:
    red, far = get("/?state=RED", "/?page=99")

    assert [row[:5] for row in rows_of(red)] == ["● RED"]
    assert "Page 99 does not exist. Go to the first page ." in text_of(far)
    assert "Previous page" not in text_of(far)


def test_an_account_shows_its_budget_and_its_intervals() -> None:
    (page,) = get("/", seconds=300)

    accounts = re.findall(r"(?s)<tbody>(.*?)</tbody>", page.text)[-1]
    cells = [re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", cell))).strip() for cell in accounts.split("</td>")]
    assert cells[1:6] == ["5", "10", "10", "5s", "5s"]


def test_before_the_first_poll_no_space_is_missing() -> None:
    (page,) = get("/", seconds=0.15)

    assert sum("no current values; blind after 3" in row for row in rows_of(page)) == 3


def test_the_document_lists_the_parameters_and_fields_of_each_json_path() -> None:
    document = USAGE.read_text("utf-8")
    numbers, spaces, unknown = get("/api/v1/phone-numbers", "/api/v1/spaces", "/api/v1/spaces?unknown=x")
    parameters = re.findall(r"\w+", unknown.json()["error"].removeprefix("unknown: unknown parameter, expected one of"))

    for path, answer, listed in (("phone-numbers", numbers, "phone_numbers"), ("spaces", spaces, "spaces")):
        (row,) = re.findall(rf"(?m)^\| `/api/v1/{path}` \| (.*) \| (.*) \|$", document)
        assert [name.removesuffix("[]") for name in re.findall("`(.+?)`", row[0])] == parameters
        assert re.findall("`(.+?)`", row[1]) == fields_of(answer.json(), listed)


def fields_of(answer: dict[str, Any], listed: str) -> list[str]:
    """The names of all fields, those of the entries as the document writes them."""
    failing = [entry for entry in answer[listed] if entry.get("last_failure")]
    (entry, *_) = failing or answer[listed]
    inner = [f"last_failure.{name}" for name in entry.get("last_failure", ())]
    names = [name for name in entry if name != "last_failure"]
    of_accounts = [f"accounts[].{name}" for name in answer["accounts"][0]]
    outer = [of_accounts if name == "accounts" else [name] for name in answer if name != listed]
    return [*chain.from_iterable(outer), *(f"{listed}[].{name}" for name in [*names, *inner])]


def test_a_program_that_asks_for_numbers_hears_how_many_spaces_it_cannot_see() -> None:
    (answer,) = get("/api/v1/phone-numbers?state=red")

    found = answer.json()
    assert (found["total"], found["pages"], found["as_of"]) == (1, 1, "2027-01-15T08:01:00Z")
    assert (found["blind_spaces"], found["waiting_spaces"]) == (2, 0)
    (red,) = found["phone_numbers"]
    assert (red["quality_rating"], red["since"], red["blind"]) == ("RED", "2027-01-15T08:00:31Z", False)


def test_spaces_as_json_tell_of_each_the_worst_and_its_failures() -> None:
    (answer,) = get("/api/v1/spaces")

    spaces = answer.json()["spaces"]
    assert [space["state"] for space in spaces] == ["red", "blind", "blind", "green", "green"]
    assert {space["space"] for space in spaces if not space["up"]} == {space["space"] for space in spaces[1:3]}
    (never,) = (space for space in spaces if space["last_success"] is None)
    assert (never["phone_numbers"], never["last_failure"]["reason"]) == (None, "rejected")
    assert never["failures"] == {"rejected": never["polls"]}
