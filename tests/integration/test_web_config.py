"""Basic auth, TLS and the web configuration file in the format of the exporter-toolkit."""

import asyncio
import base64
import os
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import bcrypt
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from empty_view import EmptyView, send_request
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from virtual_time import VirtualClock, run, virtual_loop
from world import World, scenario

from exporter.clock import SystemClock
from exporter.config.problems import ConfigError
from exporter.runtime.reload import Reloader, StaticLoader
from exporter.runtime.view import View
from exporter.web.passwords import PasswordVerifier, TooManyPending, matches
from exporter.web.routes import create_app
from exporter.web.server import bind, serving, url_of
from exporter.web.web_config import WebConfigFile

PASSWORD = "correct horse: battery"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
PAGES = ("/", "/space", "/api/v1/phone-numbers", "/api/v1/spaces")
PATHS = (*PAGES, "/metrics", "/-/healthy", "/-/ready", "/-/config", "/nothing")


def write_web_config(directory: Path, text: str) -> Path:
    path = directory / "web.yml"
    path.write_text(text)
    return path


def load(directory: Path, text: str) -> WebConfigFile:
    return WebConfigFile(write_web_config(directory, text), SystemClock())


def error_message(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(directory, text)
    return str(error.value).replace(f"{directory}/", "")


def get(path: str, config: WebConfigFile | None, method: str = "GET", **headers: str) -> httpx.Response:
    return send_request(
        create_app(EmptyView(), authenticate=config.authenticate if config else None), path, method, **headers
    )


def basic_auth(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


NO_USERS = "expected at least one user, found none; removing all users requires a restart"


@pytest.mark.parametrize("path", PATHS)
def test_every_path_requires_authentication(tmp_path: Path, path: str) -> None:
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    denied = get(path, config)

    assert (denied.status_code, denied.headers["www-authenticate"], denied.text) == (401, "Basic", "Unauthorized\n")
    assert get(path, config, authorization=basic_auth("prometheus", PASSWORD)).status_code == (
        404 if path in ("/nothing", "/space") else 200
    )


@pytest.mark.parametrize(
    "authorization",
    [
        basic_auth("prometheus", "wrong"),
        basic_auth("unknown", PASSWORD),
        basic_auth("", ""),
        basic_auth("prometheus", ""),
        basic_auth("prometheus", PASSWORD + "x"),
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        "Basic " + base64.b64encode(b"prometheus").decode(),
        f"Bearer {PASSWORD}",
        basic_auth("prometheus", "x" * 500),
        basic_auth("prometheus", "a\0b"),
    ],
)
def test_invalid_credentials_are_rejected(tmp_path: Path, authorization: str) -> None:
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")

    assert get("/metrics", config, authorization=authorization).status_code == 401


@pytest.mark.parametrize("prefix", ["2a", "2b", "2y"])
def test_all_bcrypt_prefixes_are_accepted(tmp_path: Path, prefix: str) -> None:
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {HASH.replace('$2b$', f'${prefix}$')}}}")

    assert get("/metrics", config, authorization=basic_auth("prometheus", PASSWORD)).status_code == 200
    assert get("/metrics", config, authorization=basic_auth("prometheus", "wrong")).status_code == 401


def test_without_users_no_authentication_is_required(tmp_path: Path) -> None:
    assert get("/metrics", load(tmp_path, "{}")).status_code == 200


def reload_if_changed(config: WebConfigFile) -> bool:
    """Do what the exporter does every 10 seconds."""
    return asyncio.run(config.reload_if_changed())


