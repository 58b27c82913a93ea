"""Searches pages, logs, errors and the state file for marked secrets during failures."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import bcrypt
import httpx
import yaml
from hostile import Exchange, HostileApi, responds_with, serving
from processes import free_port, program, running, serving_probe, wait_until

from exporter.simulator.scenario import Scenario

MARK = "Zq7pW3vXk9RtB2mLs8DfH4nJc6GyTa"
KEY, SECRET, TOKEN, PASSWORD, CALLBACK = (f"{kind}{MARK}{number}" for number, kind in enumerate("KSTPC"))
PAGES = ("/", "/space?account=literal&space=own", "/api/v1/phone-numbers", "/api/v1/spaces")
PATHS = (*PAGES, "/metrics", "/-/healthy", "/-/ready", "/-/config", "/missing", f"/metrics?name[]={SECRET[:3]}")


def scenario() -> Scenario:
    account = {"name": "acme", "access_key_id": KEY, "access_key_secret": SECRET, "spaces": 3, "poll_interval": "1s"}
    address = f"https://customer.example/hook?token={CALLBACK}"
    fields = {"UpCallbackUrl": address, "StatusCallbackUrl": address, "UpQueue": f"queue-{CALLBACK}"}
    events = [{"at": "0s", "account": "acme", "space": n, "number": 1, "set": fields} for n in (1, 2, 3)]
    return Scenario.model_validate({"accounts": [account], "events": events})


async def echoes_secrets(exchange: Exchange) -> None:
    """Respond with an error that repeats the secrets of the request, as some gateways do. One account has no token."""
    text = f"key {KEY} secret {SECRET} token {exchange.headers.get('x-acs-security-token')}"
    body = {"Code": "InternalError", "Message": text, "RequestId": KEY}
    await exchange.send(500, json.dumps(body).encode(), {"x-acs-request-id": KEY})


FAULTS = (
    echoes_secrets,
    responds_with(400, json.dumps({"Code": KEY, "Message": SECRET}).encode()),
    responds_with(302, b"", {"location": f"https://elsewhere.example/{SECRET}"}),
    responds_with(200, b"not json " + TOKEN.encode()),
    None,
)
INVALID_CONFIGURATIONS = (
    f"accounts: [{{access_key_secret: [{SECRET}]}}]",
    f"accounts: [{{credentials: {SECRET}}}]",
    f"accounts: [{{endpoint: 'https://user:{SECRET}@cams.example', access_key_id_file: x.{SECRET}}}]",
    f"messaging_limits: {{a:{SECRET}: x}}",
    f"access_key_secret:{SECRET}: x",
    "accounts: [",
)


def write_config(directory: Path, api: HostileApi) -> Path:
    literal = api.account(name="literal", qps=3)  # three accounts with the same key: at most 10 in total
    (directory / "secret").write_text(SECRET)
    (directory / "token").write_text(TOKEN)
    from_environment = {key: value for key, value in literal.items() if not key.startswith("access_key")}
    from_environment["name"] = "environment"
    in_files = from_environment | {"name": "files", "access_key_id": KEY}
    in_files |= {"access_key_secret_file": "secret", "security_token_file": "token"}
    accounts = [literal, in_files, from_environment]
    file = directory / "exporter.yml"
    file.write_text(yaml.safe_dump({"accounts": accounts, "state_file": "state.db"}))
    return file


def secrets_in(text: str) -> list[str]:
    return re.findall(rf".{{0,60}}{MARK}.{{0,20}}", text)


ENVIRON = {
    "ALIBABA_CLOUD_ACCESS_KEY_ID": KEY,
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": SECRET,
    "ALIBABA_CLOUD_SECURITY_TOKEN": TOKEN,
}


def test_no_page_log_state_file_or_process_title_contains_a_secret(tmp_path: Path) -> None:
    api, url, log = HostileApi(scenario()), f"http://127.0.0.1:{free_port()}", tmp_path / "log"
    web = tmp_path / "web.yml"
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    web.write_text(yaml.safe_dump({"basic_auth_users": {"prometheus": hashed}}))
    texts = {}
    with serving(api), httpx.Client(base_url=url, trust_env=False, auth=("prometheus", PASSWORD)) as http:
        file = write_config(tmp_path, api)
        arguments = ["--config.file", str(file), "--web.listen-address", url.removeprefix("http://")]
        arguments += ["--web.config.file", str(web), "--web.enable-lifecycle", "--log.level", "debug"]
        with program(*arguments, log=log, PYTHONASYNCIODEBUG="1", **ENVIRON) as process:
            wait_until(lambda: _is_ready(http), "the exporter is ready")
            for number, fault in enumerate(FAULTS):
                api.fault, before = fault, len(api.arrivals)
                wait_until(lambda before=before: len(api.arrivals) > before + 12, "the API receives 12 more requests")  # type: ignore[misc]
                for path in PATHS:
                    texts[f"{path} {number}"] = "".join(f"{h}: {v}\n" for h, v in http.get(path).headers.items())
                    texts[f"{path} {number}"] += http.get(path, headers={"accept-encoding": "identity"}).text
            for text in INVALID_CONFIGURATIONS:
                file.write_text(text)
                texts[f"reload {len(texts)}"] = http.post("/-/reload").text
            web.write_text(f"basic_auth_users: {{prometheus: {PASSWORD}, 'x:{PASSWORD}': y}}")
            wait_until(lambda: "web config reload failed" in log.read_text(), "the web config reload fails")
            texts["title"] = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
            texts["name"] = Path(f"/proc/{process.pid}/comm").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
    texts["log"] = log.read_text()
    for file in tmp_path.glob("state.db*"):
        texts[file.name] = file.read_bytes().decode("utf-8", "replace")

    assert "chatapp_phone_number_info" in texts["/metrics 0"]
    assert 'inbound_callback="both"' in texts["/metrics 4"]
    assert "15551058756" in "".join(text for name, text in texts.items() if name.startswith("state.db"))
    assert "level=debug" in texts["log"] or "level=warning" in texts["log"]
    assert "<secret>" in texts["log"]
    assert {name: secrets_in(text) for name, text in texts.items() if secrets_in(text)} == {}
    assert hashed not in "".join(texts.values())


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_no_command_prints_a_secret(tmp_path: Path) -> None:
    api = HostileApi(scenario())
    with serving(api):
        file = write_config(tmp_path, api)
        for fault in FAULTS:
            api.fault = fault
            for command in (["check"], ["poll"], ["poll", "--output", "json"]):
                result = subprocess.run(
                    [sys.executable, "-m", "exporter", *command, "--config.file", str(file)],
                    env={**os.environ, **ENVIRON},
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert secrets_in(result.stdout + result.stderr) == []
                assert result.returncode in (0, 1)
                assert "Traceback" not in result.stderr


def test_the_traceback_of_a_bug_contains_no_secret(tmp_path: Path) -> None:
    """The bug is in the code that signs requests with the secret."""
    script = tmp_path / "main.py"
    script.write_text(
        "import exporter.sources.cams.source as source\n"
        "def broken(*arguments, **options): raise ZeroDivisionError('bug')\n"
        "source.encode_request = broken\n"
        "from exporter.cli import main\n"
        "main()\n"
    )
    port, log = free_port(), tmp_path / "log"
    api = HostileApi(scenario())
    with serving(api):
        file = write_config(tmp_path, api)
        command = [sys.executable, str(script), "--config.file", str(file), "--log.level", "debug"]
        with running(*command, "--web.listen-address", f"127.0.0.1:{port}", log=log, **ENVIRON):
            wait_until(serving_probe(f"http://127.0.0.1:{port}/-/healthy"), "the exporter responds")
            wait_until(lambda: "ZeroDivisionError" in log.read_text(), "the bug is logged")

    assert "poll failed because of a bug, please report it" in log.read_text()
    assert secrets_in(log.read_text()) == []
