"""OpenAI's ``POST /v1/images/edits`` on the image models: the handler and its route."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence

from forebay.blobs import Blobs
from forebay.core.events import OutputEvent
from forebay.core.kinds import Kind
from forebay.dialects import openai_images
from forebay.dialects.openai_common import Call
from forebay.dialects.openai_images import EditRequest
from forebay.dialects.photos import FILE_BYTES
from forebay.errors import BadRequest, ForebayError
from forebay.gateway.calls import (
    CallOptions,
    Collector,
    Ident,
    Surface,
    answer_call,
    refuse,
    request_id,
)
from forebay.gateway.context import GatewayContext
from forebay.gateway.fetching import Files
from forebay.gateway.hub import Hub
from forebay.gateway.job_gate import ask_gate
from forebay.gateway.photos import FORM_BYTES, measured, photo_blobs
from forebay.gateway.responses import JSON_TYPE, Headers, Receive, Scope, Send
from forebay.gateway.routes import Route
from forebay.gateway.sse import SSE_HEADERS
from forebay.gateway.uploads import FileLimits, Stored, read_uploads

__all__ = ["ROUTES", "image_edits"]

LIMITS = FileLimits(field="image", files=1, file_bytes=FILE_BYTES, also=("image[]",))


class _Edits(Surface):
    name = "openai-images"

    files: Files[str]

    def __init__(self, blobs: Blobs, request: EditRequest, hub: Hub) -> None:
        self._blobs = blobs
        self.files = Files(
            lambda event: openai_images.blob_of(event, request), self._read, hub.spawn
        )

    def _read(self, blob: str) -> str:
        """In a thread: a blob in base64."""
        return base64.b64encode(self._blobs.path(blob).read_bytes()).decode()

    def parse(self, body: bytes) -> Call:
        raise TypeError("a form goes to the disk as it comes, by `image_edits`")

    def events(self, call: Call) -> bool:
        return True

    def headers(self, call: Call) -> Headers:
        wanted: EditRequest = call.request
        head = list(SSE_HEADERS)
        if not call.stream:
            head = [(b"content-type", JSON_TYPE), (b"cache-control", b"no-store")]
        if wanted.ignored:
            head.append((b"x-forebay-ignored", ", ".join(wanted.ignored).encode()))
        return head

    def encoder(self, call: Call, ident: Ident) -> Callable[[OutputEvent], Sequence[bytes]]:
        return openai_images.EditEncoder(call.request, ident.created, self.files.take).encode

    def collector(self, call: Call, ident: Ident) -> Collector:
        return openai_images.WholeEdit(call.request, ident.created, self._read)


_OPTIONS = CallOptions(body_bytes=FORM_BYTES)


async def image_edits(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /v1/images/edits``."""
    begun = ctx.clock()
    files: list[Stored] = []
    try:
        ask_gate(ctx, Kind.IMAGE)
        blobs = photo_blobs(ctx, scope["forebay.tenant"])
        read = await read_uploads(scope, receive, blobs, LIMITS)
        if read is None:
            return
        form, files = read
        if not files:
            raise BadRequest("image is missing, expected a form part with a file name", param="image")  # fmt: skip
        pool = ctx.pool_view(Kind.IMAGE, form.text("model") or "")
        picture = await asyncio.to_thread(measured, ctx, files[0], pool)
        call = openai_images.parse(form.fields, picture)
    except ForebayError as error:
        for stored in files:
            if ctx.blobs is not None:
                await asyncio.to_thread(ctx.blobs.drop, stored.blob)
        await refuse(send, error, request_id(scope))
        return
    await answer_call(
        scope, receive, send, ctx, _Edits(blobs, call.request, ctx.hub), _OPTIONS, call, begun
    )


ROUTES = [
    Route(
        method="POST",
        path="/v1/images/edits",
        handler=image_edits,
        needs="submit",
        works=True,
        body_bytes=FORM_BYTES,
    ),
]
