"""A browser for all tests of this directory, and a visitor who must have nothing to complain about."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import FLEET, Site, Visitor, site
from playwright.sync_api import Browser, sync_playwright
from programs import require_program

FONTS = Path(__file__).with_name("fonts.conf")
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # no longer than this directory's tests last: while it is there, its thread can run no other event loop
    chromium = require_program("chromium", "chromium-browser", package="chromium")
    require_program(FONT, package="fonts-dejavu-core", mode=os.F_OK)
    environ: dict[str, str | float | bool] = {**os.environ, "FONTCONFIG_FILE": str(FONTS)}
    with sync_playwright() as playwright:
        # root, as CI is, has no sandbox
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], env=environ)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def served() -> Iterator[Site]:
    with site() as one:
        yield one


@pytest.fixture
def visitor(browser: Browser, served: Site) -> Iterator[Visitor]:
    """Someone at the site of `FLEET`, who has nothing to complain about at the end."""
    served.fleet = FLEET
    one = Visitor(browser, served)
    yield one
    one.leave()
    assert one.browser_errors == []
