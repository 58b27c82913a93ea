"""The pages in a real browser: content, filters and links, with and without JavaScript."""

import pytest
from browsing import DENIED, HOUR, NOW, THROTTLED, UNREACHABLE, Visitor, failure, fleet, follow, number, space
from playwright.sync_api import Page

from exporter.model import AccountHealth
from exporter.state.store import Change

WITH_AND_WITHOUT_SCRIPTS = pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
LARGE = fleet(
    *(space(f"s{i}", *(number(f"49{i:04}{j}", f"Brand {i}") for j in range(4)), name=f"Shop {i}") for i in range(2500))
)
"""10,000 numbers."""
BLOCKED_DIRECTIVES = ["frame-src", "img-src", "script-src-attr", "script-src-elem", "style-src-elem"]


def states(page: Page) -> list[tuple[str, str]]:
    """Return the state and the first line of the name, for each row of the first table."""
    table = page.locator("table").first
    states, names = table.locator("td:first-child"), table.locator("tbody th")
    return list(zip(states.all_inner_texts(), (name.split("\n")[0] for name in names.all_inner_texts()), strict=True))


def counts(page: Page) -> list[str]:
    return [text.replace("\n", " ") for text in page.locator(".counts li").all_inner_texts()]


@WITH_AND_WITHOUT_SCRIPTS
def test_the_fleet_page_is_sorted_by_severity_and_has_counts(visitor: Visitor, scripts: bool) -> None:
    page = visitor.visit(java_script_enabled=scripts)

    assert page.title() == "Phone numbers · chatapp-exporter"
    assert counts(page) == ["1 ✖ down", "1 ● RED", "2 ◌ blind spaces", "1 ◆ restricted", "1 ▲ YELLOW", "1 ✔ GREEN"]
    assert states(page) == [
        ("✖ down", "Fabrikam"),
        ("● RED", "Contoso"),
        ("◌ blind", "no current values"),
        ("◌ blind", "no current values"),
        ("◆ restricted", "Contoso Care"),
        ("▲ YELLOW", "Adatum Care"),
        ("✔ GREEN", "Adatum"),
    ]


def test_a_row_shows_the_previous_value_and_the_time_of_the_change(visitor: Visitor) -> None:
    red = visitor.visit("?state=red").locator("tbody tr").first

    assert red.locator("td, th").all_inner_texts() == [
        "● RED",
        "Contoso\n49303",
        "Contoso\nacme · s2",
        "RED\nwas YELLOW until 2 h ago",
        "TIER_10K",
        "CONNECTED",
        "quality rating: 2 h ago",
        "1 min ago",
    ]
    assert red.locator("time").first.get_attribute("title") == "2027-01-15 06:00:00Z"


@WITH_AND_WITHOUT_SCRIPTS
def test_a_tile_filters_by_state_and_the_url_contains_the_filter(visitor: Visitor, scripts: bool) -> None:
    page = visitor.visit(java_script_enabled=scripts)
    follow(page.get_by_role("link", name="YELLOW"))

    assert page.url == f"{visitor.site.url}/?state=yellow"
    yellow = [("▲ YELLOW", "Adatum Care")]
    assert states(page) == yellow
    page.reload()
    assert states(page) == yellow
    assert states(visitor.visit(page.url, java_script_enabled=scripts)) == yellow
    follow(page.get_by_role("link", name="YELLOW"))  # a second click removes the filter
    assert len(states(page)) == 7


@WITH_AND_WITHOUT_SCRIPTS
def test_the_form_filters_by_text_and_account_and_keeps_the_state(visitor: Visitor, scripts: bool) -> None:
    page = visitor.visit("?state=red&state=restricted", java_script_enabled=scripts)
    page.get_by_label("Name, number, space or label").fill("EMEA conto")
    page.get_by_label("Account").select_option("acme")
    follow(page.get_by_role("button", name="Filter"))

    assert page.url == f"{visitor.site.url}/?q=EMEA+conto&account=acme&state=red&state=restricted"
    assert states(page) == [("● RED", "Contoso"), ("◆ restricted", "Contoso Care")]
    assert counts(page) == ["0 ✖ down", "1 ● RED", "0 ◌ blind spaces", "1 ◆ restricted", "0 ▲ YELLOW"]
    assert page.get_by_label("Name, number, space or label").input_value() == "EMEA conto"
    assert page.get_by_label("Account").input_value() == "acme"
    follow(page.get_by_role("link", name="Clear filters"))
    assert (page.url, len(states(page))) == (f"{visitor.site.url}/", 7)


def test_a_page_without_a_match_has_a_link_that_clears_the_filters(visitor: Visitor) -> None:
    page = visitor.visit("?q=nothing")

    assert page.locator("main > p").last.inner_text() == "No phone number or space matches the filters. Clear filters."
    follow(page.locator("main > p").get_by_role("link", name="Clear filters"))
    assert len(states(page)) == 7


