"""Notifications of the demo, sent by a real Prometheus and Alertmanager to a webhook with the shipped configuration.

All durations in the rules and in the Alertmanager configuration are divided by 60, because the default poll interval is
5 minutes and that of the demo 5 seconds. The demo takes 5 minutes. A rating that is YELLOW for 6 hours takes 6 minutes.
"""

import json
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import free_port, program, running, serving, serving_probe, wait_until
from programs import require_program
from shortened import shortened

from exporter.simulator.fleet import Fleet, load_scenario

CONFIG = Path(__file__).parents[2] / "config"
FACTOR = 60
POLL_INTERVAL_SECONDS = 300 / FACTOR
SECONDS = 415
"""Duration of the test after the start of the demo."""
RED_AT_SECONDS = 60
"""Time at which the demo sets the first number of acme's second space to RED."""

FIRING = {
    ("on-call", "ChatAppAccountDenied", "globex"),
    ("on-call", "ChatAppAccountUnreachable", "globex"),
    ("on-call", "ChatAppPhoneNumberDown", "acme 5 #1"),
    ("on-call", "ChatAppPhoneNumberQualityRed", "acme 2 #1"),
    ("on-call", "ChatAppPhoneNumberQualityRed", "acme 10 #1"),
    ("account-managers", "ChatAppMessagingLimitDropped", "acme 3 #1"),
    ("account-managers", "ChatAppPhoneNumberQualityYellow", "acme 1 #1"),  # not acme 2, because RED inhibits YELLOW
    ("account-managers", "ChatAppPhoneNumberQualityYellow", "acme 9 #1"),
    ("account-managers", "ChatAppPhoneNumberRestricted", "acme 10 #1"),
    ("account-managers", "ChatAppPhoneNumberVanished", "acme 12 #1"),
    ("operators", "ChatAppScheduleOverrun", "acme"),  # while acme is throttled
    ("operators", "ChatAppScheduleOverrun", "initech"),
    ("operators", "ChatAppThrottled", "acme"),
    ("operators", "ChatAppUnknownValue", "messaging_limit_tier TIER_5M"),
    ("operators", "ChatAppUnknownValue", "quality_rating missing"),
    ("operators", "ChatAppUnknownValue", "status HIBERNATING"),
    # the polls of these spaces fail; while acme is throttled, the effective interval of acme is longer
    *(("operators", "ChatAppSpaceBlind", f"acme {space}") for space in (6, 13, 14)),
}
MAY_FIRE = {
    # the rate of acme increases over 4 minutes; in that time, a space that is polled late can be blind
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
class NotifiedAlert:
    """An alert in a notification."""

    seconds: float
    """Time since the start of the demo."""
    receiver: str
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.receiver, self.labels["alertname"], _subject(self.labels)


FLEET = Fleet(load_scenario(None))


def _subject(labels: dict[str, str]) -> str:
    """Return the subject of an alert: account, position of the space, position of the number; or field and value."""
    if "field" in labels:
        return f"{labels['field']} {labels['value']}"
    if "space" not in labels:
        return labels.get("account", labels.get("instance", ""))
    spaces = FLEET.spaces[labels["account"]]
    position, space = next((n, space) for n, space in enumerate(spaces, start=1) if space.id == labels["space"])
    numbers = [number["PhoneNumber"] for number in space.numbers]
    number = f" #{numbers.index(labels['phone_number']) + 1}" if "phone_number" in labels else ""
    return f"{labels['account']} {position}{number}"


def webhook(alerts: list[NotifiedAlert], started: float) -> AbstractContextManager[int]:
    """Run a server that appends each received alert to `alerts`, and yield its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seconds = time.monotonic() - started
            for alert in payload["alerts"]:
                labels, annotations = alert["labels"], alert["annotations"]
                alerts.append(NotifiedAlert(seconds, payload["receiver"], alert["status"], labels, annotations))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler))


def write_alertmanager_config(directory: Path, webhook_port: int) -> Path:
    """The shipped configuration with shortened durations. Each receiver sends to the webhook."""
    document = yaml.safe_load(shortened((CONFIG / "alertmanager" / "alertmanager.yml").read_text(), FACTOR))
    del document["global"], document["templates"]
    url = f"http://127.0.0.1:{webhook_port}/"
    document["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": url, "send_resolved": True}]}
        for receiver in document["receivers"]
    ]
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(document))
    return path


def write_prometheus_config(directory: Path, demo_port: int, alertmanager_port: int) -> Path:
    """The shipped configuration with an interval of one second for scrapes and rules."""
    rules = directory / "chatapp.rules.yml"
    rules.write_text(shortened((CONFIG / "prometheus" / rules.name).read_text(), FACTOR))
    document = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{demo_port}"]
    document["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def alerts(tmp_path_factory: pytest.TempPathFactory) -> list[NotifiedAlert]:
    prometheus = require_program("prometheus", package="prometheus")
    alertmanager = require_program("prometheus-alertmanager", "alertmanager", package="prometheus-alertmanager")
    directory = tmp_path_factory.mktemp("notifications")
    alerts: list[NotifiedAlert] = []
    ports = {name: free_port() for name in ("demo", "prometheus", "alertmanager")}
    with ExitStack() as stack:
        started = time.monotonic()
        stack.enter_context(program("demo", "--web.listen-address", f":{ports['demo']}", log=directory / "demo.log"))
        webhook_port = stack.enter_context(webhook(alerts, started))
        stack.enter_context(
            running(
                prometheus,
                f"--config.file={write_prometheus_config(directory, ports['demo'], ports['alertmanager'])}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
                log=directory / "prometheus.log",
            )
        )
        wait_until(serving_probe(f"http://127.0.0.1:{ports['prometheus']}/-/ready"), "Prometheus is ready")
        # before its first scrape, Prometheus fires ChatAppExporterDown; without Alertmanager, nothing is sent
        wait_until(lambda: _has_scraped(ports["prometheus"]), "Prometheus has scraped the demo")
        stack.enter_context(
            running(
                alertmanager,
                f"--config.file={write_alertmanager_config(directory, webhook_port)}",
                f"--storage.path={directory / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
                "--cluster.listen-address=",
                log=directory / "alertmanager.log",
            )
        )
        wait_until(serving_probe(f"http://127.0.0.1:{ports['alertmanager']}/-/ready"), "Alertmanager is ready")
        time.sleep(SECONDS - (time.monotonic() - started))
    return alerts


def _has_scraped(port: int) -> bool:
    response = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": "up == 1"}, trust_env=False)
    return bool(response.json()["data"]["result"])


pytestmark = pytest.mark.slow


def test_the_demo_sends_exactly_the_expected_notifications(alerts: list[NotifiedAlert]) -> None:
    for status, expected in (("firing", FIRING), ("resolved", RESOLVED)):
        sent = {alert.key for alert in alerts if alert.status == status} - (MAY_FIRE - expected)
        assert {"missing": expected - sent, "unexpected": sent - expected} == {"missing": set(), "unexpected": set()}


def test_an_account_outage_sends_only_account_alerts(alerts: list[NotifiedAlert]) -> None:
    globex_alerts = {alert.key for alert in alerts if alert.labels.get("account") == "globex"}

    assert globex_alerts == {
        ("on-call", "ChatAppAccountDenied", "globex"),
        ("on-call", "ChatAppAccountUnreachable", "globex"),
    }


def test_a_red_rating_is_notified_within_6_poll_intervals_with_names(alerts: list[NotifiedAlert]) -> None:
    red = next(alert for alert in alerts if alert.key == ("on-call", "ChatAppPhoneNumberQualityRed", "acme 2 #1"))
    space = FLEET.spaces["acme"][1]
    intervals = (red.seconds - RED_AT_SECONDS) / POLL_INTERVAL_SECONDS
    delay = f"{red.seconds - RED_AT_SECONDS:.1f} s, {intervals:.1f} poll intervals"
    print(f"\ntime from the RED rating in the API to the notification: {delay}")

    number = space.numbers[0]
    customer = "" if number["VerifiedName"] == space.name else f" of {space.name}"
    assert red.annotations["description"].startswith(
        f"+{number['PhoneNumber']} ({number['VerifiedName']}){customer} in space {space.id}"
    )
    assert red.annotations["dashboard_url"].endswith(f"&var-space={space.id}&var-phone_number={number['PhoneNumber']}")
    # `for: 10m` is two poll intervals, and the next poll is up to one interval after the change
    assert 2 <= intervals <= 6
