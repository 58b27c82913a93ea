"""A real exporter process over real sockets, checked with promtool."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from processes import free_port, program, serving_probe, wait_until
from programs import require_program

from exporter.metrics.catalogue import FAMILIES

EXPECTED = """
chatapp_phone_number_quality_rating chatapp_phone_number_messaging_limit chatapp_phone_number_messaging_limit_tier
chatapp_phone_number_status chatapp_phone_number_name_status chatapp_phone_number_new_name_status
chatapp_phone_number_code_verification_status chatapp_phone_number_info
chatapp_phone_number_last_change_timestamp_seconds chatapp_space_up chatapp_space_last_success_timestamp_seconds
chatapp_space_phone_numbers chatapp_space_info chatapp_space_polls_total chatapp_space_poll_failures_total
chatapp_account_up chatapp_account_state chatapp_account_spaces chatapp_account_poll_interval_seconds
chatapp_account_effective_poll_interval_seconds chatapp_account_qps_limit chatapp_account_qps_current
chatapp_account_qps_needed chatapp_account_due_spaces
chatapp_api_requests_total chatapp_api_request_duration_seconds chatapp_api_throttled_total
chatapp_api_unknown_values_total chatapp_poll_delay_seconds chatapp_exporter_build_info
chatapp_exporter_time_seconds chatapp_exporter_account_info
chatapp_exporter_config_last_reload_successful chatapp_exporter_config_last_reload_success_timestamp_seconds
process_resident_memory_bytes python_info
""".split()

ONLY_WITH_FILES = (
    "chatapp_exporter_space_file_up",
    "chatapp_exporter_state_file_up",
    "chatapp_exporter_state_file_failures_total",
)
ONLY_WITH_DISCOVERY = (
    "chatapp_account_discovery_up",
    "chatapp_account_discovery_last_success_timestamp_seconds",
    "chatapp_account_discovered_spaces",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, log = free_port(), tmp_path_factory.mktemp("demo") / "log"
    with program("demo", "--web.listen-address", f"127.0.0.1:{port}", log=log) as process:
        started = time.monotonic()
        url = f"http://127.0.0.1:{port}"
        wait_until(serving_probe(f"{url}/-/healthy"), "the demo responds")
        wait_until(lambda: not families_without_samples(scrape(url)), "every family has a sample")
        print(f"\nall {len(EXPECTED)} families had samples {time.monotonic() - started:.1f} s after the start")
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def scrape(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def families_without_samples(page: str) -> set[str]:
    families = {re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0]) for line in page.splitlines()}
    return set(EXPECTED) - families


def test_the_demo_exports_samples_of_every_expected_family(demo: str) -> None:
    assert families_without_samples(scrape(demo)) == set()


def test_only_expected_families_are_exported(demo: str) -> None:
    exported = {line.split(" ")[2] for line in scrape(demo).splitlines() if line.startswith("# TYPE")}

    optional = {*ONLY_WITH_FILES, *ONLY_WITH_DISCOVERY}
    assert {name for name in exported if name.startswith("chatapp_")} <= {*EXPECTED, *optional}
    assert {family.name for family in FAMILIES} <= {name.removesuffix("_total") for name in (*EXPECTED, *optional)}


def test_the_demo_has_a_yellow_number_a_failing_space_and_an_unknown_value(demo: str) -> None:
    page = scrape(demo)

    assert re.search(r'quality_rating="YELLOW"} 1\n', page)
    assert re.search(r"chatapp_space_up{.*} 0\n", page)
    assert 'chatapp_api_unknown_values_total{field="messaging_limit_tier",value="TIER_5M"}' in page


def test_promtool_check_metrics_reports_no_problems(demo: str) -> None:
    promtool = require_program("promtool", package="prometheus")

    result = subprocess.run([promtool, "check", "metrics"], input=scrape(demo), text=True, capture_output=True)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_status_page_lists_the_accounts(demo: str) -> None:
    page = httpx.get(demo, trust_env=False).text

    assert [name for name in ("acme", "globex", "initech") if f'scope="row">{name}</th>' in page] == [
        "acme",
        "globex",
        "initech",
    ]


CONFIG = """
accounts:
  - name: acme
    endpoint: http://127.0.0.1:{port}
    access_key_id: marked-key
    access_key_secret: marked-secret
    poll_interval: 1s
    qps: 10
"""


@contextmanager
def serving(tmp_path: Path, config: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    file, log, port = tmp_path / "exporter.yml", tmp_path / "log", free_port()
    file.write_text(config)
    address = f"127.0.0.1:{port}"
    arguments = ("--config.file", str(file), "--web.listen-address", address, *arguments)
    with program(*arguments, log=log) as process:
        wait_until(serving_probe(f"http://{address}/-/healthy"), "the exporter responds")
        yield process, f"http://{address}", log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_exporter_with_exit_status_0_within_10_seconds_during_a_poll(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent_api,
        serving(tmp_path, CONFIG.format(port=silent_api.getsockname()[1])) as (process, _, log),
    ):
        connection, _ = silent_api.accept()
        start = time.monotonic()
        process.send_signal(number)

        assert process.wait(timeout=10) == 0
        assert time.monotonic() - start < 10
        assert "stopped" in log.read_text()
        connection.close()


def test_an_unreachable_account_is_logged_once_at_the_start_and_once_at_the_end(tmp_path: Path) -> None:
    port, simulated = free_port(), tmp_path / "scenario.yml"
    simulated.write_text(
        "accounts: [{name: acme, access_key_id: marked-key, access_key_secret: marked-secret, spaces: 1}]\n"
        "events: [{at: 0s, account: acme, space: 1, answer: InternalError, for: 5s}]\n"
    )
    api = ("simulate", "--scenario", str(simulated), "--web.listen-address", f"127.0.0.1:{port}")
    with (
        program(*api, log=tmp_path / "api.log"),
        serving(tmp_path, CONFIG.format(port=port), "--log.format", "json") as (_, url, log),
    ):
        wait_until(lambda: "account reachable again" in log.read_text(), "the API is reachable again")
        up = 'chatapp_space_up{account="acme",space="own"} 1'
        wait_until(lambda: up in scrape(url), "the space is up")
        lines = log.read_text().splitlines()

    events = [event for line in lines if (event := json.loads(line)["event"]).startswith(("account", "space"))]
    assert events == ["account polling started", "account unreachable", "account reachable again"]
    assert "marked" not in log.read_text()


def test_an_idle_exporter_uses_less_than_1_percent_of_a_core_and_less_than_100_mb(tmp_path: Path) -> None:
    config = CONFIG.format(port=free_port()).replace("poll_interval: 1s", "poll_interval: 5m")
    with serving(tmp_path, config) as (_, url, _):
        wait_until(lambda: "chatapp_space_polls_total" in scrape(url), "the number of polls is exported")

        def metric(name: str) -> float:
            line = next(line for line in scrape(url).splitlines() if line.startswith(name))
            return float(line.split(" ")[-1])

        cpu_seconds, started = metric("process_cpu_seconds_total"), time.monotonic()
        wait_until(lambda: time.monotonic() - started > 8, "8 idle seconds have passed")
        cpu_ratio = (metric("process_cpu_seconds_total") - cpu_seconds) / (time.monotonic() - started)

        print(f"\nidle: {cpu_ratio:.2%} of a core, {metric('process_resident_memory_bytes') / 1e6:.0f} MB")
        assert cpu_ratio < 0.01
        assert metric("process_resident_memory_bytes") < 100e6
