"""Paths, status codes and formats of the HTTP server."""

import asyncio
import gzip

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import Message
from virtual_time import run
from world import World, scenario

from exporter.web.exposition import OPENMETRICS, TEXT, exposition_response
from exporter.web.routes import create_app

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"  # noqa: E501


def get(path: str, *, seconds: float = 5, method: str = "GET", **headers: str) -> httpx.Response:
    """Send one request to an exporter that has polled for `seconds`."""

    async def main() -> httpx.Response:
        world = World(scenario(3))
        await world.exporter.start()
        await asyncio.sleep(seconds)
        transport = httpx.ASGITransport(create_app(world.exporter.view))
        async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            response = await http.request(method, path, headers={"accept-encoding": "identity", **sent})
        await world.exporter.stop()
        return response

    return run(main())


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (PROMETHEUS_3, OPENMETRICS),
        (PROMETHEUS_2_42, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0,text/plain;version=0.0.4", TEXT),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.1", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("*/*", TEXT),
        ("nonsense;q=x", TEXT),
        ("", TEXT),
    ],
)
def test_the_response_has_the_format_that_the_client_prefers(accept: str, content_type: str) -> None:
    response = get("/metrics", accept=accept)

    assert response.headers["content-type"] == content_type
    assert response.text.endswith("# EOF\n") == (content_type == OPENMETRICS)
    assert "chatapp_space_up" in response.text


def test_gzip_is_sent_only_on_request() -> None:
    plain, compressed = get("/metrics"), get("/metrics", accept_encoding="gzip")

    assert "content-encoding" not in plain.headers
    assert compressed.headers["content-encoding"] == "gzip"
    assert "chatapp_space_up" in compressed.text


@pytest.mark.parametrize(
    ("accept_encoding", "sent"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=nonsense", False),
        ("deflate", False),
        ("*", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_sent_if_accept_encoding_lists_it_with_a_quality_above_0(accept_encoding: str, sent: bool) -> None:
    response = get("/metrics", accept_encoding=accept_encoding)

    assert ("content-encoding" in response.headers) == sent
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.text.startswith("# HELP")


def test_the_name_parameter_filters_exporter_and_process_families() -> None:
    response = get("/metrics?name[]=chatapp_space_up&name[]=chatapp_exporter_build_info")

    families = {line.split(" ")[2] for line in response.text.splitlines() if line.startswith("# TYPE")}
    assert families == {"chatapp_space_up", "chatapp_exporter_build_info"}


def test_an_unknown_family_name_returns_no_samples() -> None:
    assert get("/metrics?name[]=nothing").text == ""


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 200, "chatapp-exporter"),
        ("/-/healthy", 200, "healthy"),
        ("/-/ready", 200, "ready"),
        ("/nothing", 404, "Not Found"),
        ("/metrics/", 404, "Not Found"),
    ],
)
def test_each_path_has_its_status_and_text(path: str, status: int, text: str) -> None:
    response = get(path)

    assert (response.status_code, text in response.text) == (status, True)


def test_ready_is_503_before_the_first_sweep() -> None:
    response = get("/-/ready", seconds=0.15)

    assert (response.status_code, response.text) == (503, "not ready: 1 spaces not polled yet\n")


def test_post_to_metrics_is_not_allowed() -> None:
    assert get("/metrics", method="POST").status_code == 405


def test_a_head_response_has_no_body() -> None:
    response = get("/metrics", method="HEAD")

    assert (response.status_code, response.content) == (200, b"")


def test_the_configuration_page_has_no_secret() -> None:
    response = get("/-/config")

    assert "name: acme" in response.text
    assert "poll_interval: 5s" in response.text
    assert "secret-acme" not in response.text
    assert "key-acme" not in response.text


LARGE_PAGE = [b"# a page in chunks\n", b"", b"x" * 700_000 + b"\n", *[b"y" * 999 + b"\n"] * 600, b"# EOF\n"]


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_chunks_of_any_size_arrive_complete_and_other_tasks_run_between_them(encoding: str) -> None:
    async def main() -> tuple[list[bytes], int, httpx.Headers]:
        response = exposition_response(LARGE_PAGE, Headers({"accept-encoding": encoding}), openmetrics=True)
        iterations, sent = 0, list[bytes]()

        async def count_iterations() -> None:
            nonlocal iterations
            while True:
                iterations += 1
                await asyncio.sleep(0)

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))

        task = asyncio.create_task(count_iterations())
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
        task.cancel()
        return sent, iterations, httpx.Headers(response.raw_headers)

    sent, iterations, headers = run(main())
    body = b"".join(sent)

    assert (gzip.decompress(body) if encoding == "gzip" else body) == b"".join(LARGE_PAGE)
    assert "content-length" not in headers  # families are rendered while they are sent
    assert max(map(len, sent)) <= 512 * 1024
    assert iterations >= 5  # one for each chunk of 256 KiB


async def receive() -> Message:
    raise AssertionError("the application read the request body")
