"""`credentials: default`: Alibaba Cloud's own chain, in the real program, with sources on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml
from hostile import Exchange, HostileApi, serving
from processes import free_port, program, wait_until

from exporter.simulator.scenario import Scenario

MARK = "marked"
"""In every secret that no log may show."""
QUIET = {
    "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "",
}


def temporary_key(number: int, lifetime: timedelta) -> dict[str, str]:
    """An answer of a metadata service."""
    expires = f"{datetime.now(UTC) + lifetime:%Y-%m-%dT%H:%M:%SZ}"
    key = {"AccessKeyId": f"key-{number}", "AccessKeySecret": f"secret-{number}", "SecurityToken": "token"}
    return {"Code": "Success", **key, "Expiration": expires}


@contextmanager
def role_server(*answers: dict[str, str] | None) -> Iterator[tuple[str, threading.Event]]:
    """Its address, and whether it was asked. Gives the answers one after another, the last again and again; for None
    it keeps whoever asks waiting until the end."""
    left, asked, over = list(answers), threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is None:
                over.wait()
                return
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/role?token={MARK}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def exporter(directory: Path, **environ: str) -> Iterator[tuple[httpx.Client, list[str], Path]]:
    """A running exporter, the access keys that the API saw, and the log."""
    keys: list[str] = []
    account = {"name": "acme", "access_key_id": "key-1", "access_key_secret": "secret-1", "spaces": 3}
    api = HostileApi(Scenario.model_validate({"accounts": [account]}))

    async def note_the_key(exchange: Exchange) -> None:
        keys.append(exchange.headers["authorization"].split("Credential=")[1].split(",")[0])
        await exchange.send_answer()

    api.fault = note_the_key
    with serving(api):
        space = {"id": api.api.fleet.spaces["acme"][0].id}
        polled = {"name": "acme", "credentials": "default", "endpoint": api.endpoint, "poll_interval": "1s"}
        file, log, address = directory / "exporter.yml", directory / "log", f"127.0.0.1:{free_port()}"
        file.write_text(yaml.safe_dump({"accounts": [{**polled, "spaces": [space]}]}))
        arguments = ("--config.file", str(file), "--web.listen-address", address, "--log.level", "debug")
        with (
            program(*arguments, log=log, **QUIET, DEBUG="sdk", HOME=str(directory), **environ),
            httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
        ):
            yield http, keys, log


def shows(http: httpx.Client, line: str) -> bool:
    try:
        return line in http.get("/metrics").text
    except httpx.TransportError:
        return False


def test_a_role_s_temporary_key_is_used_and_renewed_before_it_expires(tmp_path: Path) -> None:
    almost = timedelta(minutes=15, seconds=4)
    with (
        role_server(temporary_key(1, almost), temporary_key(2, timedelta(hours=1))) as (uri, _),
        exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(lambda: shows(http, 'chatapp_space_up{account="acme"'), "a first scrape")
        wait_until(lambda: "key-1" in keys, "the first key is used")
        wait_until(lambda: "key-2" in keys, "the second key is used")

    assert keys == sorted(keys)
    assert not any(secret in log.read_text() for secret in ("secret-", "token", MARK))


def test_a_profile_s_key_is_used(tmp_path: Path) -> None:
    directory = tmp_path / ".alibabacloud"
    directory.mkdir()
    profile = "[default]\ntype = access_key\naccess_key_id = key-1\naccess_key_secret = secret-1\n"
    (directory / "credentials.ini").write_text(profile)
    with exporter(tmp_path) as (http, keys, _):
        wait_until(lambda: shows(http, 'chatapp_account_up{account="acme"} 1'), "the account is let in")
        wait_until(lambda: keys != [], "the profile's key is used")

    assert set(keys) == {"key-1"}


ANSWERS_WITHOUT_A_KEY = {
    "a refusal": {"Code": "Forbidden", "secret": MARK},
    "no expiration": {"Code": "Success", "AccessKeyId": "id", "AccessKeySecret": MARK, "SecurityToken": MARK},
    "a secret that no header can hold": {**temporary_key(1, timedelta(hours=1)), "AccessKeySecret": f"{MARK}\n"},
}


@pytest.mark.parametrize("answer", ANSWERS_WITHOUT_A_KEY.values(), ids=ANSWERS_WITHOUT_A_KEY)
def test_without_credentials_the_account_is_refused_and_nothing_is_sent_or_told(
    tmp_path: Path, answer: dict[str, str]
) -> None:
    with (
        role_server(answer) as (uri, asked),
        exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(lambda: shows(http, 'chatapp_account_up{account="acme"} 0'), "the refusal is shown")
        page = http.get("/metrics").text

    assert asked.is_set()
    assert 'chatapp_api_requests_total{account="acme",code="credentials"}' in page
    assert 'reason="denied"' in page
    assert keys == []
    assert "no source of the default chain" in log.read_text()
    assert MARK not in log.read_text()


def test_an_oidc_token_that_reaches_nobody_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "oidc").write_text(MARK)
    oidc = {
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(tmp_path / "oidc"),
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::1:oidc-provider/x",
        "ALIBABA_CLOUD_ROLE_ARN": "acs:ram::1:role/x",
        "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
    }
    with exporter(tmp_path, **oidc) as (http, _, log):
        wait_until(lambda: shows(http, 'chatapp_account_up{account="acme"} 0'), "the refusal is shown")

    assert "no source of the default chain" in log.read_text()
    assert MARK not in log.read_text()


def test_a_source_that_hangs_holds_up_nothing_else_and_is_told_as_what_it_is(tmp_path: Path) -> None:
    with (
        role_server(None) as (uri, asked),
        exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(asked.is_set, "the source is asked")
        assert http.get("/-/healthy", timeout=2).status_code == 200
        wait_until(lambda: shows(http, 'chatapp_account_up{account="acme"} 0'), "the refusal is shown")

    assert keys == []
    assert "no credentials within 5 s" in log.read_text()
    assert "reason=timeout" not in log.read_text()
