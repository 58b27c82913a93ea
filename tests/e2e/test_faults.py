"""All faults of the API and the network at the same time, with a real process over real sockets.

Each fault has its own account and server, so the tests also check that a fault does not affect other accounts.
`make faults` prints a table of the exported series, the requests and the time to recover.
"""

import re
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
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
    max_per_second,
    never_finishes,
    rejects,
    resets_connection,
    responds_after,
    responds_with,
    sends_64_mebibytes,
    serving,
    truncates_json,
)
from processes import free_port, running, serving_probe, wait_until

from exporter.simulator.scenario import Scenario

pytestmark = pytest.mark.slow

INTERVAL = 5
SPACES = 5
BASELINE_SECONDS, FAULT_SECONDS = 15, 40
SCRAPE_INTERVAL_SECONDS = 0.5
"""A shorter interval would use CPU time that the polls need."""
LIMIT = 10
MANY_SPACES = 500
SWEEP_SECONDS = MANY_SPACES / LIMIT
"""Seconds for one sweep of the 500 spaces at the rate limit. The configured interval is shorter."""
DETECTION_SECONDS = INTERVAL + 10 + 3
"""One interval, the timeout of a request, and 3 seconds for the scrape and a slow machine."""


@dataclass(frozen=True)
class Row:
    """A fault and its expected effects."""

    name: str
    fault: Fault | None
    reason: str = ""
    """The reason of failed polls; "" if no poll fails."""
    code: str = ""
    """The label `code` in chatapp_api_requests_total."""
    max_requests_per_minute: int = 2 * 60 * SPACES // INTERVAL
    """Twice the usual rate, because failed polls are retried earlier than one interval, with jitter."""
    recovery_seconds: int = 2 * INTERVAL + 3
    down: int = SPACES
    """Spaces that are down during the fault."""


def throttled(name: str, retry_after: str | None = None, *, requests: int, recovery: int, down: int = SPACES) -> Row:
    headers = {} if retry_after is None else {"x-acs-retry-after": retry_after}
    fault = rejects("Throttling.User", headers=headers)
    return Row(name, fault, "throttled", "Throttling.User", requests, recovery, down)


