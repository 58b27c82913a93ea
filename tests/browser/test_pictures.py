"""What the demo looks like: the pictures that the documents show, compared with what a browser makes of the pages now.

The demo is played under virtual time, so that the same pages come out each time. `make pictures` takes them over.
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
SECONDS = 95
"""Into the demo: something of each kind has happened, and a space has just lost its permission."""
MUCH = 48
"""Of 255: a colour that differs by less is another version of the browser smoothing its letters."""
FEW = 0.0002
"""The share of the points that may differ by more, about a word in one picture."""

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
TELEPHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
SPACE = "space?account=acme&space=cams-3da91c2439"
VIEWS = {
    "status-page": ("", DESKTOP),
    "status-page-telephone": ("", TELEPHONE),
    "status-page-space": (SPACE, DESKTOP),
}


@pytest.fixture(scope="module")
def demo() -> Snapshot:
    async def played() -> Snapshot:
        world = World(load_scenario(None))
        await world.exporter.start()
        await asyncio.sleep(SECONDS)
        snapshot = world.exporter.view.snapshot()
        await world.exporter.stop()
        return snapshot

    with ThreadPoolExecutor() as aside:  # the browser has this thread's event loop
        return aside.submit(run, played()).result()


@pytest.mark.parametrize("abroad", [{}, {"timezone_id": "Pacific/Auckland", "locale": "ar-EG"}], ids=["here", "abroad"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_demo_looks_as_in_the_picture(
    visitor: Visitor, demo: Snapshot, tmp_path: Path, name: str, abroad: dict[str, str]
) -> None:
    visitor.site.fleet, (address, window) = demo, VIEWS[name]
    page = visitor.visit(address, **window, **abroad, device_scale_factor=1, reduced_motion="reduce")
    now, kept = tmp_path / f"{name}.png", PICTURES / f"{name}.png"
    small(Image.open(BytesIO(page.screenshot()))).save(now, optimize=True)
    if os.environ.get("WRITE_PICTURES"):
        kept.write_bytes(now.read_bytes())

    differing = tmp_path / "difference.png"
    share = difference(Image.open(kept).convert("RGB"), Image.open(now).convert("RGB"), differing)
    assert share <= FEW, (
        f"{share:.2%} of {kept} differ: look at {now} and {differing}; if it is meant so: make pictures"
    )


def test_no_picture_is_large() -> None:
    assert [path.name for path in PICTURES.glob("*.png") if path.stat().st_size > 150_000] == []


def small(picture: Image.Image) -> Image.Image:
    """The same in 256 colours, each off by a few of 255."""
    return picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def difference(one: Image.Image, other: Image.Image, told: Path) -> float:
    """The share of the points whose colours differ by much; they are white in the picture that is told."""
    if one.size != other.size:
        return 1.0
    channels = ImageChops.difference(one, other).split()
    most = ImageChops.lighter(ImageChops.lighter(channels[0], channels[1]), channels[2])
    much = most.point(lambda value: 255 if value > MUCH else 0)
    much.save(told)
    return much.histogram()[255] / (one.width * one.height)
