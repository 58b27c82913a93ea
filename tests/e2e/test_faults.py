"""Every way in which the API and the network fail, all at once, against the real program over real sockets.

Each fault has an account of its own on a server of its own, so it is also seen that none of them holds up another. What
the series show, what it costs and how long the recovery takes is printed as a table (`make faults`).
"""

import re
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme
import yaml
from hostile import (
    Fault,
    HostileApi,
    busiest_second,
    never_finishes,
    rejects,
    resets_connection,
    responds_after,
    responds_with,
    sends_64_mebibytes,
    serving,
    truncates_json,
)
from processes import free_port, is_serving, running, wait_until

from exporter.simulator.scenario import Scenario

pytestmark = pytest.mark.slow

INTERVAL = 5
SPACES = 5
USUAL_SECONDS, HOLD_SECONDS = 15, 40
BETWEEN_SCRAPES = 0.5
"""More of them would take the exporter's time from the polls."""
LIMIT = 10
MANY = 500
MANY_TAKE = MANY / LIMIT
"""Seconds between two polls of one of the many: their interval is shorter than the budget allows."""
DETECTED_WITHIN = INTERVAL + 10 + 3
"""One interval, a request's time-out, and what a scrape and this machine take."""


@dataclass(frozen=True)
class Row:
    """A fault, and what it must look like while it lasts."""

    name: str
    fault: Fault | None
    reason: str = ""
    """Of the polls that fail; "" where none does."""
    code: str = ""
    """In chatapp_api_requests_total."""
    refused: bool = False
    """Whether the account as a whole is."""
    most_a_minute: int = 2 * 60 * SPACES // INTERVAL
    """Failures are asked again somewhat sooner than an interval later, and jittered."""
    recovers_within: int = 2 * INTERVAL + 3
    down: int = SPACES


def throttled(name: str, hint: str | None = None, *, most: int, recovers: int, down: int = SPACES) -> Row:
    headers = {} if hint is None else {"x-acs-retry-after": hint}
    fault = rejects("Throttling.User", headers=headers)
    return Row(name, fault, "throttled", "Throttling.User", False, most, recovers, down)


