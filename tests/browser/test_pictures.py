"""Compares the screenshots in the documents with the current pages of the demo.

The demo runs under virtual time, so that the pages are always the same. `make pictures` updates the screenshots.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from browsing import Visitor
from PIL import Image, ImageChops
from virtual_time import run
from world import World

from exporter.runtime.view import Snapshot
from exporter.simulator.fleet import load_scenario

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
DEMO_SECONDS = 95
"""After this time of the demo, each kind of event has happened, and a space has just lost its permission."""
MAX_DIFFERENCE = 48
"""Of 255. Other versions of the browser smooth fonts differently and cause smaller differences."""
MAX_CHANGED_SHARE = 0.0002
"""Share of the pixels that can have a larger difference: about one word in a screenshot."""

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
SPACE = "space?account=acme&space=cams-3da91c2439"
VIEWS = {
    "status-page": ("", DESKTOP),
    "status-page-telephone": ("", PHONE),
    "status-page-space": (SPACE, DESKTOP),
}


@pytest.fixture(scope="module")
def demo() -> Snapshot:
    async def run_demo() -> Snapshot:
        world = World(load_scenario(None))
        await world.exporter.start()
        await asyncio.sleep(DEMO_SECONDS)
        snapshot = world.exporter.view.snapshot()
        await world.exporter.stop()
        return snapshot

    with ThreadPoolExecutor() as executor:  # the browser uses the event loop of this thread
        return executor.submit(run, run_demo()).result()


@pytest.mark.parametrize("locale", [{}, {"timezone_id": "Pacific/Auckland", "locale": "ar-EG"}], ids=["en", "ar"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_demo_matches_the_screenshot(
    visitor: Visitor, demo: Snapshot, tmp_path: Path, name: str, locale: dict[str, str]
) -> None:
    visitor.site.fleet, (address, window) = demo, VIEWS[name]
    page = visitor.visit(address, **window, **locale, device_scale_factor=1, reduced_motion="reduce")
    actual, expected = tmp_path / f"{name}.png", PICTURES / f"{name}.png"
    reduce_colours(Image.open(BytesIO(page.screenshot()))).save(actual, optimize=True)
    if os.environ.get("WRITE_PICTURES"):
        expected.write_bytes(actual.read_bytes())

    differing = tmp_path / "difference.png"
    share = difference(Image.open(expected).convert("RGB"), Image.open(actual).convert("RGB"), differing)
    assert share <= MAX_CHANGED_SHARE, (
        f"{share:.2%} of {expected} changed: see {actual} and {differing}; if this is intended, run make pictures"
    )


def test_no_screenshot_is_larger_than_150_kb() -> None:
    assert [path.name for path in PICTURES.glob("*.png") if path.stat().st_size > 150_000] == []


def reduce_colours(picture: Image.Image) -> Image.Image:
    """Return the picture with 256 colours. Each colour changes only slightly."""
    return picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def difference(before: Image.Image, after: Image.Image, output: Path) -> float:
    """Return the share of pixels with a large difference, and save a picture with these pixels in white."""
    if before.size != after.size:
        return 1.0
    channels = ImageChops.difference(before, after).split()
    largest = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    changed = largest.point(lambda value: 255 if value > MAX_DIFFERENCE else 0)
    changed.save(output)
    return changed.histogram()[255] / (before.width * before.height)
