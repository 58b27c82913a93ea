"""`credentials: default`: Alibaba Cloud's default credential chain in a real process, with local credential sources."""

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
"""Part of the secrets that must not appear in the log."""
NO_OTHER_SOURCES = {
    "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "",
}


def temporary_key(number: int, lifetime: timedelta) -> dict[str, str]:
    """Return a response of the credentials URI."""
    expires = f"{datetime.now(UTC) + lifetime:%Y-%m-%dT%H:%M:%SZ}"
    key = {"AccessKeyId": f"key-{number}", "AccessKeySecret": f"secret-{number}", "SecurityToken": "token"}
    return {"Code": "Success", **key, "Expiration": expires}


@contextmanager
def credentials_server(*responses: dict[str, str] | None) -> Iterator[tuple[str, threading.Event]]:
    """Yield the URI of a server of temporary keys, and an event that is set by the first request.

    The responses are sent in order, and the last one is repeated. If a response is None, the request hangs until the
    context ends.
    """
    pending, requested, stop = list(responses), threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.set()
            response = pending.pop(0) if len(pending) > 1 else pending[0]
            if response is None:
                stop.wait()
                return
            body = json.dumps(response).encode()
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
        yield f"http://127.0.0.1:{server.server_port}/role?token={MARK}", requested
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def running_exporter(directory: Path, **environ: str) -> Iterator[tuple[httpx.Client, list[str], Path]]:
    """Yield a client of a running exporter, the access key ids that the API received, and the log."""
    keys: list[str] = []
    simulated = {"name": "acme", "access_key_id": "key-1", "access_key_secret": "secret-1", "spaces": 3}
    api = HostileApi(Scenario.model_validate({"accounts": [simulated]}))

    async def record_key(exchange: Exchange) -> None:
        keys.append(exchange.headers["authorization"].split("Credential=")[1].split(",")[0])
        await exchange.send_api_response()

    api.fault = record_key
    with serving(api):
        space = {"id": api.api.fleet.spaces["acme"][0].id}
        account = {"name": "acme", "credentials": "default", "endpoint": api.endpoint, "poll_interval": "1s"}
        file, log, address = directory / "exporter.yml", directory / "log", f"127.0.0.1:{free_port()}"
        file.write_text(yaml.safe_dump({"accounts": [{**account, "spaces": [space]}]}))
        arguments = ("--config.file", str(file), "--web.listen-address", address, "--log.level", "debug")
        with (
            program(*arguments, log=log, **NO_OTHER_SOURCES, DEBUG="sdk", HOME=str(directory), **environ),
            httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
        ):
            yield http, keys, log


def exports(http: httpx.Client, line: str) -> bool:
    try:
        return line in http.get("/metrics").text
    except httpx.TransportError:
        return False


def test_a_temporary_key_is_used_and_renewed_before_it_expires(tmp_path: Path) -> None:
    lifetime = timedelta(minutes=15, seconds=4)  # the key is renewed 15 minutes before it expires
    with (
        credentials_server(temporary_key(1, lifetime), temporary_key(2, timedelta(hours=1))) as (uri, _),
        running_exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(lambda: exports(http, 'chatapp_space_up{account="acme"'), "the first poll is exported")
        wait_until(lambda: "key-1" in keys, "the first key is used")
        wait_until(lambda: "key-2" in keys, "the second key is used")

    assert keys == sorted(keys)
    assert not any(secret in log.read_text() for secret in ("secret-", "token", MARK))


def test_the_key_of_the_default_profile_is_used(tmp_path: Path) -> None:
    directory = tmp_path / ".alibabacloud"
    directory.mkdir()
    profile = "[default]\ntype = access_key\naccess_key_id = key-1\naccess_key_secret = secret-1\n"
    (directory / "credentials.ini").write_text(profile)
    with running_exporter(tmp_path) as (http, keys, _):
        wait_until(lambda: exports(http, 'chatapp_account_up{account="acme"} 1'), "the account is up")
        wait_until(lambda: keys != [], "the profile's key is used")

    assert set(keys) == {"key-1"}


RESPONSES_WITHOUT_A_KEY = {
    "error": {"Code": "Forbidden", "secret": MARK},
    "no expiration": {"Code": "Success", "AccessKeyId": "id", "AccessKeySecret": MARK, "SecurityToken": MARK},
    "line break in the secret": {**temporary_key(1, timedelta(hours=1)), "AccessKeySecret": f"{MARK}\n"},
}


@pytest.mark.parametrize("response", RESPONSES_WITHOUT_A_KEY.values(), ids=RESPONSES_WITHOUT_A_KEY)
def test_without_credentials_the_account_is_denied_no_request_is_sent_and_no_secret_is_logged(
    tmp_path: Path, response: dict[str, str]
) -> None:
    with (
        credentials_server(response) as (uri, requested),
        running_exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(lambda: exports(http, 'chatapp_account_up{account="acme"} 0'), "the account is down")
        page = http.get("/metrics").text

    assert requested.is_set()
    assert 'chatapp_api_requests_total{account="acme",code="credentials"}' in page
    assert 'reason="denied"' in page
    assert keys == []
    assert "no usable credentials in the default chain" in log.read_text()
    assert MARK not in log.read_text()


def test_an_oidc_token_is_not_logged_if_the_proxy_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "oidc").write_text(MARK)
    oidc = {
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(tmp_path / "oidc"),
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::1:oidc-provider/x",
        "ALIBABA_CLOUD_ROLE_ARN": "acs:ram::1:role/x",
        "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}",
    }
    with running_exporter(tmp_path, **oidc) as (http, _, log):
        wait_until(lambda: exports(http, 'chatapp_account_up{account="acme"} 0'), "the account is down")

    assert "no usable credentials in the default chain" in log.read_text()
    assert MARK not in log.read_text()


def test_a_hung_credential_source_does_not_block_the_server_and_is_logged(tmp_path: Path) -> None:
    with (
        credentials_server(None) as (uri, requested),
        running_exporter(tmp_path, ALIBABA_CLOUD_CREDENTIALS_URI=uri) as (http, keys, log),
    ):
        wait_until(requested.is_set, "the source receives a request")
        assert http.get("/-/healthy", timeout=2).status_code == 200
        wait_until(lambda: exports(http, 'chatapp_account_up{account="acme"} 0'), "the account is down")

    assert keys == []
    assert "no credentials within 5 s" in log.read_text()
    assert "reason=timeout" not in log.read_text()