def test_a_changed_file_is_applied_and_an_invalid_file_changes_nothing(tmp_path: Path) -> None:
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    credentials = {"authorization": basic_auth("prometheus", PASSWORD)}
    assert get("/metrics", config, **credentials).status_code == 200

    with capture_logs() as logs:
        write_web_config(tmp_path, "basic_auth_users: {prometheus: not-a-hash}")
        assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]
        assert get("/metrics", config, **credentials).status_code == 200
        assert get("/metrics", config).status_code == 401
    assert [line["event"] for line in logs] == ["web config reload failed, keeping the current configuration"]
    assert "not-a-hash" not in str(logs)

    write_web_config(tmp_path, f"basic_auth_users: {{grafana: {HASH}}}")
    with capture_logs() as logs:
        assert [reload_if_changed(config), reload_if_changed(config)] == [True, True]
    assert [line["event"] for line in logs] == ["web config reloaded"]
    assert get("/metrics", config, **credentials).status_code == 401
    assert get("/metrics", config, authorization=basic_auth("grafana", PASSWORD)).status_code == 200


@contextmanager
def opened_files(directory: Path) -> Iterator[list[tuple[str, int]]]:
    """Record the files of the directory that are opened in this context, each with the id of the thread."""
    opened: list[tuple[str, int]] = []
    active = True

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and active and str(arguments[0]).startswith(str(directory)):
            opened.append((Path(arguments[0]).name, threading.get_ident()))

    sys.addaudithook(record)  # an audit hook cannot be removed
    try:
        yield opened
    finally:
        active = False


def test_an_invalid_file_is_read_once_per_change_and_never_on_the_event_loop(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    invalid_texts = (
        TLS + "\nbasic_auth_users: {a: not-a-hash}",
        "basic_auth_users: {",
        TLS.replace("key.pem", "cert.pem"),
        TLS.replace("cert.pem", "ca.pem"),
        TLS.replace("}", ", min_version: TLS13}"),
    )
    for text in invalid_texts:
        write_web_config(tmp_path, text)
        with capture_logs(), opened_files(tmp_path) as first:
            assert not reload_if_changed(config)
        with capture_logs() as logs, opened_files(tmp_path) as later:
            assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]
        assert "web.yml" in [name for name, _ in first]
        assert threading.get_ident() not in [thread for _, thread in first]
        assert later == []
        assert logs == []

    write_web_config(tmp_path, TLS)
    assert reload_if_changed(config)


def test_a_key_file_named_in_an_invalid_web_config_is_checked_for_changes(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    (tmp_path / "other.pem").write_text("half a key")
    write_web_config(tmp_path, TLS.replace("key.pem", "other.pem"))
    with capture_logs():
        assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]

    (tmp_path / "other.pem").write_bytes((tmp_path / "key.pem").read_bytes())

    assert reload_if_changed(config)