ROWS = (
    Row("healthy", None, max_requests_per_minute=60 * SPACES // INTERVAL + SPACES),
    Row("connection refused", None, "transport", "transport"),
    Row("connection reset", resets_connection, "transport", "transport"),
    Row("name not found", None, "transport", "transport"),
    Row("TLS: wrong name", None, "transport", "transport"),
    Row("TLS: expired", None, "transport", "transport"),
    Row("response that never ends", never_finishes, "timeout", "timeout"),
    Row("64 MiB response", sends_64_mebibytes, "malformed", "malformed"),
    Row("truncated JSON", truncates_json, "malformed", "malformed"),
    Row("JSON list", responds_with(200, b"[]"), "malformed", "malformed"),
    Row("deeply nested JSON", responds_with(200, b"[" * 100_000), "malformed", "malformed"),
    Row("3-second responses", responds_after(3)),
    Row("500", responds_with(500, b""), "server", "http_500"),
    Row(
        "502 with HTML",
        responds_with(502, b"<html>Bad Gateway</html>", {"content-type": "text/html"}),
        "server",
        "http_502",
    ),
    Row("429", responds_with(429, b""), "throttled", "http_429", recovery_seconds=20),
    throttled("throttled, no retry-after", requests=70, recovery=20),
    throttled("throttled, 2 s", "2000", requests=35, recovery=20),
    throttled("throttled, -5 s", "-5000", requests=70, recovery=20),
    throttled("throttled, NaN", "NaN", requests=70, recovery=20),
    throttled("throttled, one year", "31536000000", requests=5, recovery=75, down=1),
    Row(
        "200 with an error Code",
        rejects("Authentication.NoAuth", 200),
        "rejected",
        "Authentication.NoAuth",
        recovery_seconds=6 * INTERVAL + 3,
    ),
    Row("API clock 20 minutes fast", None, "denied", "InvalidTimeStamp.Expired", 60 // INTERVAL + 7),
    Row(
        "key revoked",
        rejects("InvalidAccessKeyId.NotFound", 404),
        "denied",
        "InvalidAccessKeyId.NotFound",
        60 // INTERVAL + 4,
    ),
    Row("permission lost", rejects("NoPermission", 403), "denied", "NoPermission", 60 // INTERVAL + 4),
)
MAIN = """
import socket
from pathlib import Path
real = socket.getaddrinfo
def getaddrinfo(host, port, *arguments, **options):
    if port == {port} and not Path("{file}").exists():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return real(host, port, *arguments, **options)
socket.getaddrinfo = getaddrinfo
from exporter.cli import main
main()
"""
"""Starts the exporter with a resolver that resolves the name of one server only if a file exists."""
ONE_OF_MANY = "one of 500 spaces denied"
DENIED_SPACE_INDEX = 200


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
    """One scrape of the exporter."""

    def __init__(self, url: str) -> None:
        self.time = time.monotonic()
        self._lines = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text.splitlines()

    def sum(self, name: str, account: str, **labels: str) -> float:
        """Return the sum over all series of an account with these labels."""
        lines = (line for line in self._lines if line.startswith(f'{name}{{account="{account}"'))
        matchers = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(matcher in line for matcher in matchers))

    def requests(self, account: str) -> float:
        return self.sum("chatapp_api_requests_total", account)

    def up(self, account: str) -> float:
        return self.sum("chatapp_space_up", account)

    def phone_number_samples(self, account: str) -> set[str]:
        return {line for line in self._lines if re.match(rf'chatapp_phone_number_.*account="{account}"', line)}

    def down_spaces(self, account: str) -> set[str]:
        pattern = rf'chatapp_space_up\{{account="{account}",space="([^"]+)"\}} 0'
        return {match[1] for line in self._lines if (match := re.fullmatch(pattern, line))}

    def last_successes(self, account: str) -> set[str]:
        name = f'chatapp_space_last_success_timestamp_seconds{{account="{account}"'
        return {line for line in self._lines if line.startswith(name)}


@dataclass
class Result:
    """The scrapes and measurements of one fault."""

    baseline: Scrape
    before: Scrape
    during: Scrape
    detected_after: float | None
    requests_per_minute: int
    """HTTP attempts that the exporter counts. Some of them do not reach a server."""
    max_per_second: int
    recovered_after: float | None
    after: Scrape
    spaces: list[str]
    """The ids of the spaces of the account."""


def config(apis: dict[str, HostileApi]) -> str:
    accounts = []
    for name, api in apis.items():
        http_endpoint = {"endpoint": f"http://localhost:{api.port}"}
        accounts.append(api.account(**(http_endpoint if name == "name not found" else {})))
    return yaml.safe_dump({"accounts": accounts, "max_age": "1h"})


class Network:
    """The servers. Starts and ends all faults."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(directory / "ca.pem"))
        self._name_file = directory / "name"
        self._name_file.touch()
        self.apis = {
            row.name: HostileApi(scenario(row.name, SPACES, seed, f"{INTERVAL}s"), tls=self._tls_context(row))
            for seed, row in enumerate(ROWS, 1)
        }
        self.apis[ONE_OF_MANY] = HostileApi(scenario(ONE_OF_MANY, MANY_SPACES, 99, "10s"))

    def space_ids(self, name: str) -> list[str]:
        return [space.id for space in self.apis[name].api.fleet.spaces[name]]

    def _tls_context(self, row: Row) -> ssl.SSLContext | None:
        if not row.name.startswith("TLS"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert("localhost").configure_cert(context)
        return context

    async def start_faults(self) -> None:
        for row in ROWS:
            self.apis[row.name].fault = row.fault
        denied_space = self.space_ids(ONE_OF_MANY)[DENIED_SPACE_INDEX]
        self.apis[ONE_OF_MANY].fault = rejects("Ram.PermissionDeny", only=denied_space)
        self.apis["API clock 20 minutes fast"].clock.skew = 1200
        await self.apis["connection refused"].close()
        self._name_file.unlink()
        await self._restart("name not found")  # an open connection does not use the resolver
        past = datetime(2020, 1, 1, tzinfo=UTC)
        await self._use_certificate("TLS: wrong name", self._ca.issue_cert("example.org"))
        await self._use_certificate("TLS: expired", self._ca.issue_cert("localhost", not_before=past, not_after=past))

    async def end_faults(self) -> None:
        for api in self.apis.values():
            api.fault = None
        self.apis["API clock 20 minutes fast"].clock.skew = 0
        await self.apis["connection refused"].open()
        self._name_file.touch()
        await self._restart("response that never ends")  # otherwise the hanging requests continue
        for name in ("TLS: wrong name", "TLS: expired"):
            await self._use_certificate(name, self._ca.issue_cert("localhost"))

    async def _use_certificate(self, name: str, certificate: trustme.LeafCert) -> None:
        """Use this certificate for new connections, and close the open connections."""
        api = self.apis[name]
        assert api.tls
        certificate.configure_cert(api.tls)
        await self._restart(name)

    async def _restart(self, name: str) -> None:
        await self.apis[name].close()
        await self.apis[name].open()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    directory = tmp_path_factory.mktemp("faults")
    network, port = Network(directory), free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(*network.apis.values()) as run_in_loop:
        (directory / "exporter.yml").write_text(config(network.apis))
        (main := directory / "main.py").write_text(
            MAIN.format(port=network.apis["name not found"].port, file=directory / "name")
        )
        arguments = ("--config.file", str(directory / "exporter.yml"), "--web.listen-address", f"127.0.0.1:{port}")
        environ = {"SSL_CERT_FILE": str(directory / "ca.pem")}
        with running(sys.executable, str(main), *arguments, log=directory / "log", **environ):
            wait_until(serving_probe(f"{url}/-/healthy"), "the exporter responds")
            wait_until(lambda: all(Scrape(url).up(row.name) == SPACES for row in ROWS), "all spaces are up", 60)
            wait_until(lambda: Scrape(url).up(ONE_OF_MANY) == MANY_SPACES, "the 500 spaces are up", 120)
            results = run_faults(network, url, run_in_loop)
            print_table(results)
            yield results
            log = (directory / "log").read_text()
            assert "bug" not in log
            assert "Traceback" not in log


def run_faults(network: Network, url: str, run_in_loop: Callable[[Awaitable[None]], None]) -> dict[str, Result]:
    """Measure before, during and after the faults."""
    rows = {row.name: row for row in (*ROWS, Row(ONE_OF_MANY, None, "denied", "Ram.PermissionDeny"))}
    baseline = Scrape(url)
    time.sleep(BASELINE_SECONDS)
    before, start = Scrape(url), time.monotonic()
    run_in_loop(network.start_faults())
    detected: dict[str, float] = {}

    def record_detected() -> bool:
        time.sleep(SCRAPE_INTERVAL_SECONDS)
        scrape = Scrape(url)
        for name in rows:
            if name not in detected and scrape.up(name) < space_count(name):
                detected[name] = scrape.time - start
        return time.monotonic() - start > FAULT_SECONDS and (ONE_OF_MANY in detected)

    wait_until(record_detected, "the faults are exported", 90)
    during, end = Scrape(url), time.monotonic()
    run_in_loop(network.end_faults())
    recovered: dict[str, float] = {}

    def record_recovered() -> bool:
        time.sleep(SCRAPE_INTERVAL_SECONDS)
        scrape = Scrape(url)
        for name in rows:
            if name not in recovered and scrape.up(name) == space_count(name):
                recovered[name] = scrape.time - end
        return set(rows) == set(recovered) and time.monotonic() - end > 10

    wait_until(record_recovered, "all accounts recover", 150)
    after = Scrape(url)
    return {
        name: Result(
            baseline,
            before,
            during,
            detected.get(name),
            round((during.requests(name) - before.requests(name)) * 60 / (during.time - before.time)),
            max_per_second(network.apis[name].arrivals),
            recovered.get(name) if name in detected else None,
            after,
            network.space_ids(name),
        )
        for name in rows
    }


def space_count(name: str) -> int:
    return MANY_SPACES if name == ONE_OF_MANY else SPACES


FAILING = [row for row in ROWS if row.reason]


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_a_fault_is_exported_with_its_reason_in_time_and_the_last_values_are_kept(
    row: Row, results: dict[str, Result]
) -> None:
    result = results[row.name]

    assert result.detected_after is not None
    assert result.detected_after <= DETECTION_SECONDS
    assert result.during.up(row.name) == SPACES - row.down
    failures = {
        reason: result.during.sum("chatapp_space_poll_failures_total", row.name, reason=reason) for reason in REASONS
    }
    assert failures.pop(row.reason) >= row.down
    assert set(failures.values()) == {0}
    assert result.during.sum("chatapp_api_requests_total", row.name, code=row.code) > 0
    assert result.during.sum("chatapp_account_up", row.name) == (0 if row.reason in ACCOUNT_DOWN else 1)
    assert result.during.phone_number_samples(row.name) == result.before.phone_number_samples(row.name)
    assert result.during.sum("chatapp_space_phone_numbers", row.name) == result.before.sum(
        "chatapp_space_phone_numbers", row.name
    )


ACCOUNT_DOWN = ("transport", "timeout", "malformed", "server", "denied")
REASONS = ("throttled", "timeout", "transport", "denied", "rejected", "malformed", "server")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_requests_during_a_fault_stay_within_the_expected_rate_and_the_budget(
    row: Row, results: dict[str, Result]
) -> None:
    assert results[row.name].requests_per_minute <= row.max_requests_per_minute
    assert results[row.name].max_per_second <= LIMIT


@pytest.mark.parametrize("row", FAILING, ids=lambda row: row.name)
def test_the_account_recovers_in_time_after_the_fault(row: Row, results: dict[str, Result]) -> None:
    result = results[row.name]

    assert result.recovered_after is not None
    assert result.recovered_after <= row.recovery_seconds
    assert result.after.sum("chatapp_account_up", row.name) == 1
    assert len(result.after.last_successes(row.name) - result.during.last_successes(row.name)) == SPACES


@pytest.mark.parametrize("name", ["healthy", "3-second responses"])
def test_accounts_without_failures_are_polled_at_the_usual_rate(name: str, results: dict[str, Result]) -> None:
    result = results[name]

    assert poll_rate(name, result.before, result.during) >= 0.8 * poll_rate(name, result.baseline, result.before)
    assert result.during.up(name) == SPACES
    assert result.during.sum("chatapp_space_poll_failures_total", name) == 0


def poll_rate(name: str, start: Scrape, end: Scrape) -> float:
    """Return the polls per second of an account between two scrapes."""
    polls = [scrape.sum("chatapp_space_polls_total", name) for scrape in (start, end)]
    return (polls[1] - polls[0]) / (end.time - start.time)


def test_a_denied_space_is_down_and_the_other_499_are_polled_at_the_usual_rate(results: dict[str, Result]) -> None:
    result = results[ONE_OF_MANY]
    usual_rate = poll_rate(ONE_OF_MANY, result.baseline, result.before)

    assert result.during.up(ONE_OF_MANY) == MANY_SPACES - 1
    assert result.during.down_spaces(ONE_OF_MANY) == {result.spaces[DENIED_SPACE_INDEX]}
    assert result.during.sum("chatapp_account_up", ONE_OF_MANY) == 1
    assert result.during.sum("chatapp_space_poll_failures_total", ONE_OF_MANY) <= 2
    assert poll_rate(ONE_OF_MANY, result.before, result.during) >= 0.8 * usual_rate
    assert usual_rate > LIMIT / 2
    assert result.max_per_second <= LIMIT
    assert result.recovered_after is not None
    assert result.recovered_after <= 60 + SWEEP_SECONDS


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.reason == "throttled"])
def test_throttling_lowers_the_exported_rate(name: str, results: dict[str, Result]) -> None:
    result = results[name]

    assert result.before.sum("chatapp_account_qps_current", name) == LIMIT
    assert result.during.sum("chatapp_account_qps_current", name) <= LIMIT / 2
    assert result.during.sum("chatapp_account_qps_limit", name) == LIMIT
    throttled_requests = result.during.requests(name) - result.during.sum("chatapp_api_requests_total", name, code="OK")
    assert result.during.sum("chatapp_api_throttled_total", name) == throttled_requests


def print_table(results: dict[str, Result]) -> None:
    print("\n| fault | detected after | during the fault | requests per minute | busiest second | recovered after |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        failures = {
            reason: result.during.sum("chatapp_space_poll_failures_total", name, reason=reason) for reason in REASONS
        }
        failed = ", ".join(f"{count:.0f} {reason}" for reason, count in failures.items() if count) or "no failures"
        state = (
            f"space_up {result.during.up(name):.0f} of {space_count(name)},"
            f" account_up {result.during.sum('chatapp_account_up', name):.0f},"
            f" qps {result.during.sum('chatapp_account_qps_current', name):.3g}; {failed};"
            f" {len(result.during.phone_number_samples(name))} phone number series"
        )
        cells = (
            name,
            seconds_text(result.detected_after),
            state,
            result.requests_per_minute,
            result.max_per_second,
            seconds_text(result.recovered_after),
        )
        print(f"| {' | '.join(map(str, cells))} |")


def seconds_text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
