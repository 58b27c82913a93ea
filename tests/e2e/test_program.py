"""The real program in a process of its own, over real sockets, with the real promtool."""

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
from processes import free_port, is_serving, program, wait_until
from programs import require_program

from exporter.metrics.catalogue import FAMILIES

DESIGNED = """
chatapp_phone_number_quality_rating chatapp_phone_number_messaging_limit chatapp_phone_number_messaging_limit_tier
chatapp_phone_number_status chatapp_phone_number_name_status chatapp_phone_number_new_name_status
chatapp_phone_number_code_verification_status chatapp_phone_number_info
chatapp_phone_number_last_change_timestamp_seconds chatapp_space_up chatapp_space_last_success_timestamp_seconds
chatapp_space_phone_numbers chatapp_space_info chatapp_space_polls_total chatapp_space_poll_failures_total
chatapp_account_up chatapp_account_state chatapp_account_spaces chatapp_account_poll_interval_seconds
chatapp_account_effective_poll_interval_seconds chatapp_account_qps_limit chatapp_account_qps_current
chatapp_account_qps_needed
chatapp_api_requests_total chatapp_api_request_duration_seconds chatapp_api_throttled_total
chatapp_api_unknown_values_total chatapp_poll_delay_seconds chatapp_exporter_build_info
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
        wait_until(is_serving(f"{url}/-/healthy"), "the demo answers")
        wait_until(lambda: not without_samples(scrape(url)), "every family has a sample")
        print(f"\nall {len(DESIGNED)} families had samples {time.monotonic() - started:.1f} s after the start")
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def scrape(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False).text


def without_samples(page: str) -> set[str]:
    found = {re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", line)[0]) for line in page.splitlines()}
    return set(DESIGNED) - found


def test_the_demo_feeds_every_family_of_the_design(demo: str) -> None:
    assert without_samples(scrape(demo)) == set()


def test_no_family_is_shown_that_the_design_does_not_name(demo: str) -> None:
    shown = {line.split(" ")[2] for line in scrape(demo).splitlines() if line.startswith("# TYPE")}

    others = {*ONLY_WITH_FILES, *ONLY_WITH_DISCOVERY}
    assert {name for name in shown if name.startswith("chatapp_")} <= {*DESIGNED, *others}
    assert {family.name for family in FAMILIES} <= {name.removesuffix("_total") for name in (*DESIGNED, *others)}


def test_the_demo_is_not_all_green(demo: str) -> None:
    page = scrape(demo)

    assert re.search(r'quality_rating="YELLOW"} 1\n', page)
    assert re.search(r"chatapp_space_up{.*} 0\n", page)
    assert 'chatapp_api_unknown_values_total{field="messaging_limit_tier",value="TIER_5M"}' in page


def test_promtool_has_nothing_to_say(demo: str) -> None:
    promtool = require_program("promtool", package="prometheus")

    checked = subprocess.run([promtool, "check", "metrics"], input=scrape(demo), text=True, capture_output=True)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


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
        wait_until(is_serving(f"http://{address}/-/healthy"), "the exporter answers")
        yield process, f"http://{address}", log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_ten_seconds_with_0_although_a_poll_hangs(
    tmp_path: Path, number: signal.Signals
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        serving(tmp_path, CONFIG.format(port=silent.getsockname()[1])) as (process, _, log),
    ):
        polled, _ = silent.accept()
        before = time.monotonic()
        process.send_signal(number)

        assert process.wait(timeout=10) == 0
        assert time.monotonic() - before < 10
        assert "stopped" in log.read_text()
        polled.close()


def test_an_account_that_is_unreachable_is_logged_once_when_it_starts_and_once_when_it_ends(tmp_path: Path) -> None:
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
        wait_until(lambda: "account reachable again" in log.read_text(), "the API answers")
        up = 'chatapp_space_up{account="acme",space="own"} 1'
        wait_until(lambda: up in scrape(url), "the space is up")
        lines = log.read_text().splitlines()

    events = [event for line in lines if (event := json.loads(line)["event"]).startswith(("account", "space"))]
    assert events == ["account polling started", "account unreachable", "account reachable again"]
    assert "marked" not in log.read_text()


def test_idle_it_takes_less_than_a_hundredth_of_a_core_and_less_than_100_mb(tmp_path: Path) -> None:
    config = CONFIG.format(port=free_port()).replace("poll_interval: 1s", "poll_interval: 5m")
    with serving(tmp_path, config) as (_, url, _):
        wait_until(lambda: "chatapp_space_polls_total" in scrape(url), "a first scrape")

        def reading(name: str) -> float:
            line = next(line for line in scrape(url).splitlines() if line.startswith(name))
            return float(line.split(" ")[-1])

        before, started = reading("process_cpu_seconds_total"), time.monotonic()
        wait_until(lambda: time.monotonic() - started > 8, "eight idle seconds")
        used = (reading("process_cpu_seconds_total") - before) / (time.monotonic() - started)

        print(f"\nidle: {used:.2%} of a core, {reading('process_resident_memory_bytes') / 1e6:.0f} MB")
        assert used < 0.01
        assert reading("process_resident_memory_bytes") < 100e6
