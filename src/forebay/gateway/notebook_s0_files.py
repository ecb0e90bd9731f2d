"""The notebook backend's HTTP surface (S0): a notebook's files and assets.

Every path is a name inside the notebook's folder, checked here and opened without following
any link by the worker (`engines.notebook_files`). Nothing that a notebook holds is sent as a
page of ours: files are octet streams, and pictures carry a policy that runs nothing.
"""

from __future__ import annotations

import base64
import mimetypes
from typing import Any
from urllib.parse import unquote

import msgspec

from forebay.core.notebook import check_id, check_path
from forebay.dialects.notebook import say, words_of
from forebay.dialects.photos import disposition
from forebay.errors import BadRequest, ForebayError, StoreFull
from forebay.gateway.context import GatewayContext
from forebay.gateway.forms import Form
from forebay.gateway.notebook_s0 import asked, language_of, route
from forebay.gateway.notebooks import file_op
from forebay.gateway.responses import Headers, Receive, Scope, Send, reply, reply_json
from forebay.gateway.uploads import FileLimits, Stored, read_uploads

__all__ = ["ROUTES"]

FILE_BYTES = 10 * 1024 * 1024
MAX_FILES = 50
FORM_BYTES = 5 * FILE_BYTES + 1024 * 1024
"""What the original's proxy let through."""

