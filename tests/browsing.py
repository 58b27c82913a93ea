"""Pages in a real browser: a fleet with fixed values, a server on the loopback interface, and a visitor."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Locator, Page, Request, Response

from exporter.clock import Now
from exporter.metrics.catalogue import AccountView, SpaceView
from exporter.model import MESSAGING_LIMITS, AccountHealth, AccountState, PhoneNumber
from exporter.runtime.view import Snapshot, View
from exporter.source import Reason
from exporter.sources.cams.settings import CamsSpace
from exporter.state.store import Change, Changes, Failure, SpaceRecord
from exporter.web.routes import create_app
from exporter.web.server import bind, serving, url_of

NOW = 1_800_000_000.0  # 15 January 2027, 08:00 UTC
MINUTE, HOUR = 60.0, 3600.0


def number(phone_number: str, verified_name: str, quality_rating: str = "GREEN", **changes: str) -> PhoneNumber:
    """Return a connected phone number, with these `changes`."""
    plain = PhoneNumber(phone_number, verified_name, quality_rating, "TIER_10K", "CONNECTED", "APPROVED")
    return replace(plain, **changes)  # type: ignore[arg-type]  # all fields are strings


def space(
    id: str,  # noqa: A002  # the name in CamsSpace
    *numbers: PhoneNumber,
    name: str = "",
    account: str = "acme",
    labels: Mapping[str, str] | None = None,
    success_age: float | None = MINUTE,
    changes: Changes | None = None,
    missing: Changes | None = None,
    failure: Failure | None = None,
) -> SpaceView:
    """Return a space with its last success `success_age` seconds ago. None means that the space never succeeded and was
    added at its first failure. The polls of a space with a `failure` fail."""
    record = SpaceRecord(
        up=failure is None,
        last_success=None if success_age is None else NOW - success_age,
        phone_numbers=numbers,
        changes=changes or {},
        missing=missing or {},
        polls=7,
        failures={failure.reason: failure.consecutive} if failure else {},
        last_failure=failure,
        next_slot=NOW + 4 * MINUTE,
        seen=-(NOW - failure.since if failure else 0) if success_age is None else -success_age,
    )
    now, configured = Now(NOW, 0.0), CamsSpace(id=id, name=name, labels=dict(labels or {}))
    fresh, age = record.is_fresh(now, HOUR), record.seconds_since_success(now)
    return SpaceView(account, configured, record, fresh, MESSAGING_LIMITS, age)


def failure(detail: str = "The resource does not belong to the current user.", *, seconds: float = 2 * HOUR) -> Failure:
    """Return the failure of a space whose polls have been rejected for `seconds`."""
    return Failure(NOW - MINUTE, NOW - seconds, 3, Reason.REJECTED, "Unknown.ResourceOwnerId", detail, "REQ-1")


def health(state: AccountState, code: str = "", detail: str = "", request_id: str = "REQ-2") -> AccountHealth:
    """Return the health of an account that has been in this state for 10 minutes."""
    return AccountHealth(state, NOW - 10 * MINUTE, code, detail, request_id)


OK = health(AccountState.OK, request_id="")
DENIED = health(AccountState.DENIED, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
UNREACHABLE = health(AccountState.UNREACHABLE, "transport", "ConnectError: All connection attempts failed", "")
THROTTLED = health(AccountState.THROTTLED, "Throttling.User", "Request was denied due to user flow control.")


def fleet(*spaces: SpaceView, **healths: AccountHealth | None) -> Snapshot:
    """Return a snapshot of these spaces and their accounts. An account that is not in `healths` is ok."""
    space_counts = Counter(view.account for view in spaces)
    accounts = [
        AccountView(
            name,
            health=healths.get(name, OK),
            spaces=count,
            interval=5 * MINUTE,
            effective_interval=10 * MINUTE if healths.get(name, OK) is THROTTLED else 5 * MINUTE,
            needed_qps=count / (5 * MINUTE),
            limit_qps=5.0,
            current_qps=2.5 if healths.get(name, OK) is THROTTLED else 5.0,
        )
        for name, count in space_counts.items()
    ]
    return Snapshot(NOW, spaces, accounts)


UNLIMITED = {"messaging_limit_tier": "TIER_UNLIMITED"}
FLEET = fleet(
    space("s1", number("49301", "Adatum"), number("49302", "Adatum Care", "YELLOW"), name="Adatum", account="globex"),
    space(
        "s2",
        number("49303", "Contoso", "RED"),
        number("49304", "Contoso Care", status="RATE_LIMITED", **UNLIMITED),
        name="Contoso",
        labels={"team": "emea"},
        changes={("49303", "quality_rating"): Change(NOW - 2 * HOUR, "YELLOW")},
    ),
    space(
        "s3",
        number("49305", "Fabrikam", status="DISCONNECTED", **UNLIMITED),
        name="Fabrikam",
        labels={"team": "apac"},
    ),
    space("s4", name="Northwind", success_age=None, failure=failure()),
    space("s5", number("49306", "Tailspin"), name="Tailspin", success_age=2 * HOUR, failure=failure()),
)
"""Two accounts, six phone numbers, a space without any success, and a space with values older than max_age."""


@dataclass
class Site(View):
    """Shows the current `fleet`. `url` is the address of the pages."""

    url: str = ""
    fleet: Snapshot = field(default_factory=fleet)

    def snapshot(self) -> Snapshot:
        return self.fleet

    def accounts(self) -> list[AccountView]:
        return list(self.fleet.accounts)

    def expire(self) -> Iterator[None]:
        return iter(())

    def exposition(self, **_: object) -> Iterator[bytes]:
        return iter(())

    def unpolled(self) -> int:
        return 0

    def redacted_config(self) -> str:
        return ""


@contextmanager
def serve_site() -> Iterator[Site]:
    """Serve a site on a free port, in a separate thread."""
    listener, site, stop = bind("127.0.0.1:0"), Site(), threading.Event()
    site.url = url_of(listener)

    async def serve() -> None:
        async with serving(create_app(site), listener):
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield site
    finally:
        stop.set()
        thread.join()


class Visitor:
    """Opens pages of a site, and collects the errors that the browser reports."""

    def __init__(self, browser: Browser, site: Site) -> None:
        self.site = site
        self.browser_errors: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def visit(self, address: str = "", **settings: Any) -> Page:
        """Open a page of the site in a new browser context, and wait until the page is loaded."""
        context = self._browser.new_context(base_url=f"{self.site.url}/", **settings)
        self._contexts.append(context)
        context.on("console", self._console)
        context.on("dialog", self._dialog)
        context.on("weberror", lambda error: self.browser_errors.append(f"error: {error.error}"))
        context.on("request", self._request)
        context.on("requestfailed", lambda request: self.browser_errors.append(f"failed: {request.url}"))
        context.on("response", self._response)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.goto(address)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _console(self, message: ConsoleMessage) -> None:
        self.browser_errors.append(f"console: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.browser_errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith(f"{self.site.url}/"):
            self.browser_errors.append(f"request to another site: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.browser_errors.append(f"{response.status}: {response.url}")


def follow(control: Locator) -> None:
    """Click a link or button, and wait until the next page is loaded."""
    with control.page.expect_navigation():
        control.click()
