"""Accessibility: keyboard, narrow windows, large fonts, light and dark mode, screen readers, and the rules of axe."""

from dataclasses import replace
from itertools import product
from typing import Any, Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from browsing import DENIED, FLEET, HOUR, NOW, THROTTLED, UNREACHABLE, Visitor, failure, fleet, number, space
from playwright.sync_api import Page, expect

from exporter.runtime.view import Snapshot
from exporter.state.store import Change

FOCUS = """() => {
    const focused = document.activeElement, box = focused.getBoundingClientRect(), style = getComputedStyle(focused);
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    const inside = box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
    const name = focused.labels?.[0]?.innerText || focused.innerText;
    return {name: name.replace(/\\s+/g, " ").trim(), visible: outlined && inside && box.width > 0};
}"""
TOO_WIDE = """() => [...document.querySelectorAll("html, body *")]
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1 || node.scrollWidth > node.clientWidth + 1)
    .filter(node => getComputedStyle(node).display !== "inline" && !node.closest("select"))
    .map(node => node.outerHTML.slice(0, 120))"""
BROKEN_WORDS = """() => {
    const broken = [], range = new Range(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        for (const word of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
            range.setStart(texts.currentNode, word.index);
            range.setEnd(texts.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) broken.push(word[0]);
        }
    return broken;
}"""
AXE = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
ARIA_SNAPSHOT = """
- link "Skip to content"
- banner:
  - navigation "Pages"
- main:
  - heading "Phone numbers" [level=1]
  - list "Phone numbers and spaces by state":
    - listitem:
      - link "1 down"
    - listitem:
      - link "1 RED"
  - search:
    - searchbox "Name, number, space or label"
    - combobox "Account"
    - button "Filter"
  - table "2 phone numbers and spaces found, page 1 of 2":
    - rowgroup:
      - row:
        - columnheader "State"
        - columnheader "Phone number"
        - columnheader "Space"
        - columnheader "Quality rating"
        - columnheader "Messaging limit tier"
        - columnheader "Status"
        - columnheader "Last change"
        - columnheader "Last successful poll"
    - rowgroup:
      - row:
        - cell "RED"
        - rowheader "Contoso 49303"
        - cell /Contoso acme · s2/
  - navigation "Pagination":
    - link "Next page"
  - heading "Accounts" [level=2]
  - table /State, budget and poll intervals/:
    - rowgroup
    - rowgroup:
      - row /globex/:
        - rowheader "globex"
        - cell /ok/
- contentinfo
"""
LONG_TEXT = "Donaudampfschifffahrtsgesellschaft" * 6
LONG_VALUES = dict.fromkeys(
    ["messaging_limit_tier", "status", "name_status", "new_name_status", "code_verification_status", "is_official"],
    LONG_TEXT,
)
LONG_FLEET = fleet(
    space(
        LONG_TEXT,
        number("4" * 60, LONG_TEXT, quality_rating=LONG_TEXT, **LONG_VALUES),
        number("49301", "Contoso", "YELLOW"),
        name=LONG_TEXT,
        account=LONG_TEXT,
        labels={"team": LONG_TEXT},
        failure=failure(LONG_TEXT),
    ),
    **{LONG_TEXT: replace(DENIED, code=LONG_TEXT, detail=LONG_TEXT, request_id=LONG_TEXT)},
)
LONG_SPACE = f"space?account={LONG_TEXT}&space={LONG_TEXT}"


def tab(page: Page, times: int) -> list[str]:
    """Press Tab `times` times. Return the names of the focused elements, each visible and with a visible focus."""
    focused = []
    for _ in range(times):
        page.keyboard.press("Tab")
        focused.append(page.evaluate(FOCUS))
    assert [element["name"] for element in focused if not element["visible"]] == []
    return [element["name"] for element in focused]


def test_the_tab_key_moves_through_the_page_in_reading_order(visitor: Visitor) -> None:
    page = visitor.visit()

    assert tab(page, 19) == [
        "Skip to content",
        "chatapp-exporter",
        "Phone numbers",
        "Accounts",
        "Metrics",
        "API",
        "Configuration",
        "Refresh automatically every 30 seconds",
        "1 ✖ down",
        "1 ● RED",
        "2 ◌ blind spaces",
        "1 ◆ restricted",
        "1 ▲ YELLOW",
        "1 ✔ GREEN",
        "Name, number, space or label",
        "Account",
        "Filter",
        "Fabrikam",
        "Contoso",
    ]


