"""Every HTTP request gets a response, and never status 500."""

import asyncio
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run
from world import World, scenario

from exporter.web.routes import create_app

paths = st.sampled_from(
    "/metrics /-/healthy /-/ready /-/config /-/reload /api/v1/phone-numbers /api/v1/spaces"
    " / /space /metrics/ // /..".split()
)
parameters = st.sampled_from(["name[]", "q", "account", "space", "state", "page", "per_page", "refresh"])
texts = st.text(st.characters(codec="utf-8"), max_size=30)
header_texts = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)
credentials = st.builds(
    "Basic {}".format, header_texts | st.binary(max_size=40).map(lambda raw: b64encode(raw).decode())
)
header_sets = st.fixed_dictionaries(
    {},
    optional={
        name: header_texts
        | credentials
        | st.sampled_from(["*/*", "text/plain;q=x", "application/openmetrics-text;q=1e9;version=", ";;="])
        for name in "accept accept-encoding authorization range if-none-match cookie x-forwarded-for".split()
    },
)


async def send_request(path: str, query: str, method: str, headers: dict[str, str]) -> httpx.Response:
    world = World(scenario(1))
    await world.exporter.start()
    await asyncio.sleep(1)
    app: Any = create_app(world.exporter.view, authenticate=reject if "authorization" in headers else None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://exporter") as http:
        raw = [(name.encode(), text.strip().encode("latin-1")) for name, text in headers.items()]
        response = await http.request(method, f"{path}?{query}", headers=raw)
    await world.exporter.stop()
    return response


async def reject(user: str, password: str) -> bool:
    assert isinstance(user, str)
    assert isinstance(password, str)
    return False


@settings(max_examples=60)
@given(
    paths | texts.map(lambda text: "/" + quote(text)),
    texts.map(quote) | st.builds("{}={}".format, parameters, texts.map(quote)),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]),
    header_sets,
)
def test_every_request_gets_an_expected_status(path: str, query: str, method: str, headers: dict[str, str]) -> None:
    response = run(send_request(path, query, method, headers))

    assert response.status_code in (200, 400, 401, 403, 404, 405, 431, 503)
    assert response.headers["x-content-type-options"] == "nosniff"
    if "authorization" in headers:
        assert response.status_code == 401
