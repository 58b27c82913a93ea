"""One account at Alibaba Cloud: signed requests over HTTP, and every way they can fail as a QueryError.

Knows no budget and no schedule. A request is made inside an attempt, with a date, a nonce and a signature of its own.
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
    quoted,
)
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import (
    LIST_INSTANCES,
    MAX_DETAIL,
    PAGE_SIZE,
    QUERY_PHONE_NUMBERS,
    Instance,
    Parameters,
    decode_answer,
    decode_instances,
    encode_request,
)
from exporter.transport import NEW_CONNECTION, StaleConnection

CREDENTIALS_TIMEOUT_SECONDS = 5.0
MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Some five thousand numbers, at 400 bytes each as in the API's samples; other polls wait while an answer is read."""
_MAX_PAGES = 400

Result = TypeVar("Result")
Decode = Callable[[int, Mapping[str, str], bytes, Collection[str]], Result]
"""Reads an answer's status, headers and body, which may repeat these secrets. Raises QueryError."""


class _StaleConnectionError(TransportError):
    """The server had closed the connection before the request: another attempt on a new one can succeed."""


class CredentialProvider(Protocol):
    """Where the credentials come from."""

    async def current(self) -> Credentials:
        """The credentials as they are now. Raises QueryError."""

    def changed(self) -> bool:
        """Whether they differ from those that a request used last."""


class CamsSource(Source):
    """Queries one account's endpoint. Credentials are fetched for each request, so a rotated key is used at once."""

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
        return await self._request(attempt, QUERY_PHONE_NUMBERS, parameters, decode_answer)

    async def list_spaces(self, attempt: Attempt) -> Mapping[str, str]:
        instances = await self._instances(attempt)
        spaces = {instance.space_id: instance.name for instance in instances}
        spaces.pop("", None)
        if instances and not spaces:  # a narrowed permission or a format that changed, rather than no customers
            raise MalformedError("malformed", f"expected spaces, found none among {len(instances)} instances")
        return spaces

    def credentials_changed(self) -> bool:
        return self._credentials.changed()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _instances(self, attempt: Attempt) -> Collection[Instance]:
        """The instances of all pages. Where some are added or removed meanwhile, a page can miss one: then the total
        and the number of different instances do not agree."""
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
            return await self._attempted(attempt, action, parameters, decode)
        except _StaleConnectionError:
            return await self._attempted(attempt, action, parameters, decode, new_connection=True)

    async def _attempted(
        self,
        attempt: Attempt,
        action: str,
        parameters: Parameters,
        decode: Decode[Result],
        *,
        new_connection: bool = False,
    ) -> Result:
        async with attempt():
            credentials = await self._credentials_in_time()
            request = self._signed(action, parameters, credentials)
            request.extensions[NEW_CONNECTION] = new_connection
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                    return await self._exchange(request, credentials, decode)
            except (TimeoutError, httpx.TimeoutException) as error:
                detail = f"no complete answer within {REQUEST_TIMEOUT_SECONDS:g} s"
                raise RequestTimeout("timeout", detail) from error
            except (httpx.HTTPError, httpx.StreamError, OSError) as error:
                kind = _StaleConnectionError if isinstance(error, StaleConnection) else TransportError
                detail = quoted(f"{type(error).__name__}: {error}", credentials.secrets, MAX_DETAIL)
                raise kind("transport", detail) from error

    async def _credentials_in_time(self) -> Credentials:
        try:
            async with asyncio.timeout(CREDENTIALS_TIMEOUT_SECONDS):
                return await self._credentials.current()
        except TimeoutError as error:
            detail = f"no credentials within {CREDENTIALS_TIMEOUT_SECONDS:g} s"
            raise DeniedError("credentials", detail) from error

    def _signed(self, action: str, parameters: Parameters, credentials: Credentials) -> httpx.Request:
        host = self._endpoint.netloc.decode("ascii")
        now, nonce = self._clock.now(), secrets.token_hex(16)
        signed = encode_request(host, action, parameters, credentials, now=now, nonce=nonce)
        # as part of the URL, for httpx encodes `params=` in its own way and breaks the signature
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
        if len(body) > MAX_ANSWER_BYTES:
            raise MalformedError("malformed", f"answer of more than {MAX_ANSWER_BYTES} bytes", from_api=False)
    return bytes(body)