ROWS = (
    Row("healthy", None, most_a_minute=60 * SPACES // INTERVAL + SPACES),
    Row("connection refused", None, "transport", "transport"),
    Row("reset in the middle", resets_connection, "transport", "transport"),
    Row("name not found", None, "transport", "transport"),
    Row("TLS: wrong name", None, "transport", "transport"),
    Row("TLS: expired", None, "transport", "transport"),
    Row("answer that never ends", never_finishes, "timeout", "timeout"),
    Row("64 MiB", sends_64_mebibytes, "malformed", "malformed"),
    Row("truncated JSON", truncates_json, "malformed", "malformed"),
    Row("a list", responds_with(200, b"[]"), "malformed", "malformed"),
    Row("deep nesting", responds_with(200, b"[" * 100_000), "malformed", "malformed"),
    Row("3-second answers", responds_after(3)),
    Row("500", responds_with(500, b""), "server", "http_500"),
    Row(
        "502 with HTML",
        responds_with(502, b"<html>Bad Gateway</html>", {"content-type": "text/html"}),
        "server",
        "http_502",
    ),
    Row("429", responds_with(429, b""), "throttled", "http_429", recovers_within=20),
    throttled("throttled, no hint", most=70, recovers=20),
    throttled("throttled, 2 s", hint="2000", most=35, recovers=20),
    throttled("throttled, -5 s", hint="-5000", most=70, recovers=20),
    throttled("throttled, NaN", hint="NaN", most=70, recovers=20),
    throttled("throttled, a year", "31536000000", most=5, recovers=75, down=1),
    Row(
        "200 with an error Code",
        rejects("Authentication.NoAuth", 200),
        "rejected",
        "Authentication.NoAuth",
        recovers_within=6 * INTERVAL + 3,
    ),
    Row("clock 20 minutes off", None, "denied", "InvalidTimeStamp.Expired", True, 60 // INTERVAL + 7),
    Row(
        "key revoked",
        rejects("InvalidAccessKeyId.NotFound", 404),
        "denied",
        "InvalidAccessKeyId.NotFound",
        True,
        60 // INTERVAL + 4,
    ),
    Row("permission lost", rejects("NoPermission", 403), "denied", "NoPermission", True, 60 // INTERVAL + 4),
)
RESOLVER = """
import socket
from pathlib import Path
real = socket.getaddrinfo
def getaddrinfo(host, port, *arguments, **named):
    if port == {port} and not Path("{file}").exists():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real(host, port, *arguments, **named)
socket.getaddrinfo = getaddrinfo
from exporter.cli import main
main()
"""
"""The program with a resolver that finds the name of one server only as long as a file is there."""
ONE_OF_MANY = "one space of 500 refused"


def scenario(name: str, spaces: int, seed: int, interval: str) -> Scenario:
    key = f"key-{seed}"
    account = {
        "name": name,
        "access_key_id": key,
        "access_key_secret": key,
        "spaces": spaces,
        "poll_interval": interval,
    }
    return Scenario.model_validate({"seed": seed, "limit_qps": LIMIT, "accounts": [account]})


class Scrape:
    """One scrape of the exporter, at a moment."""

    def __init__(self, url: str) -> None:
        self.at = time.monotonic()
        self._lines = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text.splitlines()

    def sum(self, name: str, account: str, **labels: str) -> float:
        """Over all series of an account with these labels."""
        chosen = (line for line in self._lines if line.startswith(f'{name}{{account="{account}"'))
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in chosen if all(label in line for label in wanted))

    def requests(self, account: str) -> float:
        return self.sum("chatapp_api_requests_total", account)

    def up(self, account: str) -> float:
        return self.sum("chatapp_space_up", account)

    def of_numbers(self, account: str) -> set[str]:
        return {line for line in self._lines if re.match(rf'chatapp_phone_number_.*account="{account}"', line)}

    def last_successes(self, account: str) -> set[str]:
        name = f'chatapp_space_last_success_timestamp_seconds{{account="{account}"'
        return {line for line in self._lines if line.startswith(name)}


@dataclass
class Seen:
    """What became of one fault."""

    usual: Scrape
    before: Scrape
    during: Scrape
    shown_after: float | None
    requests: int
    """A minute, as the exporter counts its attempts: some never arrive anywhere."""
    busiest_second: int
    recovered_after: float | None
    after: Scrape


def config(apis: dict[str, HostileApi]) -> str:
    accounts = []
    for name, api in apis.items():
        by_name = {"endpoint": f"http://localhost:{api.port}"}
        accounts.append(api.account(**(by_name if name == "name not found" else {})))
    return yaml.safe_dump({"accounts": accounts, "max_age": "1h"})


class Network:
    """The servers, and the switch that makes them fail and work again."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self._name_is_known = directory / "name"
        self._name_is_known.touch()
        self.apis = {
            row.name: HostileApi(scenario(row.name, SPACES, seed, f"{INTERVAL}s"), tls=self._tls_of(row))
            for seed, row in enumerate(ROWS, 1)
        }
        self.apis[ONE_OF_MANY] = HostileApi(scenario(ONE_OF_MANY, MANY, 99, "10s"))

    def refused_space(self) -> str:
        return self.apis[ONE_OF_MANY].api.fleet.spaces[ONE_OF_MANY][200].id

    def _tls_of(self, row: Row) -> ssl.SSLContext | None:
        if not row.name.startswith("TLS"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert("localhost").configure_cert(context)
        return context

    async def break_all(self) -> None:
        for row in ROWS:
            self.apis[row.name].fault = row.fault
        self.apis[ONE_OF_MANY].fault = rejects("Ram.PermissionDeny", only=self.refused_space())
        self.apis["clock 20 minutes off"].clock.skew = 1200
        await self.apis["connection refused"].close()
        self._name_is_known.unlink()
        await self._restart("name not found")  # for a connection that is open needs no name
        past = datetime(2020, 1, 1, tzinfo=UTC)
        await self._present("TLS: wrong name", self._ca.issue_cert("example.org"))
        await self._present("TLS: expired", self._ca.issue_cert("localhost", not_before=past, not_after=past))

    async def mend_all(self) -> None:
        for api in self.apis.values():
            api.fault = None
        self.apis["clock 20 minutes off"].clock.skew = 0
        await self.apis["connection refused"].open()
        self._name_is_known.touch()
        await self._restart("answer that never ends")  # what hangs already is not mended otherwise
        for name in ("TLS: wrong name", "TLS: expired"):
            await self._present(name, self._ca.issue_cert("localhost"))

    async def _present(self, name: str, certificate: trustme.LeafCert) -> None:
        """New connections get this certificate; old ones end."""
        api = self.apis[name]
        assert api.tls
        certificate.configure_cert(api.tls)
        await self._restart(name)

    async def _restart(self, name: str) -> None:
        await self.apis[name].close()
        await self.apis[name].open()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Seen]]:
    directory = tmp_path_factory.mktemp("faults")
    network, port = Network(directory), free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(*network.apis.values()) as there:
        (directory / "exporter.yml").write_text(config(network.apis))
        (main := directory / "main.py").write_text(
            RESOLVER.format(port=network.apis["name not found"].port, file=directory / "name")
        )
        arguments = ("--config.file", str(directory / "exporter.yml"), "--web.listen-address", f"127.0.0.1:{port}")
        environ = {"SSL_CERT_FILE": str(directory / "ca.pem")}
        with running(sys.executable, str(main), *arguments, log=directory / "log", **environ):
            wait_until(is_serving(f"{url}/-/healthy"), "the exporter answers")
            wait_until(lambda: all(Scrape(url).up(row.name) == SPACES for row in ROWS), "all are up", 60)
            wait_until(lambda: Scrape(url).up(ONE_OF_MANY) == MANY, "the 500 are up", 120)
            yield play(network, url, there)
            log = (directory / "log").read_text()
            assert "bug" not in log
            assert "Traceback" not in log


def play(network: Network, url: str, there: object) -> dict[str, Seen]:
    """Break all, look, mend all, look again."""
    assert callable(there)
    rows = {row.name: row for row in (*ROWS, Row(ONE_OF_MANY, None, "denied", "Ram.PermissionDeny"))}
    usual = Scrape(url)
    time.sleep(USUAL_SECONDS)
    before, begun = Scrape(url), time.monotonic()
    there(network.break_all())
    shown: dict[str, float] = {}

    def note_what_shows() -> bool:
        time.sleep(BETWEEN_SCRAPES)
        scrape = Scrape(url)
        for name in rows:
            all_up = MANY if name == ONE_OF_MANY else SPACES
            if name not in shown and scrape.up(name) < all_up:
                shown[name] = scrape.at - begun
        return time.monotonic() - begun > HOLD_SECONDS and (ONE_OF_MANY in shown)

    wait_until(note_what_shows, "the faults are shown", 90)
    during, mended = Scrape(url), time.monotonic()
    there(network.mend_all())
    recovered: dict[str, float] = {}

    def note_what_recovers() -> bool:
        time.sleep(BETWEEN_SCRAPES)
        scrape = Scrape(url)
        for name in rows:
            if name not in recovered and scrape.up(name) == (MANY if name == ONE_OF_MANY else SPACES):
                recovered[name] = scrape.at - mended
        return set(rows) == set(recovered) and time.monotonic() - mended > 10

    wait_until(note_what_recovers, "all recover", 150)
    after = Scrape(url)
    return {
        name: Seen(
            usual,
            before,
            during,
            shown.get(name),
            round((during.requests(name) - before.requests(name)) * 60 / (during.at - before.at)),
            busiest_second(network.apis[name].arrivals),
            recovered.get(name) if name in shown else None,
            after,
        )
        for name in rows
    }


FAILING = [row for row in ROWS if row.reason]


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_a_fault_is_shown_by_its_reason_within_an_interval_and_the_last_numbers_stay(
    row: Row, seen: dict[str, Seen]
) -> None:
    of = seen[row.name]

    assert of.shown_after is not None
    assert of.shown_after <= DETECTED_WITHIN
    assert of.during.up(row.name) == SPACES - row.down
    failures = {
        reason: of.during.sum("chatapp_space_poll_failures_total", row.name, reason=reason) for reason in REASONS
    }
    assert failures.pop(row.reason) >= row.down
    assert set(failures.values()) == {0}
    assert of.during.sum("chatapp_api_requests_total", row.name, code=row.code) > 0
    assert of.during.sum("chatapp_account_up", row.name) == (0 if row.reason in ACCOUNT_DOWN else 1)
    assert of.during.of_numbers(row.name) == of.before.of_numbers(row.name)
    assert of.during.sum("chatapp_space_phone_numbers", row.name) == of.before.sum(
        "chatapp_space_phone_numbers", row.name
    )


ACCOUNT_DOWN = ("transport", "timeout", "malformed", "server", "denied")
REASONS = ("throttled", "timeout", "transport", "denied", "rejected", "malformed", "server")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_costs_no_more_than_its_share_and_never_the_budget(row: Row, seen: dict[str, Seen]) -> None:
    assert seen[row.name].requests <= row.most_a_minute
    assert seen[row.name].busiest_second <= LIMIT


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_it_recovers_by_itself(row: Row, seen: dict[str, Seen]) -> None:
    of = seen[row.name]

    assert of.recovered_after is not None
    assert of.recovered_after <= row.recovers_within
    assert of.after.sum("chatapp_account_up", row.name) == 1
    assert len(of.after.last_successes(row.name) - of.during.last_successes(row.name)) == SPACES


@pytest.mark.parametrize("name", ["healthy", "3-second answers"])
def test_who_answers_is_polled_at_the_usual_pace_all_the_while(name: str, seen: dict[str, Seen]) -> None:
    of = seen[name]

    assert pace(name, of.before, of.during) >= 0.8 * pace(name, of.usual, of.before)
    assert of.during.up(name) == SPACES
    assert of.during.sum("chatapp_space_poll_failures_total", name) == 0


def pace(name: str, start: Scrape, end: Scrape) -> float:
    """Polls a second of an account between two scrapes."""
    polls = [scrape.sum("chatapp_space_polls_total", name) for scrape in (start, end)]
    return (polls[1] - polls[0]) / (end.at - start.at)


def test_one_space_that_is_refused_is_down_alone_and_499_go_on(seen: dict[str, Seen]) -> None:
    of = seen[ONE_OF_MANY]
    usual = pace(ONE_OF_MANY, of.usual, of.before)

    assert of.during.up(ONE_OF_MANY) == MANY - 1
    assert of.during.sum("chatapp_account_up", ONE_OF_MANY) == 1
    assert of.during.sum("chatapp_space_poll_failures_total", ONE_OF_MANY) <= 2
    assert pace(ONE_OF_MANY, of.before, of.during) >= 0.8 * usual
    assert usual > LIMIT / 2
    assert of.busiest_second <= LIMIT
    assert of.recovered_after is not None
    assert of.recovered_after <= 60 + MANY_TAKE


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.reason == "throttled"])
def test_throttling_lowers_the_rate_which_is_shown(name: str, seen: dict[str, Seen]) -> None:
    of = seen[name]

    assert of.before.sum("chatapp_account_qps_current", name) == LIMIT
    assert of.during.sum("chatapp_account_qps_current", name) <= LIMIT / 2
    assert of.during.sum("chatapp_account_qps_limit", name) == LIMIT
    throttled = of.during.requests(name) - of.during.sum("chatapp_api_requests_total", name, code="OK")
    assert of.during.sum("chatapp_api_throttled_total", name) == throttled


def test_the_table(seen: dict[str, Seen]) -> None:
    print("\n| fault | shown after | while it lasts | requests a minute | busiest second | recovered after |")
    print("|---|---|---|---|---|---|")
    for name, of in seen.items():
        failures = {
            reason: of.during.sum("chatapp_space_poll_failures_total", name, reason=reason) for reason in REASONS
        }
        told = ", ".join(f"{count:.0f} {reason}" for reason, count in failures.items() if count) or "no failure"
        state = (
            f"space_up {of.during.up(name):.0f} of {MANY if name == ONE_OF_MANY else SPACES},"
            f" account_up {of.during.sum('chatapp_account_up', name):.0f},"
            f" qps {of.during.sum('chatapp_account_qps_current', name):.3g}; {told};"
            f" {len(of.during.of_numbers(name))} series of numbers stay"
        )
        cells = (name, after(of.shown_after), state, of.requests, of.busiest_second, after(of.recovered_after))
        print(f"| {' | '.join(map(str, cells))} |")


def after(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
