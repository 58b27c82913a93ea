"""A browser and a site for all tests of this directory. Each test fails if the browser reports an error."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import FLEET, Site, Visitor, serve_site
from playwright.sync_api import Browser, sync_playwright
from programs import require_program

FONTS = Path(__file__).with_name("fonts.conf")
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    # closed after the tests of this directory: while Playwright runs, this thread cannot run another event loop
    chromium = require_program("chromium", "chromium-browser", package="chromium")
    require_program(FONT, package="fonts-dejavu-core", mode=os.F_OK)
    environ: dict[str, str | float | bool] = {**os.environ, "FONTCONFIG_FILE": str(FONTS)}
    with sync_playwright() as playwright:
        # the sandbox of Chromium does not work as root, for example in CI
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], env=environ)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    with serve_site() as running_site:
        yield running_site


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[Visitor]:
    """A visitor of the site with `FLEET`. The browser must not have reported an error at the end."""
    site.fleet = FLEET
    new_visitor = Visitor(browser, site)
    yield new_visitor
    new_visitor.close()
    assert new_visitor.browser_errors == []
