"""Who may ask: logins, certificates, and what the exporter-toolkit's file says of them."""

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


def written(directory: Path, text: str) -> Path:
    path = directory / "web.yml"
    path.write_text(text)
    return path


def access(directory: Path, text: str) -> WebConfigFile:
    return WebConfigFile(written(directory, text), SystemClock())


def message(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        access(directory, text)
    return str(refused.value).replace(f"{directory}/", "")


def get(path: str, of: WebConfigFile | None, method: str = "GET", **headers: str) -> httpx.Response:
    return send_request(create_app(EmptyView(), authenticate=of.authenticate if of else None), path, method, **headers)


def login(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


NO_USERS = "expected at least one user, found none; removing all users requires a restart"


@pytest.mark.parametrize("path", PATHS)
def test_everything_is_behind_the_login(tmp_path: Path, path: str) -> None:
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    refused = get(path, of)

    assert (refused.status_code, refused.headers["www-authenticate"], refused.text) == (401, "Basic", "Unauthorized\n")
    assert get(path, of, authorization=login("prometheus", PASSWORD)).status_code == (
        404 if path in ("/nothing", "/space") else 200
    )


@pytest.mark.parametrize(
    "authorization",
    [
        login("prometheus", "wrong"),
        login("nobody", PASSWORD),
        login("", ""),
        login("prometheus", ""),
        login("prometheus", PASSWORD + "x"),
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        "Basic " + base64.b64encode(b"prometheus").decode(),
        f"Bearer {PASSWORD}",
        login("prometheus", "x" * 500),
        login("prometheus", "a\0b"),
    ],
)
def test_nothing_else_opens_it(tmp_path: Path, authorization: str) -> None:
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")

    assert get("/metrics", of, authorization=authorization).status_code == 401


@pytest.mark.parametrize("kind", ["2a", "2b", "2y"])
def test_every_kind_of_hash_that_htpasswd_and_others_write_is_known(tmp_path: Path, kind: str) -> None:
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {HASH.replace('$2b$', f'${kind}$')}}}")

    assert get("/metrics", of, authorization=login("prometheus", PASSWORD)).status_code == 200
    assert get("/metrics", of, authorization=login("prometheus", "wrong")).status_code == 401


def test_without_users_no_login_is_asked_for(tmp_path: Path) -> None:
    assert get("/metrics", access(tmp_path, "{}")).status_code == 200


def follow(of: WebConfigFile) -> bool:
    """What a reload of the files does every ten seconds."""
    return asyncio.run(of.reload_if_changed())


def test_users_are_applied_when_the_file_changes_and_a_broken_file_keeps_the_last(tmp_path: Path) -> None:
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    asked = {"authorization": login("prometheus", PASSWORD)}
    assert get("/metrics", of, **asked).status_code == 200

    with capture_logs() as logs:
        written(tmp_path, "basic_auth_users: {prometheus: not-a-hash}")
        assert [follow(of), follow(of)] == [False, False]
        assert get("/metrics", of, **asked).status_code == 200
        assert get("/metrics", of).status_code == 401
    assert [line["event"] for line in logs] == ["web config reload failed, keeping the current configuration"]
    assert "not-a-hash" not in str(logs)

    written(tmp_path, f"basic_auth_users: {{grafana: {HASH}}}")
    with capture_logs() as logs:
        assert [follow(of), follow(of)] == [True, True]
    assert [line["event"] for line in logs] == ["web config reloaded"]
    assert get("/metrics", of, **asked).status_code == 401
    assert get("/metrics", of, authorization=login("grafana", PASSWORD)).status_code == 200


@contextmanager
def reading(directory: Path) -> Iterator[list[tuple[str, int]]]:
    """Which files of the directory are opened meanwhile, each with the thread that opens it."""
    seen: list[tuple[str, int]] = []
    looking = True

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and looking and str(arguments[0]).startswith(str(directory)):
            seen.append((Path(arguments[0]).name, threading.get_ident()))

    sys.addaudithook(look)  # it cannot be removed
    try:
        yield seen
    finally:
        looking = False


