"""Sent requests, compared with captured requests of the official SDK, and errors of a request."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from virtual_time import VirtualClock, run
from world import StaticCredentials

from exporter.http import http_client
from exporter.model import OWN_NUMBERS
from exporter.source import DeniedError, MalformedError, QueryError, RequestTimeout, TransportError, sanitized
from exporter.sources.cams.settings import CamsSpace
from exporter.sources.cams.signing import Credentials, authorization, canonical_query
from exporter.sources.cams.source import MAX_RESPONSE_BYTES, CamsSource

CAPTURES = json.loads((Path(__file__).parents[2] / "data/wire-captures.json").read_text())
COMPARED = [c for c in CAPTURES["captures"] if "status" not in c["inputs"] and not c["name"].startswith("legacy")]
TRICKY = ["a b", "*", "~", "+", "a+b%20c", "é中文 客户😀", "/?#[]@!$&'()*+,;=", '"<>|\\^`{}']


class Wire:
    """A transport that records requests and responds to them."""

    def __init__(self, body: httpx.AsyncByteStream | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self._body = body

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, stream=self._body or httpx.ByteStream(b'{"Code": "OK"}'))


def send(
    wire: Any,
    space_id: str | None,
    isv_code: str | None = None,
    token: str = "",
    times: int = 1,
    account_isv_code: str | None = None,
) -> None:
    """Query the space `times` times over this transport."""
    credentials = Credentials(CAPTURES["access_key_id"], CAPTURES["access_key_secret"], token)

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(wire)) as http:
            provider = StaticCredentials(credentials)
            source = CamsSource(http, "http://127.0.0.1:18089", provider, VirtualClock(), isv_code=account_isv_code)
            for _ in range(times):
                space = CamsSpace(space_id, isv_code=isv_code) if space_id else OWN_NUMBERS
                await source.query(space, nullcontext)

    run(main())


def raw_query(request: httpx.Request) -> str:
    return request.url.query.decode()


def signed_by_server(request: httpx.Request) -> str:
    """The Authorization header calculated by a server, which decodes the query and encodes it again."""
    names = re.search(r"SignedHeaders=([^,]+)", request.headers["authorization"])
    assert names
    query = canonical_query(dict(parse_qsl(raw_query(request), keep_blank_values=True)))
    credentials = Credentials(CAPTURES["access_key_id"], CAPTURES["access_key_secret"])
    headers = {name: request.headers[name] for name in names[1].split(";")}
    return authorization(request.method, query, headers, request.headers["x-acs-content-sha256"], credentials)


@pytest.mark.parametrize("capture", COMPARED, ids=lambda capture: capture["name"])
def test_a_request_matches_the_request_of_the_official_sdk(capture: dict[str, Any]) -> None:
    sent = {name.lower(): value for name, value in capture["headers"]}
    wire = Wire()

    space_id, isv_code = capture["inputs"].get("cust_space_id"), capture["inputs"].get("isv_code")
    token = sent.get("x-acs-security-token", "")
    send(wire, space_id, isv_code if space_id else None, token, account_isv_code=isv_code)

    (request,) = wire.requests
    signed = re.search(r"SignedHeaders=([^,]+)", sent["authorization"])
    assert signed
    assert (request.method, request.url.path, request.content) == (capture["method"], capture["path"], b"")
    assert parse_qsl(raw_query(request), keep_blank_values=True) == parse_qsl(
        capture["raw_query"], keep_blank_values=True
    )
    assert f"SignedHeaders={signed[1]}," in request.headers["authorization"]
    unique = {"user-agent", "x-acs-date", "x-acs-signature-nonce"}
    names = set(signed[1].split(";")) - unique | {"content-length", "host"}
    assert {name: request.headers[name] for name in names} == {name: sent[name] for name in names}
    assert request.headers["authorization"] == signed_by_server(request)


def test_seven_captured_requests_are_compared() -> None:
    assert [capture["name"] for capture in COMPARED] == [
        "no_parameters",
        "cust_space_id_only",
        "cust_space_id_and_isv_code",
        "isv_code_only",
        "cams_prefixed_space_id",
        "sts_token",
        "async_client",
    ]


@pytest.mark.parametrize("space_id", TRICKY)
def test_the_query_is_sent_exactly_as_signed(space_id: str) -> None:
    wire = Wire()

    send(wire, space_id, "isv code")

    (request,) = wire.requests
    assert raw_query(request) == canonical_query({"CustSpaceId": space_id, "IsvCode": "isv code"})
    assert request.headers["authorization"] == signed_by_server(request)


def test_the_isv_code_of_a_space_overrides_the_isv_code_of_its_account() -> None:
    wire = Wire()

    send(wire, "1", account_isv_code="of-account")
    send(wire, "1", "of-space", account_isv_code="of-account")

    assert [raw_query(request) for request in wire.requests] == [
        "CustSpaceId=1&IsvCode=of-account",
        "CustSpaceId=1&IsvCode=of-space",
    ]


def test_each_request_has_a_date_a_unique_nonce_and_a_unique_signature() -> None:
    wire = Wire()

    send(wire, "1", times=3)

    assert len({request.headers["x-acs-signature-nonce"] for request in wire.requests}) == 3
    assert len({request.headers["authorization"] for request in wire.requests}) == 3
    assert wire.requests[0].headers["x-acs-date"] == "2027-01-15T08:00:00Z"


class EndlessBody(httpx.AsyncByteStream):
    """A body without an end. Counts the bytes that were read from it."""

    def __init__(self) -> None:
        self.bytes_read = 0

    async def __aiter__(self) -> Any:
        while True:
            self.bytes_read += 65_536
            yield b" " * 65_536


def test_reading_stops_when_a_response_exceeds_2_mib() -> None:
    body = EndlessBody()

    with pytest.raises(MalformedError, match="larger than 2097152 bytes"):
        send(Wire(body), "1")

    assert body.bytes_read == MAX_RESPONSE_BYTES + 65_536


def test_a_large_response_below_the_size_limit_is_read() -> None:
    numbers = [{"PhoneNumber": f"{n:011d}", "VerifiedName": "x" * 300} for n in range(5_000)]
    document = {"Code": "OK", "PhoneNumbers": numbers}

    send(Wire(httpx.ByteStream(json.dumps(document).encode())), "1")


class SlowEndlessBody(httpx.AsyncByteStream):
    """A body without an end: one byte every 3 s of virtual time."""

    async def __aiter__(self) -> Any:
        while True:
            await asyncio.sleep(3)
            yield b" "


def test_a_response_that_never_ends_is_a_timeout() -> None:
    with pytest.raises(RequestTimeout, match="within 10 s"):
        send(Wire(SlowEndlessBody()), "1")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("server disconnected"),
        ConnectionResetError("reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_connection_is_a_transport_error(error: Exception) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(TransportError):
        send(fail, "1")


def test_a_read_timeout_of_the_transport_is_a_request_timeout() -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow")

    with pytest.raises(RequestTimeout):
        send(fail, "1")


class HangingCredentials:
    """A credential provider that never returns."""

    async def current(self) -> Credentials:
        await asyncio.Event().wait()
        raise AssertionError("the wait must not end")

    def changed(self) -> bool:
        return False


def test_a_credential_provider_that_hangs_is_an_error_and_no_request_is_sent() -> None:
    wire = Wire()

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(wire)) as http:
            source = CamsSource(http, "http://127.0.0.1:18089", HangingCredentials(), VirtualClock())
            await source.query(OWN_NUMBERS, nullcontext)

    with pytest.raises(DeniedError) as caught:
        run(main())

    assert str(caught.value) == "credentials: no credentials within 5 s"
    assert wire.requests == []


TOKEN = "CAIS" + "tok3nT" * 90
"""As long as a real token."""


def failure(**fields: Any) -> QueryError:
    """Return the error of a request with TOKEN, if the API responds with an error and these fields."""
    body = json.dumps({"Code": "InternalError", **fields}).encode()
    with pytest.raises(QueryError) as caught:
        send(lambda _: httpx.Response(500, stream=httpx.ByteStream(body)), "1", token=TOKEN)
    return caught.value


@pytest.mark.parametrize("length_before", [0, 3, 171, 190, 199, 490, 511])
def test_a_secret_in_a_response_is_redacted_also_where_the_text_is_cut(length_before: int) -> None:
    for secret in (CAPTURES["access_key_id"], CAPTURES["access_key_secret"], TOKEN):
        text = "." * length_before
        assert failure(Message=text + secret).detail == (text + "<secret>")[:200]


def test_a_placeholder_is_not_searched_for_other_secrets() -> None:
    assert sanitized("connection lost", ["i", "s", "", "lost"], 100) == "connect<secret>on <secret>"


def test_a_secret_in_a_code_or_request_id_is_redacted() -> None:
    error = failure(Code=TOKEN, RequestId=f"{'.' * 60}{TOKEN}")

    assert (error.code, error.request_id) == ("<secret>", "." * 60 + "<sec")


def test_a_code_is_cut_to_64_characters() -> None:
    assert failure(Code="x" * 1000).code == "x" * 64


def test_a_secret_in_a_transport_error_is_redacted() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError(f"{'.' * 170}{request.headers['x-acs-security-token']}")

    with pytest.raises(TransportError) as caught:
        send(fail, "1", token=TOKEN)

    assert caught.value.detail == f"LocalProtocolError: {'.' * 170}<secret>"
    assert TOKEN not in repr(caught.value)


def test_the_http_client_has_no_timeout_of_its_own() -> None:
    async def main() -> httpx.Timeout:
        async with http_client("https://cams.ap-southeast-1.aliyuncs.com") as http:
            return http.timeout

    assert run(main()) == httpx.Timeout(None)


def test_a_request_is_signed_after_the_wait_for_a_permit() -> None:
    wire, clock = Wire(), VirtualClock()

    @asynccontextmanager
    async def attempt() -> AsyncIterator[None]:
        await asyncio.sleep(1000)
        yield

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(wire)) as http:
            await CamsSource(http, "http://127.0.0.1:18089", StaticCredentials(Credentials("a", "b")), clock).query(
                OWN_NUMBERS, attempt
            )

    run(main())
    assert wire.requests[0].headers["x-acs-date"] == "2027-01-15T08:16:40Z"