@WITH_AND_WITHOUT_SCRIPTS
def test_a_link_opens_the_space_page_and_back_returns_to_the_filtered_list(visitor: Visitor, scripts: bool) -> None:
    page = visitor.visit("?state=blind", java_script_enabled=scripts)
    follow(page.get_by_role("link", name="Northwind"))

    assert page.url == f"{visitor.site.url}/space?account=acme&space=s4"
    assert page.get_by_role("heading", level=1).inner_text() == "Northwind"
    assert page.locator("dd").all_inner_texts() == [
        "acme",
        "s4",
        "never",
        "retry with exponential backoff",
        "7 since the start of the exporter; failed: 3 rejected",
        "The last 3 polls failed (first failure 2 h ago). Last error 1 min ago: rejected, Unknown.ResourceOwnerId:"
        " The resource does not belong to the current user. (request REQ-1)",
    ]
    page.go_back()
    assert page.url == f"{visitor.site.url}/?state=blind"
    assert len(states(page)) == 2


def test_values_older_than_max_age_are_blind_on_the_space_page(visitor: Visitor) -> None:
    page = visitor.visit("space?account=acme&space=s5")

    assert states(page) == [("◌ blind", "Tailspin")]
    assert page.locator(".notice").inner_text() == (
        "The values below are older than max_age and are not exported. The last successful poll of this space"
        " was at 2027-01-15 06:00:00Z."
    )


def test_numbers_of_a_blind_space_are_blind_on_the_fleet_page_and_on_the_space_page(visitor: Visitor) -> None:
    red, green = number("49301", "Contoso", "RED"), number("49302", "Contoso Care")
    visitor.site.fleet = fleet(space("s1", green, red, success_age=0.5 * HOUR, failure=failure()))
    page = visitor.visit()

    assert states(page) == [("● RED\n◌ blind", "Contoso"), ("◌ blind", "Contoso Care")]
    page.goto("space?account=acme&space=s1")
    assert states(page) == [("◌ blind", "Contoso Care"), ("● RED\n◌ blind", "Contoso")]


@pytest.mark.parametrize(
    ("health", "text", "cells"),
    [
        (
            DENIED,
            "The API has denied access to account globex since 2027-01-15 07:50:00Z (10 min ago):"
            " InvalidAccessKeyId.NotFound: Specified access key is not found. (request REQ-2)\n"
            "All spaces of this account are blind: their values may be out of date. Check the access key, its"
            " permissions (RAM policy), the subscription and the system time of the exporter's host. The exporter"
            " polls one space per interval until access is restored.",
            ["globex", "● denied", "1", "5", "5", "5m", "5m"],
        ),
        (
            UNREACHABLE,
            "Account globex has been unreachable since 2027-01-15 07:50:00Z (10 min ago): transport:"
            " ConnectError: All connection attempts failed\n"
            "The API does not respond or returns server errors. All spaces of this account are blind: their values may"
            " be out of date. Check the network, DNS, the proxy (HTTPS_PROXY), certificates (SSL_CERT_FILE) and the"
            " endpoint; if the code is http_5xx or InternalError, the problem is in the API: wait. The exporter"
            " retries with exponential backoff.",
            ["globex", "● unreachable", "1", "5", "5", "5m", "5m"],
        ),
        (
            THROTTLED,
            "The API has throttled account globex since 2027-01-15 07:50:00Z (10 min ago): Throttling.User:"
            " Request was denied due to user flow control. (request REQ-2)\n"
            "The current budget is 2.5 instead of 5 queries per second. Each space is polled every 10m"
            " instead of every 5m. Check which other programs use this access key, or"
            " lower qps.",
            ["globex", "▲ throttled", "1", "5", "2.5 (throttled)", "5m", "10m (longer because of throttling)"],
        ),
    ],
    ids=["denied", "unreachable", "throttled"],
)
def test_an_account_that_is_not_ok_has_a_banner_at_the_top(
    visitor: Visitor, health: AccountHealth, text: str, cells: list[str]
) -> None:
    visitor.site.fleet = fleet(*visitor.site.fleet.spaces, globex=health)
    page = visitor.visit()

    assert page.locator(".notice").all_inner_texts() == [text]
    assert "notice" in (page.locator("main > *").nth(2).get_attribute("class") or "")
    assert page.locator("tr", has_text="globex").last.inner_text().split("\t") == cells
    page.goto("space?account=globex&space=s1")
    assert page.locator(".notice").all_inner_texts() == [text]
    page.goto("space?account=acme&space=s2")
    assert page.locator(".notice").count() == 0


def test_the_banner_of_an_unreachable_account_links_to_its_spaces(visitor: Visitor) -> None:
    visitor.site.fleet = fleet(*visitor.site.fleet.spaces, globex=UNREACHABLE)
    page = visitor.visit()
    follow(page.get_by_role("link", name="All spaces of this account are blind"))

    assert states(page) == [("◌ blind", "Adatum"), ("◌ blind", "Adatum Care")]


