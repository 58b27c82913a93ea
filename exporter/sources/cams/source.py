"""Queries the API for one account: signed requests over HTTP. Each failure is raised as a QueryError.

Does not use the budget or the schedule. Each request is sent inside an attempt, with its own date, nonce and signature.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from typing import Protocol, TypeVar

import httpx

from exporter.clock import Clock
from exporter.model import OWN_NUMBERS, Answer, Space
from exporter.source import (
    REQUEST_TIMEOUT_SECONDS,
    Attempt,
    DeniedError,
    MalformedError,
    RequestTimeout,
    Source,
    TransportError,
    sanitized,
)
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import (
    LIST_INSTANCES,
    MAX_DETAIL_LENGTH,
    PAGE_SIZE,
    QUERY_PHONE_NUMBERS,
    Instance,
    Parameters,
    decode_instances,
    decode_phone_numbers,
    encode_request,
)
from exporter.transport import NEW_CONNECTION, IdleConnectionClosed

CREDENTIALS_TIMEOUT_SECONDS = 5.0
MAX_RESPONSE_BYTES = 2 * 1024 * 1024
"""Enough for 5,000 numbers of 400 bytes (the size in the API's samples). Decoding more would delay other polls."""
_MAX_PAGES = 400

Result = TypeVar("Result")
Decode = Callable[[int, Mapping[str, str], bytes, Collection[str]], Result]
"""Decodes a response. Parameters: status, headers, body, and the secrets to redact in errors. Raises QueryError."""


class _IdleConnectionClosedError(TransportError):
    """The server closed a reused connection before the first byte of the response. A retry on a new connection can
    succeed."""


class CredentialProvider(Protocol):
    """Provides the credentials of an account."""

    async def current(self) -> Credentials:
        """Return the current credentials. Raises QueryError."""

    def changed(self) -> bool:
        """Return whether the credentials differ from those of the last request."""


class CamsSource(Source):
    """Queries the endpoint of one account. Credentials are read for each request, so a new key is used at once."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoint: str,
        credentials: CredentialProvider,
        clock: Clock,
        isv_code: str | None = None,
    ) -> None:
        self._http = http
        self._endpoint = httpx.URL(endpoint)
        self._credentials = credentials
        self._clock = clock
        self._isv_code = isv_code

    async def query(self, space: Space, attempt: Attempt) -> Answer:
        parameters = {
            "CustSpaceId": None if space == OWN_NUMBERS else space.id,
            "IsvCode": getattr(space, "isv_code", None) or self._isv_code,
        }
        return await self._request(attempt, QUERY_PHONE_NUMBERS, parameters, decode_phone_numbers)

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        instances = await self._list_instances(attempt)
        spaces = {instance.space_id: instance.name for instance in instances}
        spaces.pop("", None)
        if instances and not spaces:  # a reduced permission or a changed format is more likely than no customers
            raise MalformedError("malformed", f"expected spaces, found none among {len(instances)} instances")
        return spaces

    def credentials_changed(self) -> bool:
        return self._credentials.changed()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _list_instances(self, attempt: Attempt) -> Collection[Instance]:
        """Return the instances of all pages. If instances are added or removed between the requests, the pages can omit
        an instance. Then the reported total differs from the number of distinct instances.

        Raises:
            QueryError: the list is not complete, or a request failed.
        """
        found: dict[str, Instance] = {}
        totals: set[int] = set()
        for number in range(1, _MAX_PAGES + 1):
            parameters = {"ChannelType": "whatsapp", "PageIndex": str(number), "PageSize": str(PAGE_SIZE)}
            page, before = await self._request(attempt, LIST_INSTANCES, parameters, decode_instances), len(found)
            found |= {instance.id: instance for instance in page.instances}
            totals.add(page.total)
            if totals == {len(found)}:
                return found.values()
            if len(totals) > 1 or len(found) == before:
                break
        raise MalformedError("malformed", f"expected {max(totals)} instances, found {len(found)}")

    async def _request(self, attempt: Attempt, action: str, parameters: Parameters, decode: Decode[Result]) -> Result:
        try:
            return await self._send_once(attempt, action, parameters, decode)
        except _IdleConnectionClosedError:
            return await self._send_once(attempt, action, parameters, decode, new_connection=True)

    async def _send_once(
        self,
        attempt: Attempt,
        action: str,
        parameters: Parameters,
        decode: Decode[Result],
        *,
        new_connection: bool = False,
    ) -> Result:
        async with attempt():
            credentials = await self._credentials_with_time_limit()
            request = self._signed_request(action, parameters, credentials)
            request.extensions[NEW_CONNECTION] = new_connection
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                    return await self._exchange(request, credentials, decode)
            except (TimeoutError, httpx.TimeoutException) as error:
                detail = f"no complete response within {REQUEST_TIMEOUT_SECONDS:g} s"
                raise RequestTimeout("timeout", detail) from error
            except (httpx.HTTPError, httpx.StreamError, OSError) as error:
                error_class = _IdleConnectionClosedError if isinstance(error, IdleConnectionClosed) else TransportError
                detail = sanitized(f"{type(error).__name__}: {error}", credentials.secrets, MAX_DETAIL_LENGTH)
                raise error_class("transport", detail) from error

    async def _credentials_with_time_limit(self) -> Credentials:
        try:
            async with asyncio.timeout(CREDENTIALS_TIMEOUT_SECONDS):
                return await self._credentials.current()
        except TimeoutError as error:
            detail = f"no credentials within {CREDENTIALS_TIMEOUT_SECONDS:g} s"
            raise DeniedError("credentials", detail) from error

    def _signed_request(self, action: str, parameters: Parameters, credentials: Credentials) -> httpx.Request:
        host = self._endpoint.netloc.decode("ascii")
        now, nonce = self._clock.now(), secrets.token_hex(16)
        signed = encode_request(host, action, parameters, credentials, now=now, nonce=nonce)
        # in the URL, because httpx encodes `params=` differently, which invalidates the signature
        url = self._endpoint.join(f"/?{signed.query}") if signed.query else self._endpoint
        return httpx.Request("POST", url, headers=dict(signed.headers), content=b"")

    async def _exchange(self, request: httpx.Request, credentials: Credentials, decode: Decode[Result]) -> Result:
        async with aclosing(await self._http.send(request, stream=True)) as response:
            body = await _read_bounded(response)
        return decode(response.status_code, response.headers, body, credentials.secrets)


async def _read_bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise MalformedError("malformed", f"response larger than {MAX_RESPONSE_BYTES} bytes", from_api=False)
    return bytes(body)
