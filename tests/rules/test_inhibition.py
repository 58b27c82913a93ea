"""What a real Alertmanager mutes, with the shipped configuration: what follows from a cause, and nothing else."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from processes import free_port, is_serving, running, wait_until
from programs import require_program

CONFIG = Path(__file__).parents[2] / "config" / "alertmanager"
Labels = dict[str, str]


def alert(name: str, **labels: str) -> Labels:
    return {"alertname": f"ChatApp{name}", "job": "chatapp-exporter", **labels}


BLIND = alert("SpaceBlind", account="acme", space="1")
ELSEWHERE = alert("SpaceBlind", account="globex", space="1")
RED = alert("PhoneNumberQualityRed", account="acme", space="1", phone_number="1555")
YELLOW = alert("PhoneNumberQualityYellow", account="acme", space="1", phone_number="1555")
OTHER_YELLOW = alert("PhoneNumberQualityYellow", account="acme", space="1", phone_number="1556")
DENIED = alert("AccountDenied", account="acme")
UNREACHABLE = alert("AccountUnreachable", account="acme")
OTHER_UNREACHABLE = alert("AccountUnreachable", account="initech")
THROTTLED = alert("Throttled", account="acme")
UNLISTED = alert("DiscoveryFailing", account="acme")
OVERRUN = alert("ScheduleOverrun", account="acme")
DOWN = alert("ExporterDown", instance="a:10144")
NOT_POLLED = alert("ExporterDown", account="acme")
RELOAD = alert("ConfigReloadFailed", instance="a:10144")
OTHER_RELOAD = alert("ConfigReloadFailed", instance="b:10144")
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
        wait_until(is_serving(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager answers")
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", trust_env=False))


@pytest.mark.parametrize(
    ("causes", "muted", "told"),
    [
        pytest.param(
            [DOWN, NOT_POLLED],
            [DENIED, UNREACHABLE, BLIND, THROTTLED, UNLISTED, OVERRUN, RELOAD],
            [RED, VANISHED, ELSEWHERE, OTHER_RELOAD, OTHER_UNREACHABLE],
            id="exporter down",
        ),
        pytest.param([DOWN], [RELOAD], [DENIED, ELSEWHERE, RED], id="exporter down whose accounts another polls"),
        pytest.param([DENIED], [BLIND, THROTTLED, UNLISTED], [RED, ELSEWHERE, VANISHED, OVERRUN], id="account denied"),
        pytest.param(
            [UNREACHABLE],
            [BLIND, THROTTLED, UNLISTED, OVERRUN],
            [RED, ELSEWHERE, VANISHED, OTHER_UNREACHABLE],
            id="account unreachable",
        ),
        pytest.param([RED], [YELLOW], [OTHER_YELLOW, BLIND], id="RED"),
    ],
)
def test_a_cause_mutes_what_follows_from_it_and_nothing_else(
    alertmanager: httpx.Client, causes: list[Labels], muted: list[Labels], told: list[Labels]
) -> None:
    posted = [*causes, *muted, *told]
    alertmanager.post("/alerts", json=[{"labels": labels} for labels in posted]).raise_for_status()
    silent: list[Labels] = []

    def all_muted() -> bool:
        answer = alertmanager.get("/alerts").json()
        silent[:] = [each["labels"] for each in answer if each["status"]["inhibitedBy"]]
        return len(answer) == len(posted) and all(labels in silent for labels in muted)

    wait_until(all_muted, silent)
    assert all(labels in muted for labels in silent)


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (alert("PhoneNumberDown", severity="critical"), "on-call"),
        (alert("AccountUnreachable", severity="critical"), "on-call"),
        (BLIND, "operators"),
        (VANISHED, "account-managers"),
    ],
)
def test_an_alert_goes_to_those_whom_it_concerns(labels: Labels, receiver: str) -> None:
    amtool = require_program("amtool", package="prometheus-alertmanager")
    command = [amtool, "config", "routes", "test", f"--config.file={CONFIG / 'alertmanager.yml'}"]
    route = subprocess.run([*command, *(f"{k}={v}" for k, v in labels.items())], capture_output=True, text=True)

    assert route.stdout.strip() == receiver, route.stderr
