"""The response to a scrape: content negotiation, compression and streaming in chunks."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

from isal import isal_zlib
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_CHUNK_BYTES = 256 * 1024
"""Bytes to compress and send before other tasks run; less than 1 ms."""
_MAX_ENTRIES = 50
"""Limit of parsed entries per Accept or Accept-Encoding header; Prometheus sends 5."""
_GZIP = 16 + isal_zlib.MAX_WBITS
"""The zlib window size that selects the gzip format."""


def exposition_response(families: Iterable[bytes], request_headers: Headers, *, openmetrics: bool) -> Response:
    """Return a streaming response with these families. Each family is rendered when it is sent."""
    headers = {"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "Accept-Encoding"}
    if accepts_gzip(request_headers.get("accept-encoding", "")):
        return StreamingResponse(_stream(_compressed(families)), headers={**headers, "content-encoding": "gzip"})
    return StreamingResponse(_stream(_chunks(families)), headers=headers)


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics 1.0. If not, the response is text 0.0.4."""
    ranked = sorted(_preferences(accept), key=lambda entry: -entry[0])
    for quality, media_type, version in ranked:
        if quality > 0 and media_type == "application/openmetrics-text" and version in ("", "0.0.1", "1.0.0"):
            return True
        if quality > 0 and media_type in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
            return False
    return False


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header lists gzip with a quality above 0."""
    return any(name == "gzip" and quality > 0 for quality, name, _ in _preferences(accept_encoding))


def _preferences(header: str) -> Iterator[tuple[float, str, str]]:
    # a header of 16 kB can have 8,000 entries, and parsing all of them takes 20 ms
    return map(_preference, header.split(",", _MAX_ENTRIES)[:_MAX_ENTRIES])


def _preference(entry: str) -> tuple[float, str, str]:
    """Return the quality, the name and the version of an entry."""
    name, *rest = (part.strip() for part in entry.split(";"))
    parameters = dict(part.split("=", 1) for part in rest if "=" in part)
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    return quality, name.lower(), parameters.get("version", "").strip('"')


async def _stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)  # otherwise, a fast client would block other tasks until the end of the response


def _chunks(families: Iterable[bytes]) -> Iterator[bytes]:
    for family in families:
        for start in range(0, len(family), _CHUNK_BYTES):
            yield family[start : start + _CHUNK_BYTES]


def _compressed(families: Iterable[bytes]) -> Iterator[bytes]:
    # level 1 of isal compresses metrics as well as level 1 of zlib, in a quarter of the time
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, _GZIP)
    for chunk in _chunks(families):
        yield compressor.compress(chunk)
    yield compressor.flush()
