"""A real Prometheus that is down for 10 minutes, with all durations divided by 60, and the shipped rules."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from processes import free_port, running, serving, serving_probe, wait_until
from programs import require_program
from shortened import shortened

RULES = Path(__file__).parents[2] / "config" / "prometheus" / "chatapp.rules.yml"
FACTOR = 60
DOWN_SECONDS = 600 / FACTOR
LOOKBACK_SECONDS = 300 // FACTOR
SPACE = 'account="acme",space="s1"'

pytestmark = pytest.mark.slow


def exposition(numbers: list[str], *, up: bool) -> str:
    """Return a page of an exporter whose last poll listed these numbers, all with the quality rating RED."""
    now = time.time()
    lines = [
        f"chatapp_exporter_time_seconds {now}",
        *(f'chatapp_{name}{{account="acme"}} 1' for name in ("exporter_account_info", "account_up", "account_spaces")),
        'chatapp_account_effective_poll_interval_seconds{account="acme"} 300',
        f"chatapp_space_up{{{SPACE}}} {int(up)}",
        f"chatapp_space_last_success_timestamp_seconds{{{SPACE}}} {now}",
    ]
    for number in numbers:
        labels = f'{SPACE},phone_number="{number}"'
        lines += [
            f"chatapp_phone_number_info{{{labels}}} 1",
            f'chatapp_phone_number_quality_rating{{{labels},quality_rating="RED"}} 1',
        ]
    return "\n".join(lines) + "\n"


def exporter(page: Callable[[], str]) -> AbstractContextManager[int]:
    """Serve the page as `/metrics`, and yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(page().encode())

        def log_message(self, *_: Any) -> None:
            pass

    return serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler))


class Prometheus:
    """A Prometheus server that scrapes and evaluates the rules every second. Each start uses the same database."""

    def __init__(self, directory: Path, target: int) -> None:
        self._directory = directory
        self._port = free_port()
        (directory / "rules.yml").write_text(shortened(RULES.read_text(), FACTOR))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": "chatapp-exporter", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
            ],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    @contextmanager
    def running(self) -> Iterator[None]:
        command = (
            require_program("prometheus", package="prometheus"),
            f"--config.file={self._directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            f"--query.lookback-delta={LOOKBACK_SECONDS}s",
            "--rules.alert.for-grace-period=1s",
        )
        with running(*command, log=self._directory / "log") as process:
            wait_until(serving_probe(f"http://127.0.0.1:{self._port}/-/ready"), "Prometheus is ready")
            yield
            process.terminate()  # saves the samples
            process.wait(30)

    def firing(self) -> set[tuple[str, str]]:
        """Return the name and the phone number of each firing alert about a number."""
        query = 'ALERTS{alertstate="firing", phone_number!=""}'
        response = httpx.get(f"http://127.0.0.1:{self._port}/api/v1/query", params={"query": query}, trust_env=False)
        labels = [result["metric"] for result in response.json()["data"]["result"]]
        return {(label["alertname"].removeprefix("ChatAppPhoneNumber"), label["phone_number"]) for label in labels}

    def wait_for(self, *alerts: tuple[str, str]) -> None:
        wait_until(lambda: set(alerts) <= self.firing(), alerts, seconds=60)


def test_vanished_and_red_numbers_are_reported_after_prometheus_was_down_for_10_minutes(tmp_path: Path) -> None:
    listed, up = ["1", "2", "3"], True
    with exporter(lambda: exposition(listed, up=up)) as target:
        prometheus = Prometheus(tmp_path, target)
        with prometheus.running():
            prometheus.wait_for(("QualityRed", "1"), ("QualityRed", "2"), ("QualityRed", "3"))
            listed = ["2", "3"]
            prometheus.wait_for(("Vanished", "1"))
        listed = ["3"]
        time.sleep(DOWN_SECONDS)
        with prometheus.running():
            prometheus.wait_for(("Vanished", "1"), ("Vanished", "2"), ("QualityRed", "3"))
            # the polls of the space fail, and max_age is exceeded
            listed, up = [], False
            prometheus.wait_for(("QualityRed", "3"))
        time.sleep(DOWN_SECONDS)
        with prometheus.running():
            prometheus.wait_for(("QualityRed", "3"), ("Vanished", "1"), ("Vanished", "2"))
            assert ("Vanished", "3") not in prometheus.firing()
