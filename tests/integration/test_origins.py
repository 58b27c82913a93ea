"""Pages of other sites in a browser cannot change anything in the exporter."""

import pytest
from empty_view import EmptyView, send_request

from exporter.web.routes import create_app

REJECTED = (403, "Cross-origin requests are not allowed\n", 0)
RELOADED = (200, "config reloaded\n", 1)


def reload(method: str = "POST", host: str = "exporter:10144", **headers: str) -> tuple[int, str, int]:
    """Return status and text of the response, and the number of reloads."""
    reloads = []

    async def count() -> None:
        reloads.append("reloaded")

    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    response = send_request(create_app(EmptyView(), reload=count), "/-/reload", method, host=host, **sent)
    return response.status_code, response.text, len(reloads)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://attacker.example"},
        {"origin": "http://exporter"},
        {"origin": "http://exporter:10145"},
        {"origin": "http://exporter:10144.attacker.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "exporter:10144"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "http://exporter:10144"},
        {"sec_fetch_site": "none", "origin": "https://attacker.example"},
    ],
)
def test_a_reload_from_another_origin_is_rejected(method: str, headers: dict[str, str]) -> None:
    assert reload(method, **headers) == REJECTED


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://exporter:10144", "sec_fetch_site": "same-origin"},
        {"origin": "https://exporter:10144"},
        {"origin": "HTTP://Exporter:10144"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_a_reload_from_curl_or_from_the_same_origin_is_accepted(headers: dict[str, str]) -> None:
    assert reload(**headers) == RELOADED


def test_origin_and_host_match_without_the_default_port() -> None:
    assert reload(host="exporter.example.com", origin="https://exporter.example.com") == RELOADED


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/-/config", "/api/v1/spaces", "/nothing"])
def test_a_request_from_another_origin_with_a_method_other_than_get_is_rejected(method: str, path: str) -> None:
    assert send_request(create_app(EmptyView()), path, method, origin="https://attacker.example").status_code == 403


def test_a_link_from_another_site_opens_the_page() -> None:
    assert send_request(create_app(EmptyView()), "/", **{"sec-fetch-site": "cross-site"}).status_code == 200
