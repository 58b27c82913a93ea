"""Notifications that Alertmanager sends with the shipped configuration and templates list at most 20 alerts.

`pytest -s tests/rules/test_listed_alerts.py` prints the sizes of the notifications.
"""

import email.policy
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer, ThreadingTCPServer
from typing import Any

import httpx
import pytest
import yaml
from processes import free_port, running, serving, serving_probe, wait_until
from programs import require_program

CONFIG = Path(__file__).parents[2] / "config" / "alertmanager"
LISTED = 20
SIZES = (1, 20, 21, 1000)
ALERTS_BY_RECEIVER = {
    "account-managers": ("ChatAppPhoneNumberQualityYellow", "warning"),
    "operators": ("ChatAppSpaceBlind", "warning"),
    "on-call": ("ChatAppPhoneNumberDown", "critical"),
}
"""Maps each receiver to the name and severity of an alert that is routed to this receiver."""


def alert(number: int, *, name: str = "ChatAppPhoneNumberDown", severity: str = "critical", **labels: str) -> Any:
    """Return an alert with annotations as long as in the rules."""
    return {
        "labels": {
            "alertname": name,
            "job": "chatapp-exporter",
            "account": "acme",
            "space": "29348393884000",
            "phone_number": f"1555{number:07}",
            "severity": severity,
            **labels,
        },
        "annotations": {
            "summary": "Phone number down.",
            "description": f"+1555{number:07} (Contoso Customer Care) of Contoso in space 29348393884000 of account "
            "acme was down for at least 10 minutes (status BANNED). "
            "A number that is down cannot send or receive messages.",
            "dashboard_url": "https://grafana.example.com/d/chatapp-phone-number?var-job=chatapp-exporter"
            f"&var-account=acme&var-space=29348393884000&var-phone_number=1555{number:07}",
            "runbook_url": f"https://github.com/chatapp-exporter/chatapp-exporter/blob/main/docs/runbooks/{name}.md",
        },
    }


@dataclass(frozen=True)
class Notification:
    """The content of a notification for the alerts of one account."""

    account: str
    alerts: int
    listed: int
    more: int
    size: int


def parse_text(title: str, text: str, size: int) -> Notification:
    title_match = re.fullmatch(r"\[FIRING (\d+)\] \w+ of (.+)", title)
    assert title_match, title
    lines = text.splitlines()
    listed = sum(line.startswith("FIRING (") for line in lines)
    more = re.fullmatch(r"and (\d+) more: http://\S+/#/alerts\?receiver=\S+", lines[-1])
    return Notification(title_match[2], int(title_match[1]), listed, int(more[1]) if more else 0, size)


def parse_slack(body: bytes) -> Notification:
    (attachment,) = json.loads(body)["attachments"]
    return parse_text(attachment["title"], attachment["text"], len(attachment["text"]))


def parse_webhook(body: bytes) -> Notification:
    payload = json.loads(body)
    listed, more = len(payload["alerts"]), payload["truncatedAlerts"]
    return Notification(payload["groupLabels"]["account"], listed + more, listed, more, len(body))


def parse_mail(body: bytes) -> Notification:
    message = email.message_from_bytes(body, policy=email.policy.default)
    text = message.get_body(("plain",))
    assert text is not None
    return parse_text(message["Subject"], text.get_content(), len(body))


def http_server(on_request: Callable[[str, bytes], None]) -> TCPServer:
    """Return an HTTP server that calls `on_request` with the path and body of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            on_request(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def mail_server(on_message: Callable[[bytes], None]) -> TCPServer:
    """Return an SMTP server that calls `on_message` with each email. Has only the commands that Alertmanager uses."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            for line in self.rfile:
                command = line[:4].upper()
                if command == b"DATA":
                    self.wfile.write(b"354 send the message\r\n")
                    on_message(b"".join(iter(self.rfile.readline, b".\r\n")))
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

    return ThreadingTCPServer(("127.0.0.1", 0), Handler)


