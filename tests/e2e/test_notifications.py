"""From the simulated API to a webhook: the demo, a real Prometheus and a real Alertmanager with the shipped files.

All durations of the rules and of Alertmanager are shorter by one factor, that between the default poll interval and the
demo's. The demo takes its five minutes, and YELLOW for six hours takes six.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import free_port, is_serving, program, running, wait_until
from programs import require_program
from shortened import shortened

from exporter.simulator.fleet import Fleet, load_scenario

CONFIG = Path(__file__).parents[2] / "config"
FACTOR = 60
POLL_INTERVAL_SECONDS = 300 / FACTOR
SECONDS = 415
RED_AT_SECONDS = 60
"""When the demo makes the first number of acme's second space RED."""

FIRING = {
    ("on-call", "ChatAppAccountDenied", "globex"),
    ("on-call", "ChatAppAccountUnreachable", "globex"),
    ("on-call", "ChatAppPhoneNumberDown", "acme 5 #1"),
    ("on-call", "ChatAppPhoneNumberQualityRed", "acme 2 #1"),
    ("on-call", "ChatAppPhoneNumberQualityRed", "acme 10 #1"),
    ("account-managers", "ChatAppMessagingLimitDropped", "acme 3 #1"),
    ("account-managers", "ChatAppPhoneNumberQualityYellow", "acme 1 #1"),  # not acme 2: it is RED, and that is told
    ("account-managers", "ChatAppPhoneNumberQualityYellow", "acme 9 #1"),
    ("account-managers", "ChatAppPhoneNumberRestricted", "acme 10 #1"),
    ("account-managers", "ChatAppPhoneNumberVanished", "acme 12 #1"),
    ("operators", "ChatAppScheduleOverrun", "acme"),  # while it is throttled
    ("operators", "ChatAppScheduleOverrun", "initech"),
    ("operators", "ChatAppThrottled", "acme"),
    ("operators", "ChatAppUnknownValue", "messaging_limit_tier TIER_5M"),
    ("operators", "ChatAppUnknownValue", "quality_rating missing"),
    ("operators", "ChatAppUnknownValue", "status HIBERNATING"),
    # they fail for themselves; while acme is throttled, its effective interval is longer
    *(("operators", "ChatAppSpaceBlind", f"acme {space}") for space in (6, 13, 14)),
}
MAY_FIRE = {
    # the rate of acme rises for 4 minutes here too: meanwhile a space that is polled late can count as blind
    *(("operators", "ChatAppSpaceBlind", f"acme {space}") for space in range(1, 29)),
}
RESOLVED = {
    ("on-call", "ChatAppAccountDenied", "globex"),
    ("on-call", "ChatAppAccountUnreachable", "globex"),
    ("on-call", "ChatAppPhoneNumberQualityRed", "acme 10 #1"),
    ("account-managers", "ChatAppPhoneNumberRestricted", "acme 10 #1"),
    ("operators", "ChatAppScheduleOverrun", "acme"),
    ("operators", "ChatAppThrottled", "acme"),
    *(("operators", "ChatAppSpaceBlind", f"acme {space}") for space in (13, 14)),
}


@dataclass(frozen=True)
class Told:
    """An alert in a notification, and how many seconds after the demo's start it came."""

    after: float
    receiver: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.receiver, self.labels["alertname"], _subject(self.labels)


FLEET = Fleet(load_scenario(None))


def _subject(labels: dict[str, str]) -> str:
    """What an alert is about: account, space and number by their positions in the fleet, or field and value."""
    if "field" in labels:
        return f"{labels['field']} {labels['value']}"
    if "space" not in labels:
        return labels.get("account", labels.get("instance", ""))
    spaces = FLEET.spaces[labels["account"]]
    position, space = next((n, space) for n, space in enumerate(spaces, start=1) if space.id == labels["space"])
    numbers = [number["PhoneNumber"] for number in space.numbers]
    number = f" #{numbers.index(labels['phone_number']) + 1}" if "phone_number" in labels else ""
    return f"{labels['account']} {position}{number}"


