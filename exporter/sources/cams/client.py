"""One signed request over HTTP, and every way it can fail as one of our errors. Knows no budget and no retry."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from typing import TypeVar

import httpx

from exporter.clock import Clock
from exporter.model import Answer, InstancePage
from exporter.source import DeniedError, MalformedError, RequestTimeout, TransportError, quoted
from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import (
    LIST_INSTANCES,
    MAX_DETAIL,
    PAGE_SIZE,
    QUERY_PHONE_NUMBERS,
    Parameters,
    decode_answer,
    decode_instances,
    encode_request,
)

REQUEST_TIMEOUT_SECONDS = 10.0
"""For the connection and the whole answer together; the official SDK reads as long."""
CREDENTIALS_TIMEOUT_SECONDS = 5.0
"""For the source of the credentials, before a request is made."""
MAX_ANSWER_BYTES = 2 * 1024 * 1024
"""Some five thousand numbers, at 400 bytes each as in the API's samples; others wait while an answer is read."""


Result = TypeVar("Result")
Decode = Callable[[int, Mapping[str, str], bytes, Collection[str]], Result]
"""Reads an answer's status, headers and body, which may repeat these secrets. Raises QueryError."""


class Client:
    """Asks one account's endpoint. `credentials` is called for every attempt, so a rotated key is seen at once.

    `credentials` may raise a QueryError of its own.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoint: str,
        credentials: Callable[[], Awaitable[Credentials]],
        clock: Clock,
    ) -> None:
        self._http = http
        self._endpoint = httpx.URL(endpoint)
        self.credentials = credentials
        self._clock = clock

    async def query_phone_numbers(self, space_id: str | None, isv_code: str | None) -> Answer:
        """The numbers of a space; a `space_id` of None asks for the account's own.

        Raises:
            QueryError: no numbers; its class says why.
        """
        return await self._ask(QUERY_PHONE_NUMBERS, {"CustSpaceId": space_id, "IsvCode": isv_code}, decode_answer)

    async def list_instances(self, page: int) -> InstancePage:
        """A page of the account's instances, counted from 1.

        Raises:
            QueryError: none; its class says why.
        """
        parameters = {"ChannelType": "whatsapp", "PageIndex": str(page), "PageSize": str(PAGE_SIZE)}
        return await self._ask(LIST_INSTANCES, parameters, decode_instances)

    async def _ask(self, action: str, parameters: Parameters, decode: Decode[Result]) -> Result:
        """One attempt: a new date, nonce and signature, sent once."""
        credentials = await self._credentials_in_time()
        request = self._request(action, parameters, credentials)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                return await self._exchange(request, credentials, decode)
        except (TimeoutError, httpx.TimeoutException) as error:
            detail = f"no whole answer within {REQUEST_TIMEOUT_SECONDS:g} s"
            raise RequestTimeout("timeout", detail) from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            detail = quoted(f"{type(error).__name__}: {error}", credentials.secrets, MAX_DETAIL)
            raise TransportError("transport", detail) from error

    async def _credentials_in_time(self) -> Credentials:
        try:
            async with asyncio.timeout(CREDENTIALS_TIMEOUT_SECONDS):
                return await self.credentials()
        except TimeoutError as error:
            detail = f"their source gave no credentials within {CREDENTIALS_TIMEOUT_SECONDS:g} s"
            raise DeniedError("credentials", detail) from error

    def _request(self, action: str, parameters: Parameters, credentials: Credentials) -> httpx.Request:
        host = self._endpoint.netloc.decode("ascii")
        now, nonce = self._clock.now(), secrets.token_hex(16)
        signed = encode_request(host, action, parameters, credentials, now=now, nonce=nonce)
        # as part of the URL, for httpx encodes `params=` in its own way and breaks the signature
        url = self._endpoint.join(f"/?{signed.query}") if signed.query else self._endpoint
        return httpx.Request("POST", url, headers=dict(signed.headers), content=b"")

    async def _exchange(self, request: httpx.Request, credentials: Credentials, decode: Decode[Result]) -> Result:
        async with aclosing(await self._http.send(request, stream=True)) as response:
            body = await _read_bounded(response)
        self._http.cookies.clear()  # a session is nothing to us, and its cookies would pile up
        return decode(response.status_code, response.headers, body, credentials.secrets)


async def _read_bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise MalformedError("malformed", f"answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)