def test_a_read_error_is_retried_even_if_the_file_has_not_changed(tmp_path: Path) -> None:
    config = load(tmp_path, "basic_auth_users: {}")
    write_web_config(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs(), asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no file can be opened
        try:
            assert not runner.run(config.reload_if_changed())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert runner.run(config.reload_if_changed())


def test_a_web_config_file_that_is_a_fifo_is_an_error_and_is_not_opened(tmp_path: Path) -> None:
    path = write_web_config(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    config = WebConfigFile(path, SystemClock())
    path.unlink()
    os.mkfifo(path)

    with capture_logs() as logs:
        assert not asyncio.run(config.reload_if_changed())

    assert [line["problems"] for line in logs] == [f"{path}: expected a regular file, found a FIFO"]
    with pytest.raises(ConfigError, match="found a FIFO"):
        WebConfigFile(path, SystemClock())


def test_a_certificate_file_that_is_a_fifo_is_an_error_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cert")

    assert error_message(tmp_path, "tls_server_config: {cert_file: cert, key_file: cert}") == (
        "web.yml:1: tls_server_config.cert_file: expected a regular file, found a FIFO"
    )


def test_after_a_read_timeout_the_reload_fails_until_the_file_can_be_read(tmp_path: Path) -> None:
    path = write_web_config(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    config = WebConfigFile(path, SystemClock())

    async def main() -> list[object]:
        loop = virtual_loop()
        loop.hangs = lambda _: True
        path.write_text(f"basic_auth_users: {{another: {HASH}}}")
        results: list[object] = [await config.reload_if_changed(), loop.time(), await config.reload_if_changed()]
        loop.release()
        return [*results, await config.reload_if_changed()]

    with capture_logs() as logs:
        assert run(main()) == [False, 60.0, False, True]
    assert [line["event"] for line in logs] == [
        "web config reload failed, keeping the current configuration",
        "web config reloaded",
    ]
    assert get("/", config, authorization=basic_auth("another", PASSWORD)).status_code == 200


def test_a_verified_password_is_cached_for_five_minutes_after_its_last_use() -> None:
    verified: list[str] = []

    def record_and_match(password: str, hashed: str) -> bool:
        verified.append(password)
        return matches(password, hashed)

    async def main() -> list[int]:
        verifier, counts, users = PasswordVerifier(VirtualClock(), record_and_match), [], {"prometheus": HASH}
        for seconds in (0, 200, 200, 200, 301):
            await asyncio.sleep(seconds)
            assert await verifier.verify(users, "prometheus", PASSWORD)
            counts.append(len(verified))
        for password in ("wrong", "wrong"):
            assert not await verifier.verify(users, "prometheus", password)
            counts.append(len(verified))
        assert not await verifier.verify(users, "unknown", "x")
        return [*counts, len(verified)]

    # an unknown user name is verified like a known user name, and failures are not cached
    assert run(main()) == [1, 1, 1, 1, 2, 3, 4, 5]


def test_verifying_a_password_does_not_block_the_event_loop() -> None:
    slow = bcrypt.hashpw(b"x", bcrypt.gensalt(12)).decode()

    async def main() -> int:
        verifier, iterations = PasswordVerifier(SystemClock()), 0
        verifying = asyncio.create_task(verifier.verify({"a": slow}, "a", "wrong"))
        while not verifying.done():
            iterations += 1
            await asyncio.sleep(0)
        return iterations

    assert asyncio.run(main()) > 50


def test_pending_verifications_are_limited_and_a_cached_password_does_not_wait() -> None:
    async def main() -> tuple[int, int, bool]:
        verifier = PasswordVerifier(SystemClock())
        assert await verifier.verify({"a": HASH}, "a", PASSWORD)
        guesses = [asyncio.create_task(verifier.verify({"a": HASH}, f"user {n}", "x")) for n in range(500)]
        await asyncio.sleep(0)
        rejected = sum(guess.done() for guess in guesses)
        accepted = await verifier.verify({"a": HASH}, "a", PASSWORD)
        still_pending = sum(not guess.done() for guess in guesses)
        results = await asyncio.gather(*guesses, return_exceptions=True)
        assert still_pending >= 48
        return rejected, sum(isinstance(result, TooManyPending) for result in results), accepted

    assert asyncio.run(main()) == (450, 450, True)


def test_too_many_pending_verifications_are_a_503_and_not_a_401() -> None:
    async def too_many(user: str, password: str) -> bool:
        raise TooManyPending

    response = send_request(
        create_app(EmptyView(), authenticate=too_many), "/metrics", authorization=basic_auth("prometheus", PASSWORD)
    )

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_request_without_credentials_runs_no_bcrypt(tmp_path: Path) -> None:
    expensive = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode().replace("$04$", "$19$")  # takes minutes
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {expensive}}}")

    for authorization in ("", "Basic", "Basic !!!", "Bearer x"):
        assert get("/metrics", config, authorization=authorization).status_code == 401


def test_an_unknown_user_name_is_verified_at_the_highest_cost() -> None:
    costs: list[str] = []

    def record_cost(password: str, hashed: str) -> bool:
        costs.append(hashed[4:6])
        return False

    users = {"a": HASH, "b": HASH.replace("$04$", "$12$"), "c": HASH.replace("$04$", "$10$")}
    run(PasswordVerifier(VirtualClock(), record_cost).verify(users, "unknown", "x"))

    assert costs == ["12"]


def test_a_wrong_password_costs_the_same_for_known_and_unknown_users() -> None:
    rounds: list[int] = []

    def record_and_match(password: str, hashed: str) -> bool:
        rounds.append(2 ** int(hashed[4:6]))
        return matches(password, hashed.replace(hashed[3:7], "$04$"))

    users = {"cheap": HASH, "expensive": HASH.replace("$04$", "$12$"), "medium": HASH.replace("$04$", "$10$")}

    async def main() -> dict[str, int]:
        verifier, cost = PasswordVerifier(VirtualClock(), record_and_match), {}
        for user in ("unknown", *users):
            rounds.clear()
            assert not await verifier.verify(users, user, "wrong")
            cost[user] = sum(rounds)
        assert await verifier.verify(users, "cheap", PASSWORD)
        return cost

    assert run(main()) == dict.fromkeys(("unknown", *users), 2**12)


@pytest.mark.parametrize("user", ["unknown", "prometheus"])
def test_a_flood_of_requests_does_not_reveal_which_users_exist(user: str) -> None:
    release, users = threading.Event(), {"prometheus": HASH, "grafana": HASH}

    def verify_when_released(password: str, hashed: str) -> bool:
        assert release.wait(30)
        return matches(password, hashed)

    async def main() -> tuple[set[int], set[int]]:
        verifier = PasswordVerifier(SystemClock(), verify_when_released)

        async def authenticate(user: str, password: str) -> bool:
            return await verifier.verify(users, user, password)

        transport = httpx.ASGITransport(create_app(EmptyView(), authenticate=authenticate))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:

            async def status(name: str, password: str) -> int:
                return (await http.get("/-/healthy", headers={"authorization": basic_auth(name, password)})).status_code

            flooding = [asyncio.create_task(status(user, f"x{n}")) for n in range(200)]
            await asyncio.wait(flooding, return_when=asyncio.FIRST_COMPLETED)
            try:
                async with asyncio.timeout(10):
                    names = ("unknown", "prometheus", "grafana")
                    during_flood = await asyncio.gather(*(status(name, "wrong") for name in names))
            finally:
                release.set()
            await asyncio.gather(*flooding)
            after_flood = [await status(name, "wrong") for name in names]
            return set(during_flood), set(after_flood)

    assert asyncio.run(main()) == ({503}, {401})


@pytest.mark.parametrize("users_at_start", [True, False])
def test_a_partly_written_file_does_not_disable_authentication(tmp_path: Path, users_at_start: bool) -> None:
    users = f"basic_auth_users: {{prometheus: {HASH}}}"
    config = load(tmp_path, users if users_at_start else "{}")
    write_web_config(tmp_path, users)
    reload_if_changed(config)
    assert get("/metrics", config).status_code == 401
    write_web_config(tmp_path, "{}")

    with capture_logs() as logs:
        assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]
        assert get("/metrics", config).status_code == 401
    (line,) = logs
    assert line["problems"] == f"{tmp_path}/web.yml: basic_auth_users: {NO_USERS}"