@contextmanager
def webhook(told: list[Told], started: float) -> Iterator[int]:
    """The port of a server that notes what it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
            after = time.monotonic() - started
            for alert in payload["alerts"]:
                told.append(Told(after, payload["receiver"], alert["status"], alert["labels"], alert["annotations"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def alertmanager_config(directory: Path, hook: int) -> Path:
    """The shipped one, shortened; each receiver is the webhook under its own name."""
    document = yaml.safe_load(shortened((CONFIG / "alertmanager" / "alertmanager.yml").read_text(), FACTOR))
    del document["global"], document["templates"]
    url = f"http://127.0.0.1:{hook}/"
    document["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": url, "send_resolved": True}]}
        for receiver in document["receivers"]
    ]
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def prometheus_config(directory: Path, demo: int, alertmanager: int) -> Path:
    """One that scrapes and evaluates every second, a fifth of the demo's poll interval."""
    rules = directory / "chatapp.rules.yml"
    rules.write_text(shortened((CONFIG / "prometheus" / rules.name).read_text(), FACTOR))
    document = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{demo}"]
    document["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager}"]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    prometheus = require_program("prometheus", package="prometheus")
    alertmanager = require_program("prometheus-alertmanager", "alertmanager", package="prometheus-alertmanager")
    directory = tmp_path_factory.mktemp("notifications")
    notes: list[Told] = []
    ports = {name: free_port() for name in ("demo", "prometheus", "alertmanager")}
    with ExitStack() as stack:
        started = time.monotonic()
        stack.enter_context(program("demo", "--web.listen-address", f":{ports['demo']}", log=directory / "demo.log"))
        hook = stack.enter_context(webhook(notes, started))
        stack.enter_context(
            running(
                prometheus,
                f"--config.file={prometheus_config(directory, ports['demo'], ports['alertmanager'])}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
                log=directory / "prometheus.log",
            )
        )
        wait_until(is_serving(f"http://127.0.0.1:{ports['prometheus']}/-/ready"), "Prometheus answers")
        # it begins to scrape seconds after that, which are minutes of an absent exporter here: nobody is told of them
        wait_until(lambda: _scraped(ports["prometheus"]), "Prometheus has scraped the demo")
        stack.enter_context(
            running(
                alertmanager,
                f"--config.file={alertmanager_config(directory, hook)}",
                f"--storage.path={directory / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
                "--cluster.listen-address=",
                log=directory / "alertmanager.log",
            )
        )
        wait_until(is_serving(f"http://127.0.0.1:{ports['alertmanager']}/-/ready"), "Alertmanager answers")
        time.sleep(SECONDS - (time.monotonic() - started))
    return notes


def _scraped(port: int) -> bool:
    answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": "up == 1"}, trust_env=False)
    return bool(answer.json()["data"]["result"])


pytestmark = pytest.mark.slow


def test_the_demo_leads_to_the_right_notifications_and_to_no_others(told: list[Told]) -> None:
    for status, expected in (("firing", FIRING), ("resolved", RESOLVED)):
        seen = {alert.key for alert in told if alert.status == status} - (MAY_FIRE - expected)
        assert {"missing": expected - seen, "unexpected": seen - expected} == {"missing": set(), "unexpected": set()}


def test_an_outage_of_an_account_is_one_alert(told: list[Told]) -> None:
    of_account = {alert.key for alert in told if alert.labels.get("account") == "globex"}

    assert of_account == {key for key in FIRING if key[2] == "globex"}


def test_red_is_told_soon_and_with_names(told: list[Told]) -> None:
    red = next(a for a in told if a.key == ("on-call", "ChatAppPhoneNumberQualityRed", "acme 2 #1"))
    space = FLEET.spaces["acme"][1]
    intervals = (red.after - RED_AT_SECONDS) / POLL_INTERVAL_SECONDS
    print(f"\nRED was told {red.after - RED_AT_SECONDS:.1f} s after the API had it: {intervals:.1f} poll intervals")

    assert red.annotations["description"].startswith(
        f"+{space.numbers[0]['PhoneNumber']} ({space.numbers[0]['VerifiedName']}, {space.name}) in space {space.id}"
    )
    # 10 minutes are two poll intervals; until a poll sees it takes up to one more
    assert 2 <= intervals <= 6
