"""One signed request over HTTP, and every way it can fail as one of our errors. Knows no budget and no retry."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import httpx

from exporter.chatapp.errors import MalformedError, QueryError, RequestTimeout, TransportError
from exporter.chatapp.model import Answer
from exporter.chatapp.signing import Credentials
from exporter.chatapp.wire import decode_answer, encode_request
from exporter.clock import Clock

REQUEST_TIMEOUT_SECONDS = 10.0
"""For the credentials, the connection and the whole answer together; the official SDK reads as long."""
MAX_ANSWER_BYTES = 8 * 1024 * 1024


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
        """One attempt: a new date, nonce and signature, sent once.

        Raises:
            QueryError: no numbers; its class says why.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                credentials = await self.credentials()
                return await self._ask(self._request(space_id, isv_code, credentials), credentials)
        except (TimeoutError, httpx.TimeoutException) as error:
            detail = f"no whole answer within {REQUEST_TIMEOUT_SECONDS:g} s"
            raise RequestTimeout("timeout", detail) from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise TransportError("transport", f"{type(error).__name__}: {error}"[:200]) from error

    def _request(self, space_id: str | None, isv_code: str | None, credentials: Credentials) -> httpx.Request:
        host = self._endpoint.netloc.decode("ascii")
        now, nonce = self._clock.now(), secrets.token_hex(16)
        signed = encode_request(host, space_id, isv_code, credentials, now=now, nonce=nonce)
        # as part of the URL, for httpx encodes `params=` in its own way and breaks the signature
        url = self._endpoint.join(f"/?{signed.query}") if signed.query else self._endpoint
        return httpx.Request("POST", url, headers=dict(signed.headers), content=b"")

    async def _ask(self, request: httpx.Request, credentials: Credentials) -> Answer:
        try:
            return await self._exchange(request)
        except QueryError as error:
            # an answer may repeat what was sent, and what it says goes to the logs
            error.leave_out(credentials.access_key_id, credentials.access_key_secret, credentials.security_token)
            raise

    async def _exchange(self, request: httpx.Request) -> Answer:
        async with aclosing(await self._http.send(request, stream=True)) as response:
            body = await _read_bounded(response)
        return decode_answer(response.status_code, response.headers, body)


async def _read_bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise MalformedError("malformed", f"answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)