def test_the_skip_link_skips_the_links_at_the_top_of_every_page(visitor: Visitor) -> None:
    page = visitor.visit("space?account=acme&space=s2")
    tab(page, 1)
    page.keyboard.press("Enter")

    assert page.url.endswith("#main")
    assert tab(page, 1) == ["acme"]


def test_filters_can_be_used_with_the_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.visit()
    tab(page, 10)
    page.keyboard.press("Enter")
    page.wait_for_url("**/?state=red")
    tab(page, 15)
    page.keyboard.type("care")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=care&account=&state=red")

    assert page.get_by_text("No phone number or space matches the filters.").count() == 1


@pytest.mark.parametrize("width", [1280, 390])
def test_screen_readers_find_all_parts_and_tables_even_if_rows_are_shown_as_cards(visitor: Visitor, width: int) -> None:
    page = visitor.visit("?state=red&state=restricted&per_page=1", viewport={"width": width, "height": 800})

    expect(page.locator("body")).to_match_aria_snapshot(ARIA_SNAPSHOT)


@pytest.mark.parametrize("address", ["", "?q=nothing", LONG_SPACE], ids=["fleet", "no match", "space"])
def test_no_page_is_wider_than_the_window(visitor: Visitor, address: str) -> None:
    visitor.site.fleet = LONG_FLEET
    page, too_wide_elements = visitor.visit(address), {}
    settings = page.context.new_cdp_session(page)
    for font_size, width in product((16, 32), (1280, 1249, 1248, 768, 390, 320)):
        settings.send("Page.setFontSizes", {"fontSizes": {"standard": font_size}})
        page.set_viewport_size({"width": width, "height": 800})
        if too_wide := page.evaluate(TOO_WIDE):
            too_wide_elements[width, font_size] = too_wide

    assert too_wide_elements == {}


@pytest.mark.parametrize("address", ["", "space?account=acme&space=s2"], ids=["fleet", "space"])
def test_no_word_of_normal_length_is_broken(visitor: Visitor, address: str) -> None:
    page, broken = visitor.visit(address), {}
    for width in (1280, 1249, 1248, 768, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        if words := page.evaluate(BROKEN_WORDS):
            broken[width] = words

    assert broken == {}


MISSING = fleet(
    space(
        "s1",
        number("49301", "Contoso", "", messaging_limit_tier="", status=""),
        missing={
            ("49301", "quality_rating"): Change(NOW - 2 * HOUR, "RED"),
            ("49301", "messaging_limit_tier"): Change(NOW - 2 * HOUR, "TIER_10K"),
            ("49301", "status"): Change(NOW - HOUR, "BANNED"),
        },
    ),
    acme=None,
)
WINDOWS: list[tuple[int, Literal["light", "dark"]]] = [(1280, "light"), (1280, "dark"), (390, "dark")]
PAGES: dict[str, tuple[Snapshot, str]] = {
    "fleet": (FLEET, ""),
    "filtered": (FLEET, "?state=red&state=restricted&q=o&account=acme&per_page=1&page=2&refresh=30"),
    "no match": (FLEET, "?q=nothing"),
    "denied": (fleet(*FLEET.spaces, acme=DENIED), ""),
    "unreachable and throttled": (fleet(*FLEET.spaces, acme=UNREACHABLE, globex=THROTTLED), ""),
    "not reported": (MISSING, ""),
    "not reported, space page": (MISSING, "space?account=acme&space=s1"),
    "healthy space": (FLEET, "space?account=acme&space=s2"),
    "failing space": (FLEET, "space?account=acme&space=s4"),
    "space with old values": (FLEET, "space?account=acme&space=s5"),
}


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(visitor: Visitor, name: str) -> None:
    visitor.site.fleet, address = PAGES[name]
    page, found = visitor.visit(address), {}
    page.evaluate(AXE_SCRIPT)
    for width, scheme in WINDOWS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        if violations := page.evaluate("options => axe.run(options)", AXE)["violations"]:
            found[width, scheme] = [_report(violation) for violation in violations]

    assert found == {}


def _report(violation: dict[str, Any]) -> str:
    places = "; ".join(node["html"][:200] for node in violation["nodes"])
    return f"{violation['id']}: {violation['help']}: {places}"