def test_an_account_without_a_response_yet_has_no_banner(visitor: Visitor) -> None:
    visitor.site.fleet = fleet(*visitor.site.fleet.spaces, globex=None)
    page = visitor.visit()

    assert page.locator(".notice").count() == 0
    assert page.locator("tr", has_text="globex").last.inner_text().split("\t")[:2] == ["globex", "not known yet"]


@pytest.mark.parametrize(
    ("field", "before", "state"),
    [
        ("quality_rating", "RED", "● RED"),
        ("quality_rating", "GREEN", "? unknown"),
        ("status", "BANNED", "✖ down"),
        ("messaging_limit_tier", "TIER_10K", "✔ GREEN"),
    ],
)
def test_a_field_that_is_not_reported_shows_its_last_value_of_any_age(
    visitor: Visitor, field: str, before: str, state: str
) -> None:
    listed, key = number("49301", "Contoso", **{field: ""}), ("49301", field)
    changed = {key: Change(NOW - 1000 * HOUR, "YELLOW")}
    visitor.site.fleet = fleet(space("s1", listed, changes=changed, missing={key: Change(NOW - 300 * HOUR, before)}))
    page = visitor.visit()

    column = {"quality_rating": "Quality rating", "messaging_limit_tier": "Messaging limit tier", "status": "Status"}
    text = f"not reported\nwas {before} until 12 d ago"
    assert states(page) == [(state, "Contoso")]
    assert page.locator(f"td[data-label='{column[field]}']").all_inner_texts() == [text]
    page.goto("space?account=acme&space=s1")
    assert states(page) == [(state, "Contoso")]
    assert page.locator(f"td[data-label='{column[field]}']").all_inner_texts() == [text]
    assert [row.split("\t")[2:] for row in page.locator("table").last.locator("tbody tr").all_inner_texts()] == [
        [field.replace("_", " "), before, "not reported"],
        [field.replace("_", " "), "YELLOW", before],
    ]


def test_ten_thousand_numbers_are_a_hundred_pages(visitor: Visitor) -> None:
    visitor.site.fleet = LARGE
    page = visitor.visit(java_script_enabled=False)

    first = states(page)[0]
    assert page.locator("caption").first.inner_text() == "10,000 phone numbers and spaces found, page 1 of 100"
    assert counts(page)[-1] == "10,000 ✔ GREEN"
    follow(page.get_by_role("link", name="Next page"))
    assert page.url == f"{visitor.site.url}/?page=2"
    follow(page.get_by_role("link", name="Previous page"))
    assert states(page)[0] == first == ("✔ GREEN", "Brand 0")


@pytest.mark.parametrize(
    ("address", "rows", "kilobytes"),
    [("", 100, 150), ("?page=100", 100, 150), ("?page=101", 0, 10), ("?per_page=1000&page=10", 1000, 1500)],
)
def test_a_page_of_a_large_fleet_has_at_most_per_page_rows(
    visitor: Visitor, address: str, rows: int, kilobytes: int
) -> None:
    visitor.site.fleet = LARGE
    page = visitor.visit()
    response = page.goto(address)

    assert response
    assert page.locator("tbody tr").count() == rows + 1  # and the row of the account
    assert len(response.body()) < kilobytes * 1000


def test_the_page_refreshes_only_if_the_url_has_a_refresh_parameter(visitor: Visitor) -> None:
    page = visitor.visit("?state=red")
    follow(page.get_by_role("link", name="Refresh automatically"))

    assert page.url == f"{visitor.site.url}/?state=red&refresh=30"
    assert page.locator("main > p").first.inner_text().endswith("Refreshes automatically every 30 seconds; turn off.")
    follow(page.get_by_role("link", name="turn off"))
    assert page.url == f"{visitor.site.url}/?state=red"


def test_injected_markup_does_not_run_and_loads_no_resources(visitor: Visitor) -> None:
    page = visitor.visit()
    page.evaluate(
        """() => {
            window.violations = [];
            document.addEventListener("securitypolicyviolation", event => violations.push(event.effectiveDirective));
            for (const markup of ["<img src=metrics onerror=alert(1)>", "<iframe src=metrics></iframe>"])
                document.body.insertAdjacentHTML("beforeend", markup);
            document.body.appendChild(document.createElement("script")).text = "window.ran = true";
            document.body.appendChild(document.createElement("style")).textContent = "body { display: none }";
        }"""
    )
    page.wait_for_function("new Set(violations).size >= 5")

    assert sorted(set(page.evaluate("violations"))) == BLOCKED_DIRECTIVES
    assert page.evaluate("window.ran") is None
    assert {error.partition(":")[0] for error in visitor.browser_errors} <= {"console", "failed"}
    visitor.browser_errors.clear()
