"""Reading request bodies: counted while they arrive, and timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.refusals import CLIENT_GONE, Refusal

_FIELDS = 16
_FIELD_BYTES = 16 << 10


async def read_body(request: Request, bounds: Bounds) -> bytes:
    """The whole body; raises Refusal 413 over the limit, 408 where it is too slow, 499 where the client has left."""
    limit = bounds.request_bytes
    announced = request.headers.get("content-length", "0")
    if "content-encoding" in request.headers:
        raise Refusal(415, "compressed requests are not taken: send the body as it is")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {bounds.body_timeout:g} s") from None
    except ClientDisconnect:
        raise Refusal(CLIENT_GONE, "the client has left") from None
    return bytes(body)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the request is over {limit / (1 << 20):g} MB (--max-request-mb)")


@dataclass
class Upload:
    """A picture file and the plain fields that came with it."""

    image: bytes
    fields: list[tuple[str, str]] = field(default_factory=list)


async def read_upload(request: Request, bounds: Bounds) -> Upload:
    """A picture: the file field `image` of a multipart form, or the body itself. Raises Refusal."""
    body = await read_body(request, bounds)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return Upload(body)
    parser = _InMemory(
        request.headers, _once(body), max_files=1, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        items = (await parser.parse()).multi_items()
    except MultiPartException as e:
        raise Refusal(400, f"malformed multipart form: {e.message}") from None
    files = [value for name, value in items if name == "image" and isinstance(value, UploadFile)]
    if not files:
        raise Refusal(400, "the form has no file field 'image'")
    return Upload(await files[0].read(), [(name, value) for name, value in items if isinstance(value, str)])


class _InMemory(MultiPartParser):
    """The body is in memory already, and bounded: no detour over a temporary file."""

    spool_max_size = 1 << 40


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