def alertmanager_config(directory: Path, http_port: int, mail_port: int) -> Path:
    """Write the shipped configuration with other addresses and group intervals of 1 second, and return its path."""
    document = yaml.safe_load((CONFIG / "alertmanager.yml").read_text())
    document["global"] = {
        "smtp_smarthost": f"127.0.0.1:{mail_port}",
        "smtp_from": "chatapp-alerts@example.com",
        "smtp_require_tls": False,
    }
    document["templates"] = [str(CONFIG / "chatapp.tmpl")]
    document["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    receivers = {receiver["name"]: receiver for receiver in document["receivers"]}
    (slack,) = receivers["operators"]["slack_configs"]
    del slack["api_url_file"]
    slack["api_url"] = f"http://127.0.0.1:{http_port}/slack"
    receivers["on-call"]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{http_port}/webhook"
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def notifications(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Notification]:
    """Send alerts to Alertmanager and return the notifications, by receiver and number of alerts in the group."""
    directory = tmp_path_factory.mktemp("listed")
    received: dict[tuple[str, int], Notification] = {}

    def store(receiver: str, notification: Notification) -> None:
        # if Alertmanager notifies a group before all its alerts were posted, it notifies the group again
        if notification.account == f"acme-{notification.alerts}":
            received[receiver, notification.alerts] = notification

    def store_http(path: str, body: bytes) -> None:
        store(*(("operators", parse_slack(body)) if path == "/slack" else ("on-call", parse_webhook(body))))

    port = free_port()
    with ExitStack() as stack:
        http_port = stack.enter_context(serving(http_server(store_http)))
        mail_port = stack.enter_context(serving(mail_server(lambda body: store("account-managers", parse_mail(body)))))
        command = (
            require_program("prometheus-alertmanager", "alertmanager", package="prometheus-alertmanager"),
            f"--config.file={alertmanager_config(directory, http_port, mail_port)}",
            f"--storage.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        )
        stack.enter_context(running(*command, log=directory / "log"))
        wait_until(serving_probe(f"http://127.0.0.1:{port}/-/ready"), "Alertmanager is ready")
        posted = [
            alert(number, name=name, severity=severity, account=f"acme-{size}")
            for name, severity in ALERTS_BY_RECEIVER.values()
            for size in SIZES
            for number in range(size)
        ]
        httpx.post(f"http://127.0.0.1:{port}/api/v2/alerts", json=posted, trust_env=False).raise_for_status()
        wait_until(lambda: len(received) == len(ALERTS_BY_RECEIVER) * len(SIZES), received)
    return received


@pytest.mark.parametrize("receiver", ALERTS_BY_RECEIVER)
@pytest.mark.parametrize("alerts", SIZES)
def test_a_notification_lists_at_most_20_alerts_and_the_number_of_further_alerts(
    notifications: dict[tuple[str, int], Notification], receiver: str, alerts: int
) -> None:
    notification = notifications[receiver, alerts]
    print(f"\n{alerts:5} alerts to {receiver}: {notification.size / 1000:.1f} kB")

    assert (notification.listed, notification.more) == (min(alerts, LISTED), max(alerts - LISTED, 0))


def render(template: str, alerts: list[Any], directory: Path, **common_labels: str) -> str:
    """Render these alerts with a template of the shipped file."""
    path = directory / "notification.json"
    notification = {
        "receiver": "on call",
        "status": "firing",
        "alerts": alerts,
        "commonLabels": common_labels,
        "externalURL": "http://alertmanager:9093",
    }
    path.write_text(json.dumps(notification))
    command = [
        *(require_program("amtool", package="prometheus-alertmanager"), "template", "render"),
        f"--template.glob={CONFIG / 'chatapp.tmpl'}",
        f"--template.data={path}",
        f'--template.text={{{{ template "{template}" . }}}}',
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")


def alert_with_status(status: str, number: int = 1, **labels: str) -> Any:
    """Return an alert as notification templates get it."""
    return {"status": status, **alert(number, **labels)}


@pytest.mark.parametrize(
    ("alerts_per_kind", "listed", "last_line"),
    [
        (1, ["FIRING (critical)", "FIRING (warning)", "FIRING (info)", "FIRING ()", "RESOLVED (critical)"], None),
        (6, ["FIRING (critical)"] * 6 + ["FIRING (warning)"] * 6 + ["FIRING (info)", "FIRING ()"] * 4, "and 10 more"),
    ],
)
def test_the_text_lists_alerts_sorted_by_severity(
    tmp_path: Path, alerts_per_kind: int, listed: list[str], last_line: str | None
) -> None:
    kinds = [
        ("resolved", "critical"),
        ("firing", "info"),
        ("firing", ""),
        ("firing", "warning"),
        ("firing", "critical"),
    ]
    alerts = [alert_with_status(status, severity=severity) for status, severity in kinds * alerts_per_kind]
    lines = render("chatapp.text", alerts, tmp_path).splitlines()
    link = [f"{last_line}: http://alertmanager:9093/#/alerts?receiver=on+call"] if last_line else []

    assert [line.partition(":")[0] for line in lines if line.startswith(("FIRING", "RESOLVED"))] == listed
    assert [line for line in lines if line.startswith("and ")] == link


def test_the_text_of_an_alert_has_summary_description_dashboard_and_runbook(tmp_path: Path) -> None:
    assert render("chatapp.text", [alert_with_status("firing", 7)], tmp_path) == (
        "FIRING (critical): Phone number down.\n"
        "+15550000007 (Contoso Customer Care) of Contoso in space 29348393884000 of account acme was down for at least "
        "10 minutes (status BANNED). A number that is down cannot send or receive messages.\n"
        "Dashboard: https://grafana.example.com/d/chatapp-phone-number?var-job=chatapp-exporter"
        "&var-account=acme&var-space=29348393884000&var-phone_number=15550000007\n"
        "Runbook: https://github.com/chatapp-exporter/chatapp-exporter/blob/main/docs/runbooks/ChatAppPhoneNumberDown.md"
    )


def test_long_annotations_are_truncated_and_long_links_are_omitted(tmp_path: Path) -> None:
    longest, long = alert_with_status("firing"), alert_with_status("firing")
    longest["annotations"] |= {"summary": "s" * 100, "description": "d" * 300, "dashboard_url": "u" * 230}
    text = render("chatapp.text", [longest] * 1000, tmp_path)
    assert f"{'s' * 100}\n{'d' * 300}\nDashboard: {'u' * 230}\nRunbook: " in text
    assert len(text) < 16_383  # the maximum length in Mattermost

    long["annotations"] |= {"summary": "s" * 101, "description": "号\n" * 1000, "dashboard_url": "u" * 231}
    text = render("chatapp.text", [long], tmp_path)

    assert text.startswith("FIRING (critical): " + "s" * 99 + "…\n" + "号\n" * 149 + "号…\nRunbook: ")


def test_names_of_customers_notify_no_users(tmp_path: Path) -> None:
    hostile = alert_with_status("firing")
    hostile["annotations"]["description"] = (
        "+1555 (<!channel> <@U024BE7LH> H&M &lt;!here&gt; *Co*) of <!everyone> was down."
    )
    text = render("chatapp.text", [hostile], tmp_path)
    title = render("chatapp.title", [hostile], tmp_path, account="<!channel>")

    assert "+1555 (‹!channel› ‹@U024BE7LH› H&M &lt;!here&gt; *Co*) of ‹!everyone› was down." in text
    assert not {"<", ">"} & {*text, *title}


def test_the_slack_receiver_does_not_format_names() -> None:
    receivers = yaml.safe_load((CONFIG / "alertmanager.yml").read_text())["receivers"]
    (slack,) = (config for receiver in receivers for config in receiver.get("slack_configs", []))

    assert "text" not in slack["mrkdwn_in"]
    assert not slack.get("link_names", False)


@pytest.mark.parametrize(
    ("statuses", "labels", "title"),
    [
        (["firing"], {"alertname": "ChatAppThrottled", "account": "acme"}, "[FIRING 1] ChatAppThrottled of acme"),
        (["firing", "resolved", "firing"], {"account": "acme"}, "[FIRING 2, RESOLVED 1] several alerts of acme"),
        (["resolved", "resolved"], {"alertname": "ChatAppExporterDown"}, "[RESOLVED 2] ChatAppExporterDown"),
        # PagerDuty accepts at most 1024 characters
        (["firing"] * 1000, {"account": "号" * 500}, f"[FIRING 1000] several alerts of {'号' * 299}…"),
    ],
)
def test_the_title_has_the_numbers_of_firing_and_resolved_alerts(
    tmp_path: Path, statuses: list[str], labels: dict[str, str], title: str
) -> None:
    alerts = [alert_with_status(status) for status in statuses]

    assert render("chatapp.title", alerts, tmp_path, **labels) == title