def test_a_broken_file_is_read_again_only_when_it_changes_and_never_on_the_event_loop(
    ca: trustme.CA, tmp_path: Path
) -> None:
    issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    broken = (
        TLS + "\nbasic_auth_users: {a: not-a-hash}",
        "basic_auth_users: {",
        TLS.replace("key.pem", "cert.pem"),
        TLS.replace("cert.pem", "ca.pem"),
        TLS.replace("}", ", min_version: TLS13}"),
    )
    for text in broken:
        written(tmp_path, text)
        with capture_logs(), reading(tmp_path) as first:
            assert not follow(of)
        with capture_logs() as logs, reading(tmp_path) as again:
            assert [follow(of), follow(of)] == [False, False]
        assert "web.yml" in [name for name, _ in first]
        assert threading.get_ident() not in [thread for _, thread in first]
        assert again == []
        assert logs == []

    written(tmp_path, TLS)
    assert follow(of)


def test_a_file_that_a_broken_one_names_is_followed(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    (tmp_path / "other.pem").write_text("half a key")
    written(tmp_path, TLS.replace("key.pem", "other.pem"))
    with capture_logs():
        assert [follow(of), follow(of)] == [False, False]

    (tmp_path / "other.pem").write_bytes((tmp_path / "key.pem").read_bytes())

    assert follow(of)


def test_a_file_that_could_not_be_read_is_tried_again_though_it_did_not_change(tmp_path: Path) -> None:
    of = access(tmp_path, "basic_auth_users: {}")
    written(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with capture_logs(), asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no file can be opened
        try:
            assert not runner.run(of.reload_if_changed())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert runner.run(of.reload_if_changed())


def test_a_web_configuration_that_is_or_becomes_a_fifo_is_an_error_and_not_opened(tmp_path: Path) -> None:
    path = written(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    of = WebConfigFile(path, SystemClock())
    path.unlink()
    os.mkfifo(path)

    with capture_logs() as logs:
        assert not asyncio.run(of.reload_if_changed())

    assert [line["problems"] for line in logs] == [f"{path}: expected a readable file, found: a FIFO"]
    with pytest.raises(ConfigError, match="found: a FIFO"):
        WebConfigFile(path, SystemClock())


def test_a_certificate_that_is_a_fifo_is_an_error_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cert")

    assert message(tmp_path, "tls_server_config: {cert_file: cert, key_file: cert}") == (
        "web.yml:1: tls_server_config.cert_file: expected a readable file, found: a FIFO"
    )


def test_files_that_do_not_answer_are_a_failure_until_they_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    of = WebConfigFile(path, SystemClock())

    async def main() -> list[object]:
        loop = virtual_loop()
        loop.hangs = lambda _: True
        path.write_text(f"basic_auth_users: {{another: {HASH}}}")
        seen: list[object] = [await of.reload_if_changed(), loop.time(), await of.reload_if_changed()]
        loop.release()
        return [*seen, await of.reload_if_changed()]

    with capture_logs() as logs:
        assert run(main()) == [False, 60.0, False, True]
    assert [line["event"] for line in logs] == [
        "web config reload failed, keeping the current configuration",
        "web config reloaded",
    ]
    assert get("/", of, authorization=login("another", PASSWORD)).status_code == 200


def test_a_success_is_remembered_for_five_minutes_after_its_last_use() -> None:
    verified: list[str] = []

    def counting(password: str, hashed: str) -> bool:
        verified.append(password)
        return matches(password, hashed)

    async def main() -> list[int]:
        logins, counts, users = PasswordVerifier(VirtualClock(), counting), [], {"prometheus": HASH}
        for pause in (0, 200, 200, 200, 301):
            await asyncio.sleep(pause)
            assert await logins.verify(users, "prometheus", PASSWORD)
            counts.append(len(verified))
        for password in ("wrong", "wrong"):
            assert not await logins.verify(users, "prometheus", password)
            counts.append(len(verified))
        assert not await logins.verify(users, "nobody", "x")
        return [*counts, len(verified)]

    # a name that is unknown is verified as any other, and a failure is never remembered
    assert run(main()) == [1, 1, 1, 1, 2, 3, 4, 5]


def test_the_event_loop_goes_on_while_passwords_are_verified() -> None:
    slow = bcrypt.hashpw(b"x", bcrypt.gensalt(12)).decode()

    async def main() -> int:
        logins, turns = PasswordVerifier(SystemClock()), 0
        verifying = asyncio.create_task(logins.verify({"a": slow}, "a", "wrong"))
        while not verifying.done():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(main()) > 50


def test_passwords_that_wait_are_limited_and_a_remembered_login_does_not_wait() -> None:
    async def main() -> tuple[int, int, bool]:
        logins = PasswordVerifier(SystemClock())
        assert await logins.verify({"a": HASH}, "a", PASSWORD)
        guesses = [asyncio.create_task(logins.verify({"a": HASH}, f"name {n}", "x")) for n in range(500)]
        await asyncio.sleep(0)
        turned_away = sum(guess.done() for guess in guesses)
        right = await logins.verify({"a": HASH}, "a", PASSWORD)
        still_waiting = sum(not guess.done() for guess in guesses)
        answers = await asyncio.gather(*guesses, return_exceptions=True)
        assert still_waiting >= 48
        return turned_away, sum(isinstance(answer, TooManyPending) for answer in answers), right

    assert asyncio.run(main()) == (450, 450, True)


def test_a_password_that_nobody_has_time_for_is_not_called_wrong() -> None:
    async def too_many(user: str, password: str) -> bool:
        raise TooManyPending

    answer = send_request(
        create_app(EmptyView(), authenticate=too_many), "/metrics", authorization=login("prometheus", PASSWORD)
    )

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_who_gives_no_login_costs_nothing(tmp_path: Path) -> None:
    costly = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode().replace("$04$", "$19$")  # minutes for each
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {costly}}}")

    for authorization in ("", "Basic", "Basic !!!", "Bearer x"):
        assert get("/metrics", of, authorization=authorization).status_code == 401


def test_an_unknown_name_takes_as_long_as_the_costliest_known_one() -> None:
    compared: list[str] = []

    def comparing(password: str, hashed: str) -> bool:
        compared.append(hashed[4:6])
        return False

    users = {"a": HASH, "b": HASH.replace("$04$", "$12$"), "c": HASH.replace("$04$", "$10$")}
    run(PasswordVerifier(VirtualClock(), comparing).verify(users, "nobody", "x"))

    assert compared == ["12"]


def test_a_wrong_password_costs_the_same_whether_or_not_the_name_exists() -> None:
    rounds: list[int] = []

    def counting(password: str, hashed: str) -> bool:
        rounds.append(2 ** int(hashed[4:6]))
        return matches(password, hashed.replace(hashed[3:7], "$04$"))

    users = {"cheap": HASH, "costly": HASH.replace("$04$", "$12$"), "other": HASH.replace("$04$", "$10$")}

    async def main() -> dict[str, int]:
        logins, cost = PasswordVerifier(VirtualClock(), counting), {}
        for name in ("nobody", *users):
            rounds.clear()
            assert not await logins.verify(users, name, "wrong")
            cost[name] = sum(rounds)
        assert await logins.verify(users, "cheap", PASSWORD)
        return cost

    assert run(main()) == dict.fromkeys(("nobody", *users), 2**12)


@pytest.mark.parametrize("flood", ["nobody", "prometheus"])
def test_a_flood_of_logins_is_answered_the_same_whether_or_not_the_names_exist(flood: str) -> None:
    release, users = threading.Event(), {"prometheus": HASH, "grafana": HASH}

    def when_released(password: str, hashed: str) -> bool:
        assert release.wait(30)
        return matches(password, hashed)

    async def main() -> tuple[set[int], set[int]]:
        logins = PasswordVerifier(SystemClock(), when_released)

        async def authenticate(user: str, password: str) -> bool:
            return await logins.verify(users, user, password)

        transport = httpx.ASGITransport(create_app(EmptyView(), authenticate=authenticate))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:

            async def status(name: str, password: str) -> int:
                return (await http.get("/-/healthy", headers={"authorization": login(name, password)})).status_code

            flooding = [asyncio.create_task(status(flood, f"x{n}")) for n in range(200)]
            await asyncio.wait(flooding, return_when=asyncio.FIRST_COMPLETED)
            try:
                async with asyncio.timeout(10):
                    names = ("nobody", "prometheus", "grafana")
                    asked = await asyncio.gather(*(status(name, "wrong") for name in names))
            finally:
                release.set()
            await asyncio.gather(*flooding)
            after = [await status(name, "wrong") for name in names]
            return set(asked), set(after)

    assert asyncio.run(main()) == ({503}, {401})


@pytest.mark.parametrize("from_the_start", [True, False])
def test_logins_are_not_turned_off_by_a_file_that_is_half_written(tmp_path: Path, from_the_start: bool) -> None:
    users = f"basic_auth_users: {{prometheus: {HASH}}}"
    of = access(tmp_path, users if from_the_start else "{}")
    written(tmp_path, users)
    follow(of)
    assert get("/metrics", of).status_code == 401
    written(tmp_path, "{}")

    with capture_logs() as logs:
        assert [follow(of), follow(of)] == [False, False]
        assert get("/metrics", of).status_code == 401
    (line,) = logs
    assert line["problems"] == f"{tmp_path}/web.yml: basic_auth_users: {NO_USERS}"


def test_certificates_of_clients_go_on_being_asked_for_when_a_file_is_half_written(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    half = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
    of = access(tmp_path, half + "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n")
    written(tmp_path, half)

    with capture_logs() as logs, listening(of) as port:
        assert not follow(of)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://localhost:{port}/-/healthy", verify=client(ca), trust_env=False)
    assert REQUIRES_A_RESTART in str(logs)


def test_a_web_configuration_with_errors_is_reported_by_the_metric_of_reloads(tmp_path: Path) -> None:
    async def main() -> list[list[str]]:
        world, of = World(scenario()), access(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
        reloader = Reloader(
            StaticLoader(world.settings),
            world.exporter.service,
            world.exporter.reloads,
            world.clock,
            of.reload_if_changed,
        )
        shown = []
        for text in ("basic_auth_users: {prometheus: not-a-hash}", f"basic_auth_users: {{prometheus: {HASH}}}"):
            written(tmp_path, text)
            await reloader.follow_once()
            shown.append(world.samples("chatapp_exporter_config_last_reload_successful"))
        await world.exporter.stop()
        return shown

    (failed,), (successful,) = run(main())

    assert failed == "chatapp_exporter_config_last_reload_successful 0.0"
    assert successful == "chatapp_exporter_config_last_reload_successful 1.0"


def test_a_password_that_was_changed_in_the_file_is_forgotten(tmp_path: Path) -> None:
    of = access(tmp_path, f"basic_auth_users: {{prometheus: {HASH}}}")
    assert get("/metrics", of, authorization=login("prometheus", PASSWORD)).status_code == 200

    changed = bcrypt.hashpw(b"another", bcrypt.gensalt(4)).decode()
    written(tmp_path, f"basic_auth_users: {{prometheus: {changed}}}")
    assert follow(of)

    assert get("/metrics", of, authorization=login("prometheus", PASSWORD)).status_code == 401
    assert get("/metrics", of, authorization=login("prometheus", "another")).status_code == 200


def test_a_bug_in_a_page_is_told_in_the_log_and_nowhere_else() -> None:
    class Broken(EmptyView):
        def redacted_config(self) -> str:
            raise ZeroDivisionError("planted")

    with capture_logs() as logs:
        answer = send_request(create_app(Broken()), "/-/config")

    assert (answer.status_code, answer.text) == (500, "Internal error\n")
    assert answer.headers["x-content-type-options"] == "nosniff"
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
            "basic_auth_users: {alice: $2b$10$" + "z" * 53 + "}",  # no salt that bcrypt would write
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
            "web.yml:1: tls_server_config.cert_file: expected a readable file, found: No such file or directory",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_told(tmp_path: Path, text: str, problem: str) -> None:
    assert message(tmp_path, text) == problem


@given(st.text(max_size=40) | st.builds("basic_auth_users: {{a: '{}'}}".format, st.text(max_size=70)))
def test_any_file_is_access_or_a_config_error(text: str) -> None:
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
    """A certificate for the server in its files; its serial number."""
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
TLS_WITH_CLIENTS = (
    "tls_server_config: {{cert_file: cert.pem, key_file: key.pem, client_ca_file: ca.pem, client_auth_type: {}}}"
)


@contextmanager
def listening(of: WebConfigFile, view: View | None = None) -> Iterator[str]:
    """The exporter's server, in a thread and loop of its own; its port."""
    listener, stop, loop = bind("127.0.0.1:0"), asyncio.Event(), asyncio.new_event_loop()

    async def main() -> None:
        async with serving(create_app(view or EmptyView(), authenticate=of.authenticate), listener, tls=of.tls):
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        yield url_of(listener).rsplit(":", 1)[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def client(ca: trustme.CA, identity: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    if identity:
        identity.configure_cert(context)
    return context


def status(port: str, context: ssl.SSLContext) -> int:
    return httpx.get(f"https://localhost:{port}/-/healthy", verify=context, trust_env=False).status_code


def test_with_a_certificate_it_speaks_tls_and_nothing_else(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    with listening(access(tmp_path, TLS)) as port:
        assert status(port, client(ca)) == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/-/healthy", trust_env=False)


def served(port: str, ca: trustme.CA) -> str:
    """The serial number of the certificate that a new connection gets."""
    with connect(port, client(ca)) as secure:
        return str((secure.getpeercert() or {})["serialNumber"])


def test_a_renewed_certificate_counts_for_the_next_connection_and_a_broken_one_never(
    ca: trustme.CA, tmp_path: Path
) -> None:
    first = issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    with listening(of) as port:
        assert served(port, ca) == first
        second = issue(ca, tmp_path)
        assert follow(of)
        assert served(port, ca) == second != first
        (tmp_path / "cert.pem").write_text("half a certif")
        assert not follow(of)
        assert served(port, ca) == second
        assert served(port, ca) == second
        third = issue(ca, tmp_path)
        assert follow(of)
        assert served(port, ca) == third


def test_a_certificate_without_its_key_changes_nothing_until_the_key_follows(ca: trustme.CA, tmp_path: Path) -> None:
    first = issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    with listening(of) as port:
        (renewed := tmp_path / "renewed").mkdir()
        second = issue(ca, renewed)
        (renewed / "cert.pem").rename(tmp_path / "cert.pem")
        with capture_logs() as logs:
            assert [follow(of), follow(of)] == [False, False]
        assert [line["event"] for line in logs] == ["web config reload failed, keeping the current configuration"]
        assert served(port, ca) == first
        (renewed / "key.pem").rename(tmp_path / "key.pem")
        assert follow(of)
        assert served(port, ca) == second


@pytest.mark.parametrize("kinds", [("ECDSA", "RSA"), ("RSA", "ECDSA")])
def test_a_certificate_of_another_kind_of_key_replaces_the_old_one(
    ca: trustme.CA, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    before, after = kinds
    first = issue(ca, tmp_path, key_type=trustme.KeyType[before])
    of = access(tmp_path, TLS)
    with listening(of) as port:
        assert served(port, ca) == first
        second = issue(ca, tmp_path, key_type=trustme.KeyType[after])
        assert follow(of)
        assert served(port, ca) == second


def test_a_file_that_is_named_before_it_is_there_is_applied_once_it_is(ca: trustme.CA, tmp_path: Path) -> None:
    first = issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    with listening(of) as port:
        (other := tmp_path / "other").mkdir()
        written(tmp_path, TLS.replace("cert.pem", "other/cert.pem").replace("key.pem", "other/key.pem"))
        assert not follow(of)
        assert served(port, ca) == first
        second = issue(ca, other)
        assert follow(of)
        assert served(port, ca) == second


def test_clients_need_the_certificate_that_is_asked_of_them(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    strangers = trustme.CA()
    with listening(access(tmp_path, TLS_WITH_CLIENTS.format("RequireAndVerifyClientCert"))) as port:
        assert status(port, client(ca, ca.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client(ca))
        with pytest.raises(httpx.TransportError):
            status(port, client(ca, strangers.issue_cert("prometheus")))


def test_a_certificate_that_need_not_be_given_must_be_right_all_the_same(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    strangers = trustme.CA()
    of = access(tmp_path, TLS_WITH_CLIENTS.format("VerifyClientCertIfGiven"))
    with listening(of) as port:
        assert status(port, client(ca)) == 200
        assert status(port, client(ca, ca.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client(ca, strangers.issue_cert("prometheus")))

        strangers.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        assert follow(of)
        assert status(port, client(ca, strangers.issue_cert("prometheus"))) == 200
        with pytest.raises(httpx.TransportError):
            status(port, client(ca, ca.issue_cert("prometheus")))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_whose_ca_is_removed_resumes_no_session(
    ca: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    issue(ca, tmp_path)
    of = access(tmp_path, TLS_WITH_CLIENTS.format("RequireAndVerifyClientCert"))
    context = client(ca, ca.issue_cert("prometheus"))
    context.maximum_version = version
    with listening(of) as port, connect(port, context) as first:  # its session can be resumed while it is open
        assert status_line(first) == b"HTTP/1.1 200"
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        assert follow(of)
        assert resumed(port, context, first.session) == b""


def connect(port: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost", session=session)


def status_line(secure: ssl.SSLSocket) -> bytes:
    """Of an answer, which TLS 1.3 sends after the session's tickets."""
    secure.sendall(b"GET /-/healthy HTTP/1.1\r\nhost: x\r\n\r\n")
    return secure.recv(12)


def resumed(port: str, context: ssl.SSLContext, session: ssl.SSLSession | None) -> bytes:
    """The status line of an answer to a client that resumes the session; "" if the server rejects it."""
    try:
        with connect(port, context, session) as secure:
            return status_line(secure)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, traditional, secret))

    assert message(tmp_path, TLS).endswith("expected a certificate and its key, in PEM, found: a key with a password")


def test_an_older_tls_than_allowed_is_refused(ca: trustme.CA, tmp_path: Path) -> None:
    issue(ca, tmp_path)
    old = client(ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(access(tmp_path, TLS.replace("}", ", min_version: TLS13}"))) as port:
        with pytest.raises(httpx.TransportError):
            status(port, old)
        assert status(port, client(ca)) == 200
    with listening(access(tmp_path, TLS)) as port:
        assert status(port, old) == 200


@pytest.mark.parametrize(
    "changed",
    [
        "{}",
        TLS.replace("}", ", min_version: TLS13}"),
        TLS_WITH_CLIENTS.format("RequireAndVerifyClientCert"),
    ],
)
def test_tls_is_not_turned_off_or_changed_by_a_change_of_the_file(ca: trustme.CA, tmp_path: Path, changed: str) -> None:
    issue(ca, tmp_path)
    of = access(tmp_path, TLS)
    old = client(ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with listening(of) as port:
        written(tmp_path, changed)
        with capture_logs() as logs:
            assert [follow(of), follow(of)] == [False, False]
            assert status(port, old) == 200
        (line,) = logs
        assert REQUIRES_A_RESTART in line["problems"]
        written(tmp_path, TLS)
        assert follow(of)


# ---- what browsers and hostile clients get


def test_whatever_bytes_come_the_server_goes_on(tmp_path: Path) -> None:
    chance = Random(1)
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
    with listening(access(tmp_path, f"basic_auth_users: {{a: {HASH}}}")) as port:
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as one, suppress(OSError):
                one.sendall(b"".join(chance.choices(pieces, k=chance.randint(1, 9))))
        answer = httpx.get(f"http://127.0.0.1:{port}/-/healthy", auth=("a", PASSWORD), trust_env=False)

    assert answer.status_code == 200


def test_answers_that_nobody_takes_do_not_fill_the_memory_and_who_reads_is_answered(tmp_path: Path) -> None:
    parts = [b"x" * 65_536] * 1024

    class Large(EmptyView):
        def exposition(self, **_: Any) -> Iterator[bytes]:
            yield from parts

    with listening(access(tmp_path, "{}"), Large()) as port, ExitStack() as sockets:
        before = resident_bytes()
        for _ in range(20):
            deaf = sockets.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=10))
            deaf.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\naccept-encoding: identity\r\n\r\n")
        url, plain = f"http://127.0.0.1:{port}/metrics", {"accept-encoding": "identity"}
        with httpx.stream("GET", url, headers=plain, trust_env=False, timeout=30) as answer:
            assert sum(map(len, answer.iter_raw())) == 64 * 1024 * 1024

        assert resident_bytes() - before < 64 * 1024 * 1024


def resident_bytes() -> int:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("headers", [b"content-length: 1000000000", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("request_line", [b"POST /-/reload", b"POST /metrics", b"GET /metrics", b"GET /"])
def test_a_body_of_a_gigabyte_is_answered_at_once_and_not_kept(
    tmp_path: Path, request_line: bytes, headers: bytes
) -> None:
    block = b"x" * 1_000_000
    part = block if b"length" in headers else b"f4240\r\n" + block + b"\r\n"
    with listening(access(tmp_path, "{}")) as port:
        before = resident_bytes()
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as one:
            one.sendall(request_line + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n")
            assert one.recv(9) == b"HTTP/1.1 "  # before any of the body
            for _ in range(10):
                for _ in range(100):
                    one.sendall(part)
                assert httpx.get(f"http://127.0.0.1:{port}/-/healthy", trust_env=False, timeout=2).status_code == 200
                assert resident_bytes() - before < 16_000_000


def test_a_browser_may_run_load_or_frame_nothing() -> None:
    page = get("/", None)

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith("; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
    for path in PATHS:
        headers = get(path, None).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-store"


def test_an_answer_that_a_bug_breaks_off_is_logged_and_does_not_look_complete(tmp_path: Path) -> None:
    class Broken(EmptyView):
        def exposition(self, **_: Any) -> Iterator[bytes]:
            yield b"chatapp_space_up 1\n"
            raise ZeroDivisionError("planted")

    with capture_logs() as logs, listening(access(tmp_path, "{}"), Broken()) as port:
        for encoding in ("identity", "gzip"):
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"accept-encoding": encoding}, trust_env=False)
    assert [line["event"] for line in logs] == ["request failed because of a bug, please report it"] * 2


def test_reload_takes_a_flag_and_a_post() -> None:
    refused = get("/-/reload", None, method="POST")

    assert (refused.status_code, refused.text) == (
        403,
        "Lifecycle API is not enabled: start with --web.enable-lifecycle\n",
    )
    assert get("/-/reload", None).status_code == 405
