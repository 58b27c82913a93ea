"""Alertmanager inhibits dependent alerts with the shipped configuration, and routes alerts to receivers."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from processes import free_port, running, serving_probe, wait_until
from programs import require_program

CONFIG = Path(__file__).parents[2] / "config" / "alertmanager"
Labels = dict[str, str]


def alert(name: str, **labels: str) -> Labels:
    return {"alertname": f"ChatApp{name}", "job": "chatapp-exporter", **labels}


BLIND = alert("SpaceBlind", account="acme", space="1", team="emea")
OTHER_BLIND = alert("SpaceBlind", account="globex", space="1")
RED = alert("PhoneNumberQualityRed", account="acme", space="1", phone_number="1555", team="emea")
YELLOW = alert("PhoneNumberQualityYellow", account="acme", space="1", phone_number="1555", team="apac")
OTHER_YELLOW = alert("PhoneNumberQualityYellow", account="acme", space="1", phone_number="1556")
DENIED = alert("AccountDenied", account="acme")
UNREACHABLE = alert("AccountUnreachable", account="acme")
OTHER_UNREACHABLE = alert("AccountUnreachable", account="initech")
THROTTLED = alert("Throttled", account="acme")
DISCOVERY_FAILING = alert("DiscoveryFailing", account="acme")
OVERRUN = alert("ScheduleOverrun", account="acme")
EXPORTER_DOWN = alert("ExporterDown", instance="a:10144")
NOT_POLLED = alert("ExporterDown", account="acme")
RELOAD_FAILED = alert("ConfigReloadFailed", instance="a:10144")
OTHER_RELOAD_FAILED = alert("ConfigReloadFailed", instance="b:10144")
VANISHED = alert("PhoneNumberVanished", account="acme", space="1", phone_number="1557")


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[httpx.Client]:
    port = free_port()
    command = (
        require_program("prometheus-alertmanager", "alertmanager", package="prometheus-alertmanager"),
        f"--config.file={CONFIG / 'alertmanager.yml'}",
        f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    with ExitStack() as stack:
        stack.enter_context(running(*command, log=tmp_path / "log"))
        wait_until(serving_probe(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager is ready")
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", trust_env=False))


@pytest.mark.parametrize(
    ("causes", "inhibited", "active"),
    [
        pytest.param(
            [EXPORTER_DOWN, NOT_POLLED],
            [DENIED, UNREACHABLE, BLIND, THROTTLED, DISCOVERY_FAILING, OVERRUN, RELOAD_FAILED],
            [RED, VANISHED, OTHER_BLIND, OTHER_RELOAD_FAILED, OTHER_UNREACHABLE],
            id="exporter down",
        ),
        pytest.param(
            [EXPORTER_DOWN],
            [RELOAD_FAILED],
            [DENIED, OTHER_BLIND, RED],
            id="exporter down, another exporter polls its accounts",
        ),
        pytest.param(
            [DENIED],
            [BLIND, THROTTLED, DISCOVERY_FAILING],
            [RED, OTHER_BLIND, VANISHED, OVERRUN],
            id="account denied",
        ),
        pytest.param(
            [UNREACHABLE],
            [BLIND, THROTTLED, DISCOVERY_FAILING, OVERRUN],
            [RED, OTHER_BLIND, VANISHED, OTHER_UNREACHABLE],
            id="account unreachable",
        ),
        pytest.param([RED], [YELLOW], [OTHER_YELLOW, BLIND], id="RED"),
    ],
)
def test_an_alert_inhibits_only_its_dependent_alerts(
    alertmanager: httpx.Client, causes: list[Labels], inhibited: list[Labels], active: list[Labels]
) -> None:
    posted = [*causes, *inhibited, *active]
    alertmanager.post("/alerts", json=[{"labels": labels} for labels in posted]).raise_for_status()
    found: list[Labels] = []

    def all_inhibited() -> bool:
        alerts = alertmanager.get("/alerts").json()
        found[:] = [alert["labels"] for alert in alerts if alert["status"]["inhibitedBy"]]
        return len(alerts) == len(posted) and all(labels in found for labels in inhibited)

    wait_until(all_inhibited, found)
    assert all(labels in inhibited for labels in found)


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (alert("PhoneNumberDown", severity="critical"), "on-call"),
        (alert("AccountUnreachable", severity="critical"), "on-call"),
        (BLIND, "operators"),
        (VANISHED, "account-managers"),
    ],
)
def test_alerts_are_routed_to_the_right_receiver(labels: Labels, receiver: str) -> None:
    assert receiver_of(labels, CONFIG / "alertmanager.yml") == receiver


def receiver_of(labels: Labels, config: Path) -> str:
    amtool = require_program("amtool", package="prometheus-alertmanager")
    command = [amtool, "config", "routes", "test", f"--config.file={config}"]
    route = subprocess.run([*command, *(f"{k}={v}" for k, v in labels.items())], capture_output=True, text=True)

    assert route.returncode == 0, route.stderr
    return route.stdout.strip()


def test_the_example_of_a_route_for_a_team(tmp_path: Path) -> None:
    config = tmp_path / "alertmanager.yml"
    shipped = (CONFIG / "alertmanager.yml").read_text().replace("[chatapp.tmpl]", "[]")
    with_route = re.sub(
        r"^    # (- matchers: .team = .*\n)    #(   receiver: .*\n)", r"    \1   \2", shipped, flags=re.M
    )
    assert with_route != shipped
    config.write_text(f"{with_route}\n  - name: account-managers-emea\n")

    assert receiver_of({**YELLOW, "team": "emea"}, config) == "account-managers-emea"
    assert receiver_of({**RED, "severity": "critical"}, config) == "on-call"
    assert receiver_of(YELLOW, config) == "account-managers"
    assert receiver_of(BLIND, config) == "operators"
