"""Pages as people get them: a fleet that is written out, a server on the loopback that shows it, a visitor."""

import asyncio
import threading
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
    """A number that is connected unless its `changes` say otherwise."""
    plain = PhoneNumber(phone_number, verified_name, quality_rating, "TIER_10K", "CONNECTED", "APPROVED")
    return replace(plain, **changes)  # type: ignore[arg-type]  # texts all of them


def space(
    id: str,  # noqa: A002  # as CamsSpace has it
    *numbers: PhoneNumber,
    name: str = "",
    account: str = "acme",
    labels: Mapping[str, str] | None = None,
    seen: float | None = MINUTE,
    changes: Changes | None = None,
    missing: Changes | None = None,
    failure: Failure | None = None,
) -> SpaceView:
    """A space that was `seen` so many seconds ago, and whose polls fail where there is a `failure`. If it was never
    seen, it was added when the polls started to fail."""
    state = SpaceRecord(
        up=failure is None,
        last_success=None if seen is None else NOW - seen,
        phone_numbers=numbers,
        changes=changes or {},
        missing=missing or {},
        polls=7,
        failures={failure.reason: failure.consecutive} if failure else {},
        last_failure=failure,
        next_slot=NOW + 4 * MINUTE,
        seen=-(NOW - failure.since if failure else 0) if seen is None else -seen,
    )
    now, configured = Now(NOW, 0.0), CamsSpace(id=id, name=name, labels=dict(labels or {}))
    fresh, unseen = state.is_fresh(now, HOUR), state.seconds_since_success(now)
    return SpaceView(account, configured, state, fresh, MESSAGING_LIMITS, unseen)


def failure(detail: str = "The resource does not belong to the current user.", *, since: float = 2 * HOUR) -> Failure:
    """Polls that have been rejected `since` so many seconds."""
    return Failure(NOW - MINUTE, NOW - since, 3, Reason.REJECTED, "Unknown.ResourceOwnerId", detail, "REQ-1")


def health(state: AccountState, code: str = "", detail: str = "", request_id: str = "REQ-2") -> AccountHealth:
    """An account in this state for ten minutes."""
    return AccountHealth(state, NOW - 10 * MINUTE, code, detail, request_id)


OK = health(AccountState.OK, request_id="")
DENIED = health(AccountState.DENIED, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
UNREACHABLE = health(AccountState.UNREACHABLE, "transport", "ConnectError: All connection attempts failed", "")
THROTTLED = health(AccountState.THROTTLED, "Throttling.User", "Request was denied due to user flow control.")


def fleet(*spaces: SpaceView, **healths: AccountHealth | None) -> Snapshot:
    """These spaces and their accounts, which are ok unless their `healths` by name say otherwise."""
    names = dict.fromkeys(one.account for one in spaces)
    accounts = [
        AccountView(
            name,
            health=healths.get(name, OK),
            spaces=len(spaces),
            interval=5 * MINUTE,
            effective_interval=10 * MINUTE if healths.get(name, OK) is THROTTLED else 5 * MINUTE,
            needed_qps=len(spaces) / (5 * MINUTE),
            limit_qps=5.0,
            current_qps=2.5 if healths.get(name, OK) is THROTTLED else 5.0,
        )
        for name in names
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
    space("s4", name="Northwind", seen=None, failure=failure()),
    space("s5", number("49306", "Tailspin"), name="Tailspin", seen=2 * HOUR, failure=failure()),
)
"""Something of everything: two accounts, six numbers, a space that was never seen and one that is too old to show."""


@dataclass
class Site(View):
    """The pages of the `fleet`, whichever is set, at the address `url`."""

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
def site() -> Iterator[Site]:
    """A site on a free port, served in a thread of its own."""
    listener, shown, left = bind("127.0.0.1:0"), Site(), threading.Event()
    shown.url = url_of(listener)

    async def serve() -> None:
        async with serving(create_app(shown), listener):
            await asyncio.to_thread(left.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield shown
    finally:
        left.set()
        thread.join()


class Visitor:
    """Someone with a browser at a site; whatever a browser has to complain about a page is kept."""

    def __init__(self, browser: Browser, at: Site) -> None:
        self.site = at
        self.browser_errors: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def visit(self, address: str = "", **settings: Any) -> Page:
        """A page of the site in a window of its own, at rest."""
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

    def leave(self) -> None:
        for context in self._contexts:
            context.close()

    def _console(self, message: ConsoleMessage) -> None:
        self.browser_errors.append(f"console: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.browser_errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if not request.url.startswith(f"{self.site.url}/"):
            self.browser_errors.append(f"request elsewhere: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.browser_errors.append(f"{response.status}: {response.url}")


def follow(link: Locator) -> None:
    """Click, and wait until the page that it leads to is there as a whole."""
    with link.page.expect_navigation():
        link.click()
