"""The notebook backend's wire (S0) without its language operations: cells, files, words.

Pure translation: requests in, output items and answers out. An item is ``{type, content,
timestamp}`` with type text, html, image, error or unknown; of what a display offers, HTML
wins over a picture, and a picture over plain text. A carriage return overwrites its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from forebay.core.events import Display, Ended, Notice, OutputEvent, Result
from forebay.core.notebook import check_id
from forebay.errors import BadRequest, ForebayError

__all__ = [
    "Body",
    "Outputs",
    "language",
    "overwrite",
    "read_body",
    "say",
    "wanted_mime",
    "words_of",
]

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_ZH = {
    "created": "笔记本已创建",
    "restarted": "内核已重启，文件保留",
    "interrupted": "已请求中断",
    "nothing_runs": "没有正在运行的单元",
    "shut_down": "内核已关闭，文件保留",
    "uploaded": "上传成功",
    "written": "文件已保存",
    "deleted": "已删除",
    "no_notebook": "笔记本不存在",
    "bad_request": "请求无效",
    "not_found": "未找到",
    "file_exists": "文件已存在",
    "too_large": "内容过大",
    "no_workers": "没有可用的内核服务",
    "queue_full": "排队已满，请稍后再试",
    "wait_too_long": "等待时间过长，请稍后再试",
    "quota_exceeded": "已超出配额",
    "store_full": "存储空间不足",
    "draining": "服务正在关闭",
    "kernel_lost": "内核已退出，变量丢失，文件保留",
    "kernel_reaped": "内核因长时间空闲被关闭，变量丢失，文件保留",
    "output_limit": "输出超出上限，其余部分不再显示，单元继续运行",
    "deadline_exceeded": "单元运行超过时间限制",
    "engine_failed": "内核出错",
    "cancelled": "已取消",
}
_EN = {
    "created": "Notebook created",
    "restarted": "Kernel restarted, files kept",
    "interrupted": "Interrupt requested",
    "nothing_runs": "Nothing is running",
    "shut_down": "Kernel shut down, files kept",
    "uploaded": "Files uploaded",
    "written": "File saved",
    "deleted": "Deleted",
    "no_notebook": "Notebook not found",
}


def language(said: object) -> str:
    """``en`` or ``zh``, whatever the client calls it."""
    return "zh" if isinstance(said, str) and said.lower().startswith("zh") else "en"


def say(word: str, lang: str, fact: str = "") -> str:
    """A message for a person. ``fact``: the English words of an error, which follow."""
    if lang != "zh":
        return fact or _EN.get(word, word)
    said = _ZH.get(word, "操作失败" if fact else word)
    return f"{said}（{fact}）" if fact and fact.isascii() else said


class Body(msgspec.Struct, kw_only=True):
    """Any of its JSON requests; each reads what it needs. Other fields are passed over."""

    notebook_id: str = ""
    code: str = ""
    cell: str = ""
    filename: str = ""
    content: str = ""
    overwrite: bool = True
    make_dirs: bool = True
    lang: str | None = None

    def notebook(self) -> str:
        return check_id(self.notebook_id)


_BODY = msgspec.json.Decoder(Body)


def read_body(body: bytes) -> Body:
    """Raises `BadRequest` for what is no JSON object of these types."""
    try:
        return _BODY.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body cannot be read: {str(error)[:200]}") from error


def overwrite(text: str) -> str:
    """What a terminal would show of ``text``: of each line what follows its last return."""
    if "\r" not in text:
        return text
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        kept = line.rstrip("\r")
        lines.append(kept.rpartition("\r")[2])
    return "\n".join(lines)


def wanted_mime(offered: Mapping[str, Any]) -> str:
    """Which of the types on offer is shown; empty: none that is known."""
    for mime in ("text/html", *PICTURES, "image/svg+xml", "text/plain"):
        if mime in offered:
            return mime
    return ""


class Outputs:
    """A cell's output so far, as the list that this protocol sends. Feed it every event in
    order; of `Display` the content that is a blob must have been put back into ``data``."""

    def __init__(self, timestamp: str, lang: str = "en") -> None:
        self.ended: Ended | None = None
        self.status: str = ""  # as the kernel says it
        self.error = ""
        self.timing: dict[str, Any] = {}
        self._timestamp = timestamp
        self._lang = lang
        self._items: list[dict[str, Any]] = []
        self._texts: dict[int, list[str]] = {}  # parts of an item that is a stream
        self._stream = ""  # which stream the last item is, if it is one
        self._named: dict[str, list[int]] = {}  # display id -> items
        self._clear = False

    def take(self, event: OutputEvent) -> None:
        match event:
            case Display():
                self._display(event)
            case Notice():
                said = say(event.code, self._lang, event.message)
                self._add({"type": "text", "content": f"[{said}]\n"})
            case Result():
                self.status = str(event.value.get("status", ""))
                self.timing = dict(event.value.get("timing_ms") or {})
            case Ended():
                self.ended = event
                if event.state in ("failed", "expired"):
                    self.error = say(event.code, self._lang, event.message)
                    self._add({"type": "error", "content": self.error})

    def _display(self, event: Display) -> None:
        match event.what:
            case "":
                return
            case "clear":
                self._clear = True
                if not event.data.get("wait"):
                    self._wipe()
                return
            case "stream":
                self._text(event.name, str(event.data.get("text/plain", "")))
                return
            case "error":
                lines = [str(line) for line in event.data.get("traceback") or ()]
                name, value = event.data.get("ename", ""), event.data.get("evalue", "")
                self.error = f"{name}: {value}"
                self._add({"type": "error", "content": "\n".join(lines) or self.error})
                return
        item = _rich(event.data)
        if event.what == "update":
            for at in self._named.get(event.display_id, ()):
                self._items[at] |= item
            return
        self._add(item)
        if event.display_id:
            self._named.setdefault(event.display_id, []).append(len(self._items) - 1)

    def _text(self, name: str, text: str) -> None:
        self._settle()
        if self._stream != name:
            self._add({"type": "text", "content": ""})
            self._stream = name
        self._texts.setdefault(len(self._items) - 1, []).append(text)

    def _add(self, item: dict[str, Any]) -> None:
        self._settle()
        self._stream = ""
        self._items.append({**item, "timestamp": self._timestamp})

    def _settle(self) -> None:
        """What was to be cleared with the next output is cleared now."""
        if self._clear:
            self._wipe()

    def _wipe(self) -> None:
        self._clear = False
        self._stream = ""
        self._items, self._texts, self._named = [], {}, {}

    @property
    def items(self) -> list[dict[str, Any]]:
        for at, parts in self._texts.items():
            text = "".join(parts)
            parts[:] = [text]
            self._items[at]["content"] = overwrite(text)
        return self._items

    def verdict(self) -> str:
        """ok, error or cancelled."""
        ended = self.ended
        if ended is not None and ended.state == "cancelled":
            return "cancelled"
        if ended is not None and ended.state != "completed":
            return "cancelled" if "restarted" in ended.message else "error"
        return {"ok": "ok", "interrupted": "cancelled"}.get(self.status, "error")


def _rich(data: Mapping[str, Any]) -> dict[str, Any]:
    mime = wanted_mime(data)
    content = data.get(mime, "")
    text = content if isinstance(content, str) else "".join(map(str, content))
    if mime in PICTURES:
        joined = "".join(text.split())
        return {"type": "image", "content": f"data:{mime};base64,{joined}"}
    if mime in ("text/html", "image/svg+xml"):
        return {"type": "html", "content": text}
    if mime == "text/plain":
        return {"type": "text", "content": text}
    return {"type": "unknown", "content": ", ".join(sorted(map(str, data)))[:1000]}


def words_of(error: ForebayError, lang: str) -> str:
    """What failed, in the client's language."""
    return str(error.details.get("word") or say(error.code, lang, error.message))