TARGETS = frozenset({"", ".assets"})
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"})
FILE_HEADERS: Headers = [
    (b"cache-control", b"private, no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]


def _node(facts: dict[str, Any]) -> dict[str, Any]:
    """A file as this protocol shows it. ``lastModified``: milliseconds since 1970."""
    node = {
        "name": facts["name"],
        "type": facts["type"],
        "path": facts["path"],
        "size": facts["size"],
        "lastModified": int(float(facts["modified_s"]) * 1000),
    }
    if "children" in facts:
        node["children"] = [_node(child) for child in facts["children"]]
    return node


# ----------------------------------------------------------------------------- looking


async def list_files(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /list_files/{id}``."""
    notebook = check_id(scope["path_params"]["id"])
    value, _ = await file_op(ctx, scope["forebay.tenant"], notebook, "list")
    await reply_json(send, {"status": "ok", "files": [_node(n) for n in value["files"]]})


async def download(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /download_file/{id}/{filename}``: the bytes, and nothing a browser would run."""
    name = await _named(scope)
    facts, data = await _read(scope, ctx, scope["path_params"]["id"], name)
    await reply(
        send,
        200,
        data,
        [
            *FILE_HEADERS,
            (b"content-type", b"application/octet-stream"),
            (b"content-disposition", disposition(facts["name"])),
        ],
    )


async def _named(scope: Scope) -> str:
    return "/".join(check_path(unquote(scope["path_params"]["file"], errors="replace")))


async def _read(
    scope: Scope, ctx: GatewayContext, notebook: str, name: str
) -> tuple[dict[str, Any], bytes]:
    value, data = await file_op(ctx, scope["forebay.tenant"], check_id(notebook), "read", name=name)
    return value["file"], data


async def get_file(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /get_file``: content as text, or base64 where it is none. Errors are 200."""
    body = await asked(scope, receive)
    if body is None:
        return
    try:
        name = "/".join(check_path(body.filename))
        facts, data = await _read(scope, ctx, body.notebook(), name)
    except ForebayError as error:
        said = words_of(error, language_of(scope))
        await reply_json(send, {"content": "", "size": 0, "lastModified": 0, "error": said})
        return
    node = _node(facts)
    answer: dict[str, Any] = {"size": len(data), "lastModified": node["lastModified"]}
    kind = mimetypes.guess_type(name)[0] or ""
    if kind.startswith("image/"):
        answer["content"] = base64.b64encode(data).decode()
        answer["dataUrl"] = f"data:{kind};base64,{answer['content']}"
    else:
        try:
            answer["content"] = data.decode()
        except UnicodeDecodeError:
            answer["content"] = base64.b64encode(data).decode()
    await reply_json(send, answer)


async def get_info(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /get_file_info``."""
    body = await asked(scope, receive)
    if body is None:
        return
    name = "/".join(check_path(body.filename))
    value, _ = await file_op(ctx, scope["forebay.tenant"], body.notebook(), "info", name=name)
    await reply_json(send, _node(value["file"]))


# ---------------------------------------------------------------------------- changing


async def create(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /create_file``: 400 for a name that leaves the folder, 409 for one in use."""
    body = await asked(scope, receive)
    if body is None:
        return
    value, _ = await file_op(
        ctx,
        scope["forebay.tenant"],
        body.notebook(),
        "write",
        data=body.content.encode("utf-8", "replace"),
        name="/".join(check_path(body.filename)),
        overwrite=body.overwrite,
        make_dirs=body.make_dirs,
    )
    said = say("written", language_of(scope))
    await reply_json(send, {"status": "ok", "message": said, "file": _node(value["file"])})


async def upload(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``POST /upload_file``: any number of files, each into a blob and from there into the
    notebook's folder. None is written unless all may be."""
    if ctx.blobs is None:
        raise StoreFull("uploads have no place to go here")
    tenant = scope["forebay.tenant"]
    limits = FileLimits(field="files", files=MAX_FILES, file_bytes=FILE_BYTES, also=("file",))
    read = await read_uploads(scope, receive, ctx.blobs.of(tenant), limits)
    if read is None:
        return
    form, stored = read
    try:
        notebook, target = _checked(form, stored)
        names = []
        for file in stored:
            path = f"{target}/{file.name}" if target else file.name
            await file_op(ctx, tenant, notebook, "write", blob=file.blob, name=path)
            names.append(file.name)
    finally:
        for file in stored:
            ctx.blobs.drop(file.blob)
    lang = (form.text("lang") or "") or language_of(scope)
    said = say("uploaded", "zh" if lang.startswith("zh") else "en")
    await reply_json(send, {"status": "ok", "message": said, "files": names, "target_dir": target})


def _checked(form: Form, stored: list[Stored]) -> tuple[str, str]:
    """The notebook and the folder in it. Raises `BadRequest`."""
    notebook = check_id(form.text("notebook_id") or "")
    target = form.text("target_dir") or ""
    if target not in TARGETS:
        raise BadRequest("target_dir is neither empty nor .assets", param="target_dir")
    limit = form.text("max_files") or ""
    if limit.isascii() and limit.isdigit() and len(stored) > int(limit[:6]):
        raise BadRequest(f"{len(stored)} files, expected no more than {limit[:6]}", param="files")
    if not stored:
        raise BadRequest("the form holds no file", param="files")
    allowed = _allowed(form.text("allowed_types") or "")
    for file in stored:
        if len(check_path(file.name)) != 1:
            raise BadRequest("a file's name holds a slash", param="files")
        if allowed and not _fits(file, allowed):
            raise BadRequest("a file of a type that is not allowed", param="allowed_types")
    return notebook, target


def _allowed(text: str) -> list[str]:
    """``allowed_types``: a JSON list of extensions, media types or ``image/*``; [] for any."""
    if not text:
        return []
    try:
        return [word.lower() for word in msgspec.json.decode(text, type=list[str]) if word]
    except msgspec.DecodeError as error:
        raise BadRequest("allowed_types is no JSON list", param="allowed_types") from error


def _fits(file: Stored, allowed: list[str]) -> bool:
    name, kind = file.name.lower(), file.type.lower()
    for word in allowed:
        if word in ("*", "*/*") or kind == word:
            return True
        if word.endswith("/*") and kind.startswith(word[:-1]):
            return True
        if "/" not in word and name.endswith("." + word.lstrip(".")):
            return True
    return False


# ------------------------------------------------------------------------------ assets


async def asset(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``GET /assets/{id}/{file}``: a file of the folder `.assets`."""
    name = await _named(scope)
    _, data = await _read(scope, ctx, scope["path_params"]["id"], f".assets/{name}")
    kind = mimetypes.guess_type(name)[0] or ""
    media = kind if kind in PICTURES else "application/octet-stream"
    await reply(send, 200, data, [*FILE_HEADERS, (b"content-type", media.encode())])


async def delete_assets(scope: Scope, receive: Receive, send: Send, ctx: GatewayContext) -> None:
    """``DELETE /assets/{id}``: the folder `.assets` with everything in it."""
    notebook = check_id(scope["path_params"]["id"])
    await file_op(ctx, scope["forebay.tenant"], notebook, "delete", name=".assets")
    await reply_json(send, {"status": "ok", "message": say("deleted", language_of(scope))})


ROUTES = [
    route("POST", "/upload_file", upload, "submit", works=True, body_bytes=FORM_BYTES),
    route("GET", "/list_files/{id}", list_files, "read"),
    route("POST", "/create_file", create, "submit", works=True),
    route("GET", "/download_file/{id}/{file:path}", download, "read"),
    route("POST", "/get_file", get_file, "read"),
    route("POST", "/get_file_info", get_info, "read"),
    route("GET", "/assets/{id}/{file:path}", asset, "read"),
    route("DELETE", "/assets/{id}", delete_assets, "cancel"),
]