def test_a_partly_written_file_does_not_disable_client_certificates(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    partial = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
    config = load(tmp_path, partial + "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n")
    write_web_config(tmp_path, partial)

    with capture_logs() as logs, listening(config) as port:
        assert not reload_if_changed(config)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://localhost:{port}/-/healthy", verify=client_context(ca), trust_env=False)
    assert REQUIRES_A_RESTART in str(logs)


def test_web_config_errors_set_the_reload_metric_to_0(tmp_path: Path) -> None:
    async def main() -> list[list[str]]:
        world, config = World(scenario()), load(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
        reloader = Reloader(
            StaticLoader(world.settings),
            world.exporter.service,
            world.exporter.reloads,
            world.clock,
            config.reload_if_changed,
        )
        samples = []
        for text in ("basic_auth_users: {prometheus: not-a-hash}", f"basic_auth_users: {{prometheus: {HASH}}}"):
            write_web_config(tmp_path, text)
            await reloader.follow_once()
            samples.append(world.samples("chatapp_exporter_config_last_reload_successful"))
        await world.exporter.stop()
        return samples

    (failed,), (successful,) = run(main())

    assert failed == "chatapp_exporter_config_last_reload_successful 0.0"
    assert successful == "chatapp_exporter_config_last_reload_successful 1.0"


def test_the_old_password_is_rejected_after_it_was_changed_in_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    assert get("/metrics", config, authorization=basic_auth("prometheus", PASSWORD)).status_code == 200

    changed = bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode()
    write_web_config(tmp_path, f"basic_auth_users: {{prometheus: {changed}}}")
    assert reload_if_changed(config)

    assert get("/metrics", config, authorization=basic_auth("prometheus", PASSWORD)).status_code == 401
    assert get("/metrics", config, authorization=basic_auth("prometheus", "another")).status_code == 200


def test_an_exception_in_a_page_is_only_logged() -> None:
    class Broken(EmptyView):
        def redacted_config(self) -> str:
            raise ZeroDivisionError("injected")

    with capture_logs() as logs:
        response = send_request(create_app(Broken()), "/-/config")

    assert (response.status_code, response.text) == (500, "Internal error\n")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert [line["event"] for line in logs] == ["request failed because of a bug, please report it"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("basic_auth_user: {}", "web.yml:1: basic_auth_user: unknown key; did you mean basic_auth_users?"),
        (
            "tls_server_config: {cert_file: c, key_file: k, cipher_suites: []}",
            "web.yml:1: tls_server_config.cipher_suites: unknown key",
        ),
        (
            "tls_server_config: {cert_file: c}",
            "web.yml:1: tls_server_config.key_file: required key is missing",
        ),
        (
            "basic_auth_users: {alice: $2b$10$" + "z" * 53 + "}",  # bcrypt does not accept this salt
            "web.yml:1: basic_auth_users.alice: expected a bcrypt hash of the password (htpasswd -nBC 10 NAME creates"
            " one), found text (not shown)",
        ),
        (
            "basic_auth_users: {alice: hunter2}",
            "web.yml:1: basic_auth_users.alice: expected a bcrypt hash of the password (htpasswd -nBC 10 NAME creates"
            " one), found text (not shown)",
        ),
        (
            "tls_server_config: {cert_file: c, key_file: k, min_version: TLS10}",
            "web.yml:1: tls_server_config.min_version: expected 'TLS12' or 'TLS13', found text (not shown)",
        ),
        (
            "tls_server_config: {cert_file: c, key_file: k, client_auth_type: RequestClientCert}",
            "web.yml:1: tls_server_config.client_auth_type: expected 'NoClientCert', 'VerifyClientCertIfGiven' or"
            " 'RequireAndVerifyClientCert', found 'RequestClientCert'",
        ),
        (
            "tls_server_config: {cert_file: c, key_file: k, client_ca_file: ca}",
            "web.yml:1: tls_server_config: expected both client_ca_file and a client_auth_type that verifies"
            " certificates, found only one",
        ),
        (
            "tls_server_config: {cert_file: c, key_file: k}",
            "web.yml:1: tls_server_config.cert_file: cannot read the file: No such file or directory",
        ),
    ],
)
def test_each_error_is_reported_with_its_line_and_key(tmp_path: Path, text: str, problem: str) -> None:
    assert error_message(tmp_path, text) == problem


@given(st.text(max_size=40) | st.builds("basic_auth_users: {{a: '{}'}}".format, st.text(max_size=70)))
def test_any_file_content_is_valid_or_a_config_error(text: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "web.yml"
        path.write_bytes(text.encode("utf-8", "replace"))
        try:
            problems: tuple[object, ...] = ("none",) if WebConfigFile(path, SystemClock()) else ()
        except ConfigError as error:
            problems = error.problems
    assert problems


# ---- TLS, over real sockets


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issue(ca: trustme.CA, directory: Path, key_type: trustme.KeyType = trustme.KeyType.ECDSA) -> str:
    """Write a server certificate, its key and the CA to files. Return the serial number of the certificate."""
    cert = ca.issue_cert("localhost", key_type=key_type)
    cert.private_key_pem.write_to_path(str(directory / "key.pem"))
    cert.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    return serial_of(directory / "cert.pem")


def serial_of(path: Path) -> str:
    return str(ssl._ssl._test_decode_cert(str(path))["serialNumber"])  # type: ignore[attr-defined]


REQUIRES_A_RESTART = (
    "tls_server_config: expected no TLS change except cert_file and key_file; other changes require a restart"
)
TLS = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}"
TLS_WITH_CLIENT_CA = (
    "tls_server_config: {{cert_file: cert.pem, key_file: key.pem, client_ca_file: ca.pem, client_auth_type: {}}}"
)


@contextmanager
def listening(config: WebConfigFile, view: View | None = None) -> Iterator[str]:
    """Run the exporter's server in a thread with its own event loop. Yields the port."""
    listener, stop, loop = bind("127.0.0.1:0"), asyncio.Event(), asyncio.new_event_loop()

    async def main() -> None:
        async with serving(create_app(view or EmptyView(), authenticate=config.authenticate), listener, tls=config.tls):
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        yield url_of(listener).rsplit(":", 1)[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def client_context(ca: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if certificate:
        certificate.configure_cert(context)
    return context


def status(port: str, context: ssl.SSLContext) -> int:
    return httpx.get(f"https://localhost:{port}/-/healthy", verify=context, trust_env=False).status_code


def test_a_server_with_a_certificate_accepts_only_https(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    with listening(load(tmp_path, TLS)) as port:
        assert status(port, client_context(ca)) == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/-/healthy", trust_env=False)


def served_serial(port: str, ca: trustme.CA) -> str:
    """Return the serial number of the certificate of a new connection."""
    with connect(port, client_context(ca)) as secure:
        return str((secure.getpeercert() or {})["serialNumber"])


def test_new_connections_use_a_renewed_certificate_but_never_an_invalid_file(ca: trustme.CA, tmp_path: Path) -> None:
    first = issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    with listening(config) as port:
        assert served_serial(port, ca) == first
        second = issue(ca, tmp_path)
        assert reload_if_changed(config)
        assert served_serial(port, ca) == second != first
        (tmp_path / "cert.pem").write_text("half a certif")
        assert not reload_if_changed(config)
        assert served_serial(port, ca) == second
        assert served_serial(port, ca) == second
        third = issue(ca, tmp_path)
        assert reload_if_changed(config)
        assert served_serial(port, ca) == third


def test_a_renewed_certificate_is_not_used_before_its_key_is_renewed(ca: trustme.CA, tmp_path: Path) -> None:
    first = issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    with listening(config) as port:
        (renewed := tmp_path / "renewed").mkdir()
        second = issue(ca, renewed)
        (renewed / "cert.pem").rename(tmp_path / "cert.pem")
        with capture_logs() as logs:
            assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]
        assert [line["event"] for line in logs] == ["web config reload failed, keeping the current configuration"]
        assert served_serial(port, ca) == first
        (renewed / "key.pem").rename(tmp_path / "key.pem")
        assert reload_if_changed(config)
        assert served_serial(port, ca) == second


@pytest.mark.parametrize("key_types", [("ECDSA", "RSA"), ("RSA", "ECDSA")])
def test_a_certificate_with_another_key_type_replaces_the_old_certificate(
    ca: trustme.CA, tmp_path: Path, key_types: tuple[str, str]
) -> None:
    before, after = key_types
    first = issue(ca, tmp_path, key_type=trustme.KeyType[before])
    config = load(tmp_path, TLS)
    with listening(config) as port:
        assert served_serial(port, ca) == first
        second = issue(ca, tmp_path, key_type=trustme.KeyType[after])
        assert reload_if_changed(config)
        assert served_serial(port, ca) == second


def test_a_missing_certificate_file_is_applied_when_it_is_created(ca: trustme.CA, tmp_path: Path) -> None:
    first = issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    with listening(config) as port:
        (missing := tmp_path / "missing").mkdir()
        write_web_config(tmp_path, TLS.replace("cert.pem", "missing/cert.pem").replace("key.pem", "missing/key.pem"))
        assert not reload_if_changed(config)
        assert served_serial(port, ca) == first
        second = issue(ca, missing)
        assert reload_if_changed(config)
        assert served_serial(port, ca) == second


def test_clients_without_a_valid_client_certificate_are_rejected(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    other_ca = trustme.CA()
    with listening(load(tmp_path, TLS_WITH_CLIENT_CA.format("RequireAndVerifyClientCert"))) as port:
        assert status(port, client_context(ca, ca.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client_context(ca))
        with pytest.raises(httpx.TransportError):
            status(port, client_context(ca, other_ca.issue_cert("prometheus")))


def test_an_optional_client_certificate_must_be_valid(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    other_ca = trustme.CA()
    config = load(tmp_path, TLS_WITH_CLIENT_CA.format("VerifyClientCertIfGiven"))
    with listening(config) as port:
        assert status(port, client_context(ca)) == 200
        assert status(port, client_context(ca, ca.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client_context(ca, other_ca.issue_cert("prometheus")))

        other_ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        assert reload_if_changed(config)
        assert status(port, client_context(ca, other_ca.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client_context(ca, ca.issue_cert("prometheus")))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_cannot_resume_a_session_after_its_ca_is_removed(
    ca: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    issue(ca, tmp_path)
    config = load(tmp_path, TLS_WITH_CLIENT_CA.format("RequireAndVerifyClientCert"))
    context = client_context(ca, ca.issue_cert("prometheus"))
    context.maximum_version = version
    # a session can be resumed while its connection is open
    with listening(config) as port, connect(port, context) as first:
        assert status_line(first) == b"HTTP/1.1 200"
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        assert reload_if_changed(config)
        assert resume_session(port, context, first.session) == b""


def connect(port: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost", session=session)


def status_line(secure: ssl.SSLSocket) -> bytes:
    """Return the status line of a response. TLS 1.3 sends session tickets before the response."""
    secure.sendall(b"GET /-/healthy HTTP/1.1\r\nhost: x\r\n\r\n")
    return secure.recv(12)


def resume_session(port: str, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bytes:
    """Resume the session and return the status line of the response; b"" if the server rejects the session."""
    try:
        with connect(port, context, session) as secure:
            return status_line(secure)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_an_encrypted_key_is_an_error_without_a_password_prompt(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, traditional, secret))

    assert error_message(tmp_path, TLS).endswith(
        "expected a certificate and its key, in PEM, found: a key with a password"
    )


def test_a_tls_version_below_the_minimum_is_rejected(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    tls_1_2 = client_context(ca)
    tls_1_2.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(load(tmp_path, TLS.replace("}", ", min_version: TLS13}"))) as port:
        with pytest.raises(httpx.TransportError):
            status(port, tls_1_2)
        assert status(port, client_context(ca)) == 200
    with listening(load(tmp_path, TLS)) as port:
        assert status(port, tls_1_2) == 200


@pytest.mark.parametrize(
    "changed",
    [
        "{}",
        TLS.replace("}", ", min_version: TLS13}"),
        TLS_WITH_CLIENT_CA.format("RequireAndVerifyClientCert"),
    ],
)
def test_tls_settings_cannot_change_without_a_restart(ca: trustme.CA, tmp_path: Path, changed: str) -> None:
    issue(ca, tmp_path)
    config = load(tmp_path, TLS)
    tls_1_2 = client_context(ca)
    tls_1_2.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(config) as port:
        write_web_config(tmp_path, changed)
        with capture_logs() as logs:
            assert [reload_if_changed(config), reload_if_changed(config)] == [False, False]
            assert status(port, tls_1_2) == 200
        (line,) = logs
        assert REQUIRES_A_RESTART in line["problems"]
        write_web_config(tmp_path, TLS)
        assert reload_if_changed(config)


# ---- browsers and hostile clients


def test_the_server_keeps_serving_after_malformed_requests(tmp_path: Path) -> None:
    random = Random(1)
    pieces = (
        *(
            b"GET ",
            b"POST ",
            b"/metrics",
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
            b"host: x\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"\0",
        ),
        *(b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"content-length: -1\r\n", b"5\r\nhello\r\n"),
        *(
            b"expect: 100-continue\r\n",
            b"upgrade: websocket\r\nconnection: upgrade\r\n",
            b"authorization: Basic YTpi\r\n",
        ),
        *(b"authorization: Basic \xff\r\n", b"x: " + b"y" * 20_000, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 3),
    )
    with listening(load(tmp_path, f"basic_auth_users: {{a: {HASH}}}")) as port:
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection, suppress(OSError):
                connection.sendall(b"".join(random.choices(pieces, k=random.randint(1, 9))))
        response = httpx.get(f"http://127.0.0.1:{port}/-/healthy", auth=("a", PASSWORD), trust_env=False)

    assert response.status_code == 200


def test_clients_that_do_not_read_neither_fill_the_memory_nor_block_others(tmp_path: Path) -> None:
    parts = [b"x" * 65_536] * 1024

    class Large(EmptyView):
        def exposition(self, **_: Any) -> Iterator[bytes]:
            yield from parts

    with listening(load(tmp_path, "{}"), Large()) as port, ExitStack() as sockets:
        before = resident_bytes()
        for _ in range(20):
            connection = sockets.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=10))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept-encoding: identity\r\n\r\n")
        url, headers = f"http://127.0.0.1:{port}/metrics", {"accept-encoding": "identity"}
        with httpx.stream("GET", url, headers=headers, trust_env=False, timeout=30) as response:
            assert sum(map(len, response.iter_raw())) == 64 * 1024 * 1024

        assert resident_bytes() - before < 64 * 1024 * 1024


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("headers", [b"content-length: 1000000000", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("request_line", [b"POST /-/reload", b"POST /metrics", b"GET /metrics", b"GET /"])
def test_a_request_body_of_1_gb_is_answered_before_it_arrives_and_not_stored(
    tmp_path: Path, request_line: bytes, headers: bytes
) -> None:
    block = b"x" * 1_000_000
    part = block if b"length" in headers else b"f4240\r\n" + block + b"\r\n"
    with listening(load(tmp_path, "{}")) as port:
        before = resident_bytes()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as connection:
            connection.sendall(request_line + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n")
            assert connection.recv(9) == b"HTTP/1.1 "  # before the body is sent
            for _ in range(10):
                for _ in range(100):
                    connection.sendall(part)
                assert httpx.get(f"http://127.0.0.1:{port}/-/healthy", trust_env=False, timeout=2).status_code == 200
                assert resident_bytes() - before < 16_000_000


def test_security_headers_forbid_scripts_resources_and_frames() -> None:
    page = get("/", None)

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith("; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
    for path in PATHS:
        headers = get(path, None).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-store"


def test_an_exception_during_a_response_is_logged_and_closes_the_connection(tmp_path: Path) -> None:
    class Broken(EmptyView):
        def exposition(self, **_: Any) -> Iterator[bytes]:
            yield b"chatapp_space_up 1\n"
            raise ZeroDivisionError("injected")

    with capture_logs() as logs, listening(load(tmp_path, "{}"), Broken()) as port:
        for encoding in ("identity", "gzip"):
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"accept-encoding": encoding}, trust_env=False)
    assert [line["event"] for line in logs] == ["request failed because of a bug, please report it"] * 2


def test_reload_requires_a_flag_and_the_post_method() -> None:
    forbidden = get("/-/reload", None, method="POST")

    assert (forbidden.status_code, forbidden.text) == (
        403,
        "Lifecycle API is not enabled: start with --web.enable-lifecycle\n",
    )
    by_get = get("/-/reload", None)
    assert (by_get.status_code, set(by_get.headers["allow"].split(", "))) == (405, {"POST", "PUT"})
