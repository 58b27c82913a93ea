"""A view without accounts, and HTTP requests to an application without a socket."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
from starlette.applications import Starlette

from exporter.runtime.view import Snapshot, View


class EmptyView(View):
    """A view without accounts and samples."""

    def __init__(self) -> None:
        pass

    def expire(self) -> Iterator[None]:
        return iter(())

    def exposition(self, **_: Any) -> Iterator[bytes]:
        yield b"# EOF\n"

    def accounts(self) -> list[Any]:
        return []

    def snapshot(self) -> Snapshot:
        return Snapshot(0.0, (), ())

    def unpolled(self) -> int:
        return 0

    def redacted_config(self) -> str:
        return ""


def send_request(app: Starlette, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    """Send one request to the application and return the response."""

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://exporter") as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(main())
