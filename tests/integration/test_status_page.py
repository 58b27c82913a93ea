"""The status pages and the JSON API."""

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


async def fetch(world: World, *paths: str) -> list[httpx.Response]:
    transport = httpx.ASGITransport(create_app(world.exporter.view))
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
        return [await http.get(path) for path in paths]


def get(*paths: str, seconds: float = 60, **changes: Any) -> list[httpx.Response]:
    """Return the responses of an exporter that has polled five spaces for `seconds`."""

    async def main() -> list[httpx.Response]:
        world = World(scenario(5, events=EVENTS, qps=10, poll_interval="5s"), **changes)
        await world.exporter.start()
        await asyncio.sleep(seconds)
        responses = await fetch(world, *(path.format(*map(world.space_id, range(1, 6))) for path in paths))
        await world.exporter.stop()
        return responses

    return run(main())


def text_of(response: httpx.Response) -> str:
    """Return the text of a page, without markup."""
    body = re.sub(r"(?s)<style>.*?</style>", "", response.text)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


def rows_of(response: httpx.Response) -> list[str]:
    """Return the text of each row of the first table."""
    table = re.search(r"(?s)<tbody>(.*?)</tbody>", response.text)
    rows = re.findall(r"(?s)<tr.*?</tr>", table[1]) if table else []
    return [re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", row))).strip() for row in rows]


def test_the_page_is_sorted_by_severity_and_shows_since_when() -> None:
    (page,) = get("/")

    first, second, *_ = rows_of(page)
    assert first.startswith("● RED")
    assert "RED was GREEN until 28 s ago" in first
    assert second.startswith("◌ blind Ember Foods")
    assert second.endswith("21 s ago failing: server")
    assert any(row.startswith("◌ blind no current values") for row in rows_of(page))
    assert "1 ✖" not in text_of(page)
    assert "1 ● RED" in text_of(page)


def test_values_of_the_api_are_escaped_in_html() -> None:
    fleet, space = get("/?q=bold", "/space?account=acme&space={0}")

    for page in (fleet, space):
        assert "&lt;b&gt;Bold&lt;/b&gt; &amp; &#39;Co&#39;" in page.text
        assert "<b>" not in page.text


def test_a_dropped_tier_is_shown_with_the_previous_tier() -> None:
    page, api = get("/?q={1}", "/api/v1/phone-numbers?q={1}")

    (dropped,) = (row for row in rows_of(page) if "TIER_250" in row and "was TIER" in row)
    assert "until 27 s ago" in dropped
    assert {entry["state"] for entry in api.json()["phone_numbers"]} == {"green"}


def test_page_and_json_find_a_number_with_plus_spaces_and_parentheses() -> None:
    (fleet,) = get("/api/v1/phone-numbers?per_page=1")
    digits = fleet.json()["phone_numbers"][0]["phone_number"]
    formatted = quote(f"+{digits[:2]} ({digits[2:5]}) {digits[5:]}")

    page, api = get(f"/?q={formatted}", f"/api/v1/phone-numbers?q={formatted}")

    assert [number["phone_number"] for number in api.json()["phone_numbers"]] == [digits]
    assert len(rows_of(page)) == 1
    assert digits in page.text


def test_links_of_a_filtered_page_keep_the_filters() -> None:
    (page,) = get("/?q=a&account=acme&state=red&state=down&refresh=30")

    links = [unescape(link) for link in re.findall(r'<a href="(\./\?[^"]*)"', page.text)]
    assert "./?q=a&account=acme&state=blind&refresh=30" in links
    assert "./?q=a&account=acme&refresh=30" in links  # removes the filter for states
    assert "./?q=a&account=acme&state=red&state=down" in links  # stops the automatic refresh
    assert page.headers["refresh"] == "30"


def test_by_default_the_page_neither_refreshes_nor_loads_resources() -> None:
    (page,) = get("/")

    assert "refresh" not in page.headers
    assert not re.search(r"(?i)http-equiv|<script|<img|<link", page.text)


@pytest.mark.parametrize("path", ["/", "/api/v1/phone-numbers", "/api/v1/spaces"])
def test_an_invalid_parameter_is_a_400_with_the_valid_values(path: str) -> None:
    page, state, unknown, twice = get(
        f"{path}?page=x", f"{path}?state=purple", f"{path}?stat=red", f"{path}?account=a&account=b"
    )

    assert {response.status_code for response in (page, state, unknown, twice)} == {400}
    assert "page: " in text_of(page)
    assert "found 'x'" in text_of(page)
    assert "'down', 'red', 'blind'" in text_of(state)
    assert "stat: unknown parameter, expected one of q, account, state, page, per_page" in text_of(unknown)
    assert "account: " in text_of(twice)


def test_the_space_page_shows_poll_results_and_changes() -> None:
    changed, failing, rejected = (
        text_of(page) for page in get(*(f"/space?account=acme&space={{{index}}}" for index in (0, 2, 3)))
    )

    assert re.search("status CONNECTED FLAGGED .* quality rating GREEN RED", changed)  # newest first
    assert "● RED the quality rating is RED" in changed
    assert re.search(r"Polls \d+ since the start of the exporter; failed: \d+ server", failing)
    assert re.search(
        r"Failing The last 5 polls failed \(first failure \d+ s ago \)\. Last error \d+ s ago : server , InternalError",
        failing,
    )
    assert re.search(
        r"Last successful poll never .* rejected , Unknown.ResourceOwnerId : .* \(request [0-9A-F]{32} \)", rejected
    )
    assert "No successful poll yet." in rejected
    assert "Failing No poll has succeeded since the start of the exporter (" in rejected
    assert "✔" not in failing


def test_values_older_than_max_age_are_marked_as_not_exported() -> None:
    page, fleet = get("/space?account=acme&space={2}", "/?q={2}", seconds=120, max_age=60.0)

    assert (
        "The values below are older than max_age and are not exported. The last successful poll of this space was at"
        " 2027-01-15"
    ) in text_of(page)
    assert "✔" not in text_of(page)
    assert [row.split("  ")[0][:7] for row in rows_of(fleet)] == ["◌ blind"]


def test_the_page_of_an_unknown_space_is_a_404() -> None:
    for response in get("/space", "/space?account=acme&space=nothing", "/space?account=globex&space={0}"):
        assert (response.status_code, "This exporter does not poll this space." in text_of(response)) == (404, True)


def get_with_error(code: str, *, seconds: float = 700, **account: Any) -> list[httpx.Response]:
    """Return the responses of an exporter whose account gets this error from second 20 on."""

    async def main() -> list[httpx.Response]:
        event = {"at": "20s", "answer": code}
        world = World(scenario(3, events=(event,), **{"poll_interval": "5m", "qps": 10, **account}))
        await world.exporter.start()
        await asyncio.sleep(seconds)
        space = f"/space?account=acme&space={world.space_id(1)}"
        responses = await fetch(world, "/", space, "/api/v1/phone-numbers", "/api/v1/spaces?q=nothing")
        await world.exporter.stop()
        return responses

    return run(main())


@pytest.mark.parametrize(
    ("code", "state", "message", "title", "meaning", "check"),
    [
        (
            "InvalidAccessKeyId.NotFound",
            "denied",
            "Specified access key is not found.",
            "The API has denied access to account acme",
            "",
            "Check the access key, its permissions (RAM policy), the subscription and the system time of the exporter's"
            " host.",
        ),
        (
            "ServiceUnavailable",
            "unreachable",
            "The request has failed due to a temporary failure of the server.",
            "Account acme has been unreachable",
            "The API does not respond or returns server errors. ",
            "Check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the endpoint",
        ),
    ],
)
def test_pages_of_an_account_that_is_down_show_the_error_and_nothing_green(
    code: str, state: str, message: str, title: str, meaning: str, check: str
) -> None:
    page, space, *listings = get_with_error(code)

    for text in (re.sub(" ([:,.])", r"\1", text_of(response)) for response in (page, space)):
        since = r"since 2027-01-15 08:0\d:\d\dZ \(\d+ min ago\)"
        banner = rf"{title} {since}: {code}: {re.escape(message)} \(request [0-9A-F]{{32}} ?\)"
        blind = r"All spaces of this account are blind: their values may be out of date\."
        assert re.search(f"{banner} {re.escape(meaning)}{blind} {re.escape(check)}", text)
        assert "✔" not in text
    assert text_of(page).index(title) < text_of(page).index("found")
    assert f"acme ● {state}" in text_of(page)
    assert ("Next poll when access to the account is restored" in text_of(space)) == (state == "denied")
    for response in (listing.json() for listing in listings):
        (account,) = response["accounts"]
        assert re.fullmatch(r"2027-01-15T08:0\d:\d\dZ", account.pop("since"))
        assert re.fullmatch("[0-9A-F]{32}", account.pop("request_id"))
        assert account == {"account": "acme", "state": state, "code": code, "detail": message}
    assert [response.json()["blind_spaces"] for response in listings] == [3, 0]  # no space matches the second request
    assert {number["state"] for number in listings[0].json()["phone_numbers"]} == {"blind"}


def test_a_throttled_account_shows_its_current_rate_and_poll_interval() -> None:
    page, space, numbers, _ = get_with_error("Throttling.User", seconds=60, qps=0.2, poll_interval="10s")

    for response in (page, space):
        text = re.sub(" ([:,.])", r"\1", text_of(response))
        banner = r"The API has throttled account acme since 2027-01-15 08:00:\d\dZ \(\d+ s ago\): Throttling\.User: .*"
        budget = r"The current budget is 0\.0\d+ instead of 0\.2 queries per second\. Each space is polled every \d+\w+"
        assert re.search(
            rf"{banner} {budget} instead of every 10s\. Check which other"
            r" programs use this access key, or lower qps\.",
            text,
        )
    assert re.search(
        r"acme ▲ throttled 3 0\.2 0\.0\d+ \(throttled\) 10s \d+\w+ \(longer because of throttling\)", text_of(page)
    )
    (account,) = numbers.json()["accounts"]
    assert (account["state"], account["code"]) == ("throttled", "Throttling.User")
    assert numbers.json()["blind_spaces"] == 0


def test_an_account_that_is_ok_or_has_no_response_yet_has_no_banner() -> None:
    page, numbers = get("/", "/api/v1/phone-numbers")
    early, before = get("/", "/api/v1/phone-numbers", seconds=0)

    assert "All spaces of this account are blind" not in text_of(page) + text_of(early)
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


def test_an_account_that_cannot_meet_its_poll_interval_shows_the_cause() -> None:
    page, *_ = get_with_error("InternalError", seconds=10, qps=0.2, poll_interval="10s")

    assert "acme ok 3 0.2 0.2 10s 15s (longer because of budget and latency)" in text_of(page)


NOT_REPORTED = [
    ("QualityRating", "quality_rating", "RED", "red"),
    ("QualityRating", "quality_rating", "GREEN", "unknown"),
    ("Status", "status", "BANNED", "down"),
    ("Status", "status", "CONNECTED", "unknown"),
    ("MessagingLimitTier", "messaging_limit_tier", "TIER_250", "green"),
]


@pytest.mark.parametrize(("name", "field", "before", "state"), NOT_REPORTED)
def test_a_field_that_is_not_reported_shows_its_last_value_until_it_is_reported_again(
    name: str, field: str, before: str, state: str
) -> None:
    """The field changes to `before`; later, the API stops reporting the field."""

    async def main() -> list[list[httpx.Response]]:
        events = [{"at": "10s", "set": {name: before}}, {"at": "45m", "for": "10d", "set": {name: ""}}]
        world = World(
            scenario(
                1, qps=10, poll_interval="30m", events=tuple({"space": 1, "number": 1, **event} for event in events)
            )
        )
        await world.exporter.start()
        results = []
        for seconds in (3700, 8 * 86_400, 3 * 86_400):
            await asyncio.sleep(seconds)
            space = f"/space?account=acme&space={world.space_id(1)}"
            results.append(await fetch(world, "/", space, "/api/v1/phone-numbers"))
        await world.exporter.stop()
        return results

    after_minutes, after_days, restored = run(main())

    for (page, space, numbers), age in ((after_minutes, r"\d+ (s|min)"), (after_days, "8 d")):
        for response in (page, space):
            assert re.search(f"not reported was {before} until {age} ago", text_of(response))
        (number,) = (entry for entry in numbers.json()["phone_numbers"] if entry["not_reported"])
        assert number[field] is None
        assert number["state"] == state
        missing = number["not_reported"].pop(field)
        assert (missing["before"], missing["since"][:15], number["not_reported"]) == (before, "2027-01-15T09:0", {})
    page, space, numbers = restored
    assert not any("until 11 d ago" in text_of(response) for response in (page, space))
    listed = [(entry[field], entry["not_reported"]) for entry in numbers.json()["phone_numbers"]]
    assert (before, {}) in listed
    assert not any(value is None for value, _ in listed)


@pytest.mark.parametrize("step", [7200, -7200])
def test_a_clock_step_longer_than_max_age_hides_no_number_and_changes_no_age(step: float) -> None:
    async def main() -> list[list[httpx.Response]]:
        clock = VirtualClock()
        world = World(scenario(3, qps=10, poll_interval="5m"), clock=clock)
        await world.exporter.start()
        await asyncio.sleep(130)
        paths = ("/", f"/space?account=acme&space={world.space_id(1)}", "/api/v1/phone-numbers", "/api/v1/spaces")
        results = [await fetch(world, *paths)]
        clock.offset = step
        results.append(await fetch(world, *paths))
        await world.exporter.stop()
        return results

    before, after = run(main())

    def ages(pages: list[httpx.Response]) -> list[str]:
        return [re.sub(r"\d\d:\d\d:\d\dZ", "…", text_of(page)).replace("2027-01-15", "") for page in pages[:2]]

    assert ages(after) == ages(before)
    assert {re.sub(r"\d+", "N", row[-9:]) for row in rows_of(after[0])} <= {" N min ago", "N min ago", " N s ago"}
    assert re.search(r"Last successful poll \d+ (s|min) ago ,", ages(after)[1])
    assert re.search(r"Next poll in \d+ (s|min) ", ages(after)[1])
    for index in (2, 3):
        old, new = before[index].json(), after[index].json()
        assert old.pop("as_of") != new.pop("as_of")
        assert new == old
        assert (new["blind_spaces"], new["waiting_spaces"]) == (0, 0)


def test_a_space_without_any_success_is_waiting_and_after_three_intervals_blind() -> None:
    async def main() -> list[tuple[str, str]]:
        world = World(
            scenario(
                4, qps=10, poll_interval="5m", events=({"at": "0s", "space": 1, "answer": "Unknown.ResourceOwnerId"},)
            )
        )
        await world.exporter.start()
        results = []
        for seconds in (1, 898, 2):
            await asyncio.sleep(seconds)
            page, spaces = await fetch(world, f"/space?account=acme&space={world.space_id(1)}", "/api/v1/spaces")
            (failing,) = (space for space in spaces.json()["spaces"] if space["space"] == world.space_id(1))
            results.append((failing["state"], (re.search("[…◌] (waiting|blind)", text_of(page)) or [""])[0]))
        await world.exporter.stop()
        return results

    waiting = ("waiting", "… waiting")
    assert run(main()) == [waiting, waiting, ("blind", "◌ blind")]


def test_ready_is_200_after_every_space_was_polled_even_if_all_polls_failed() -> None:
    async def main() -> list[httpx.Response]:
        world = World(scenario(3, qps=1, poll_interval="30s", events=({"at": "0s", "answer": "ServiceUnavailable"},)))
        await world.exporter.start()
        responses = await fetch(world, "/-/ready")
        await asyncio.sleep(60)
        responses += await fetch(world, "/-/ready", "/api/v1/spaces")
        await world.exporter.stop()
        return responses

    early, late, spaces = run(main())

    assert (early.status_code, late.status_code) == (503, 200)
    assert spaces.json()["accounts"][0]["state"] == "unreachable"


def test_page_and_json_report_a_failed_space_discovery() -> None:
    async def main() -> list[httpx.Response]:
        denied = {"at": "0s", "answer": "NoPermission", "action": "ListInstance"}
        world = World(scenario(3, events=(denied,), poll_interval="5s"))
        world.settings = world.settings.model_copy(
            update={"accounts": [world.settings.accounts[0].model_copy(update={"discover": True})]}
        )
        world.exporter = world.fresh_exporter()
        await world.exporter.start()
        await asyncio.sleep(60)
        responses = await fetch(world, "/", "/api/v1/spaces")
        await world.exporter.stop()
        return responses

    page, spaces = run(main())

    assert "Space discovery of account acme failed or is not complete : spaces may be missing on this page." in text_of(
        page
    )
    assert spaces.json()["accounts_with_incomplete_spaces"] == ["acme"]


def test_page_and_json_show_the_shard() -> None:
    async def main(shard: Shard) -> list[httpx.Response]:
        world = World(scenario(20, qps=4))
        world.exporter = world.fresh_exporter(shard=shard)
        responses = await fetch(world, "/", "/api/v1/spaces")
        await world.exporter.stop()
        return responses

    page, spaces = run(main(Shard(1, 2)))
    page_2, spaces_2 = run(main(Shard(2, 2)))

    assert "This is shard 1 of 2. The pages of the other shards show the other accounts." in text_of(page)
    assert (spaces.json()["shard"], spaces.json()["total"]) == ("1/2", 20)
    assert "No account is assigned to this shard. The pages of the other shards show the accounts." in text_of(page_2)
    assert (spaces_2.json()["shard"], spaces_2.json()["total"]) == ("2/2", 0)


def test_a_space_is_found_by_any_of_its_numbers() -> None:
    (everything,) = get("/api/v1/phone-numbers")
    numbers = everything.json()["phone_numbers"]
    assert len(numbers) > len({number["space"] for number in numbers})

    responses = get(*(f"/api/v1/spaces?q={number['phone_number']}" for number in numbers))

    assert [[space["space"] for space in response.json()["spaces"]] for response in responses] == [
        [number["space"]] for number in numbers
    ]


def test_an_unknown_account_is_an_error() -> None:
    page, numbers = get("/?account=acmee", "/api/v1/phone-numbers?account=acmee")

    assert (page.status_code, numbers.status_code) == (400, 400)
    assert numbers.json() == {"error": "account: expected one of acme, found 'acmee'"}


def test_the_state_filter_ignores_case_and_a_missing_page_links_to_the_first_page() -> None:
    red, missing = get("/?state=RED", "/?page=99")

    assert [row[:5] for row in rows_of(red)] == ["● RED"]
    assert "Page 99 does not exist. Go to the first page ." in text_of(missing)
    assert "Previous page" not in text_of(missing)


def test_the_table_of_accounts_shows_budget_and_intervals() -> None:
    (page,) = get("/", seconds=300)

    accounts = re.findall(r"(?s)<tbody>(.*?)</tbody>", page.text)[-1]
    cells = [re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", cell))).strip() for cell in accounts.split("</td>")]
    assert cells[1:6] == ["5", "10", "10", "5s", "5s"]


def test_spaces_are_listed_before_their_first_poll() -> None:
    (page,) = get("/", seconds=0.15)

    assert sum("no current values; blind after 3" in row for row in rows_of(page)) == 3


def test_usage_md_lists_the_parameters_and_fields_of_each_json_path() -> None:
    document = USAGE.read_text("utf-8")
    numbers, spaces, unknown = get("/api/v1/phone-numbers", "/api/v1/spaces", "/api/v1/spaces?unknown=x")
    parameters = re.findall(r"\w+", unknown.json()["error"].removeprefix("unknown: unknown parameter, expected one of"))

    for path, response, listed in (("phone-numbers", numbers, "phone_numbers"), ("spaces", spaces, "spaces")):
        (row,) = re.findall(rf"(?m)^\| `/api/v1/{path}` \| (.*) \| (.*) \|$", document)
        assert [name.removesuffix("[]") for name in re.findall("`(.+?)`", row[0])] == parameters
        assert re.findall("`(.+?)`", row[1]) == fields_of(response.json(), listed)


def fields_of(response: dict[str, Any], listed: str) -> list[str]:
    """Return the names of all fields as in docs/usage.md, for example `spaces[].state`."""
    failing = [entry for entry in response[listed] if entry.get("last_failure")]
    (entry, *_) = failing or response[listed]
    failure_fields = [f"last_failure.{name}" for name in entry.get("last_failure", ())]
    names = [name for name in entry if name != "last_failure"]
    of_accounts = [f"accounts[].{name}" for name in response["accounts"][0]]
    top_level = [of_accounts if name == "accounts" else [name] for name in response if name != listed]
    return [*chain.from_iterable(top_level), *(f"{listed}[].{name}" for name in [*names, *failure_fields])]


def test_the_json_of_phone_numbers_counts_blind_and_waiting_spaces() -> None:
    (response,) = get("/api/v1/phone-numbers?state=red")

    document = response.json()
    assert (document["total"], document["pages"], document["as_of"]) == (1, 1, "2027-01-15T08:01:00Z")
    assert (document["blind_spaces"], document["waiting_spaces"]) == (2, 0)
    (red,) = document["phone_numbers"]
    assert (red["quality_rating"], red["since"], red["blind"]) == ("RED", "2027-01-15T08:00:31Z", False)


def test_the_json_of_spaces_has_state_and_failures_of_each_space() -> None:
    (response,) = get("/api/v1/spaces")

    spaces = response.json()["spaces"]
    assert [space["state"] for space in spaces] == ["red", "blind", "blind", "green", "green"]
    assert {space["space"] for space in spaces if not space["up"]} == {space["space"] for space in spaces[1:3]}
    (never,) = (space for space in spaces if space["last_success"] is None)
    assert (never["phone_numbers"], never["last_failure"]["reason"]) == (None, "rejected")
    assert never["failures"] == {"rejected": never["polls"]}
