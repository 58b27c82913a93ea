"""How a scrape is answered: in which format, packed or not, and in chunks between which others have their turn."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain

from isal import isal_zlib
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_CHUNK_BYTES = 256 * 1024
"""What is packed and sent at once: some tenths of a millisecond."""
_GZIP = 16 + isal_zlib.MAX_WBITS
"""zlib's way to ask for gzip's header."""


def exposition(parts: Sequence[bytes], asked: Headers, *, openmetrics: bool) -> Response:
    """An answer of these parts, one after the other, to a request with these headers."""
    headers = {"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "Accept-Encoding"}
    if accepts_gzip(asked.get("accept-encoding", "")):
        return StreamingResponse(_in_turns(_packed(parts)), headers={**headers, "content-encoding": "gzip"})
    length = str(sum(map(len, parts)))
    return StreamingResponse(_in_turns(_chunks(parts)), headers={**headers, "content-length": length})


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header ranks OpenMetrics 1.0 first; in all other cases text 0.0.4 is the answer."""
    ranked = sorted(map(_quality, accept.split(",")), key=lambda entry: -entry[0])
    for quality, media_type, version in ranked:
        if quality > 0 and media_type == "application/openmetrics-text" and version in ("", "0.0.1", "1.0.0"):
            return True
        if quality > 0 and media_type in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
            return False
    return False


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header names gzip, and not to rule it out."""
    return any(name == "gzip" and quality > 0 for quality, name, _ in map(_quality, accept_encoding.split(",")))


def _quality(entry: str) -> tuple[float, str, str]:
    """The rank, the name and the version of an entry of such headers."""
    name, *rest = (part.strip() for part in entry.split(";"))
    parameters = dict(part.split("=", 1) for part in rest if "=" in part)
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = 0.0
    return quality, name.lower(), parameters.get("version", "").strip('"')


async def _in_turns(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)  # a client that reads fast would have all of it before anything else goes on


def _chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    room = _CHUNK_BYTES
    for part in chain.from_iterable(map(_cut, parts)):
        waiting.append(part)
        room -= len(part)
        if room <= 0:
            yield b"".join(waiting)
            waiting, room = [], _CHUNK_BYTES
    yield b"".join(waiting)


def _cut(part: bytes) -> Iterable[bytes]:
    if len(part) <= _CHUNK_BYTES:
        return (part,)
    return (part[start : start + _CHUNK_BYTES] for start in range(0, len(part), _CHUNK_BYTES))


def _packed(parts: Iterable[bytes]) -> Iterator[bytes]:
    # isal's first level packs our lines as well as zlib's and takes a quarter of the time
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, _GZIP)
    for chunk in _chunks(parts):
        yield compressor.compress(chunk)
    yield compressor.flush()
