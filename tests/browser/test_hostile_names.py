"""Pages show all names, values and errors from the API and the configuration as text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from browsing import DENIED, HOUR, NOW, Visitor, failure, fleet, follow, number, space

from exporter.metrics.catalogue import SpaceView
from exporter.state.store import Change

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "javascript:alert(1)",
    "</style></title></textarea><iframe src=//example.com></iframe>",
    "<!-- <svg/onload=alert(1)> -->",
    "{{7*7}}{% raw %}${7*7}",
    "&amp; &lt;b&gt; &#x202e;",
    "' or 1=1; --",
    "👩🏽\u200d🚒 Ünï中 \u202eright to left\u2069 שלום",
    "two  spaces, a\ttab and a\nline",
    "../?#&%+=;/ %2F%00",
    "a null byte \0, which HTML cannot show",
]
ELEMENTS = """() => [...document.querySelectorAll("*")]
    .map(node => `${node.tagName} ${node.getAttributeNames().sort().join(" ")}`)"""
REORDERED = """() => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = new Range(), reordered = [];
    const boxes = (node, from, to) => (range.setStart(node, from), range.setEnd(node, to), [...range.getClientRects()]);
    const block = node => node.parentElement.closest("td, th, p, dd, dt, li, h1, caption");
    for (let node, before, last; node = texts.nextNode(); [before, last] = [node, boxes(node, 0, node.length)]) {
        const first = boxes(node, 0, node.length)[0];
        if (!node.data.trim() || !first) continue;
        const sameLine = last?.length === 1 && Math.abs(last[0].bottom - first.bottom) < 5;
        const sameBlock = sameLine && block(before) === block(node);
        if (sameBlock && first.left < last[0].right - 1) reordered.push(`${before.data}|${node.data}`);
        if (/[\\u0590-\\u05ff\\u200f\\u202e]/.test(node.data)) continue;
        for (let i = 1; i < node.length; i++) {
            const [[current], [next]] = [boxes(node, i - 1, i), boxes(node, i, i + 1)];
            if (current?.top === next?.top && current?.left > next?.left) reordered.push(node.data);
        }
    }
    return [...new Set(reordered)];
}"""


VALUES = "messaging_limit_tier status name_status new_name_status code_verification_status is_official".split()


def hostile_space(text: str, prefix: str = "") -> SpaceView:
    """Return a space and a phone number with this text in all values from the API and the configuration."""
    return space(
        prefix + printable(text),
        number(text, text, text, **dict.fromkeys(VALUES, text)),
        name=text,
        account=prefix + printable(text),
        labels={"team": printable(text)},
        changes={(text, "status"): Change(NOW - HOUR, text)},
        failure=replace(failure(text), code=text, request_id=text),
    )


def printable(text: str) -> str:
    """Remove invisible characters: names of accounts and ids of spaces cannot contain them."""
    return "".join(filter(str.isprintable, text))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_shown_unchanged_in_each_place(visitor: Visitor, text: str) -> None:
    visitor.site.fleet = fleet(hostile_space(text), space("harmless", number("49301", "Contoso")))
    page = visitor.visit()

    shown, name = text.replace("\0", ""), printable(text)
    row = page.locator("tbody tr").first
    assert row.locator("th").text_content() == shown + shown
    assert [row.locator("td").nth(i).text_content() for i in (2, 3)] == [shown, shown]
    assert row.locator("td").nth(4).text_content() == f"{shown}was {shown} until 1 h ago"
    follow(row.get_by_role("link"))
    assert page.locator("h1").text_content() == shown
    assert page.locator("dd").all_text_contents()[:3] == [name, name, name]
    assert f"{shown}: {shown} (request {shown})" in (page.locator("dd").last.text_content() or "")
    assert page.locator("tbody th").first.text_content() == shown + shown
    assert page.locator("tbody").last.locator("td").nth(2).text_content() == shown
    follow(page.locator("dd").first.get_by_role("link"))
    assert page.locator("caption").first.inner_text() == "1 phone number or space found"


def test_no_text_becomes_an_element_or_an_attribute(visitor: Visitor) -> None:
    page = visitor.visit()

    def elements(texts: Sequence[str]) -> list[Any]:
        """Return the elements of the fleet page, of each space page, and of a search without a match for each text."""
        visitor.site.fleet = fleet(*(hostile_space(text, f"{index} ") for index, text in enumerate(texts)))
        names = [f"{index} {printable(text)}" for index, text in enumerate(texts)]
        spaces = [f"space?{urlencode({'account': name, 'space': name})}" for name in names]
        searches = [f"?{urlencode({'q': f'nothing {text}'})}" for text in texts]
        return [page.goto(address) and page.evaluate(ELEMENTS) for address in ("", *spaces, *searches)]

    assert elements(HOSTILE) == elements(["harmless"] * len(HOSTILE))


def test_a_name_of_5000_characters_is_shown_completely(visitor: Visitor) -> None:
    visitor.site.fleet = fleet(space("s1", number("49301", "A" * 5000)))

    assert visitor.visit().locator("tbody th").first.inner_text() == "A" * 5000 + "\n49301"


@pytest.mark.parametrize("text", ["two  spaces", "'quotes\" & more>"])
def test_an_account_with_special_characters_can_be_selected(visitor: Visitor, text: str) -> None:
    visitor.site.fleet = fleet(hostile_space(text, "1"), hostile_space(text, "2"))
    page = visitor.visit()
    page.get_by_label("Account").select_option(index=2)
    follow(page.get_by_role("button", name="Filter"))

    assert page.locator("caption").first.inner_text() == "1 phone number or space found"


@pytest.mark.parametrize("text", ["\u202eevil", "\u2069\u202eevil", "\u2066evil", "שלום 12", "\u200f1"])
def test_right_to_left_text_does_not_reorder_adjacent_text(visitor: Visitor, text: str) -> None:
    visitor.site.fleet = fleet(
        hostile_space(text), **{printable(text): replace(DENIED, code=text, detail=text, request_id=text)}
    )
    page = visitor.visit()

    assert page.evaluate(REORDERED) == []
    follow(page.locator("td").get_by_role("link"))
    assert page.evaluate(REORDERED) == []
