"""Photo enhancement as the original REST service spoke it: forms in, JSON out, then polling.

Words, numbers and shapes only. A task is an image job, and everything that must survive its
gateway is in the job: the client's file name, when it was created, and which batch it belongs
to. A batch has no record of its own: the ids of its tasks follow from the batch's, and each
task knows how many there are.

``progress`` is 0..1. A cancelled task is ``failed``: the original's clients wait for no other
word. Event streams (our addition) use the words of `PhotoWords`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from forebay.core.events import Ended, Notice, OutputEvent, Progress, Result, Tile
from forebay.core.spec import JobView, QueuePlace
from forebay.dialects import error_of
from forebay.dialects.job_events import Body, error_body, is_replaced, place_body
from forebay.errors import BadRequest, ForebayError

__all__ = [
    "BATCH_FILES",
    "DIALECT",
    "FILE_BYTES",
    "PhotoWords",
    "Standing",
    "Unprocessable",
    "batch_body",
    "check_file",
    "clean_name",
    "disposition",
    "enhanced_name",
    "list_body",
    "new_task_id",
    "read_wish",
    "sub_task_id",
    "task_body",
]

DIALECT = "photos"
FILE_BYTES = 50 * 1024 * 1024
BATCH_FILES = 20

TILE_SIZES = (256, 512)
TILE_SIZE = 400
LEVELS = {"fast": 256, "medium": 400, "high": 512}
"""Each level's largest tile."""
MODES = ("photo", "perceptual", "face")
FORMATS = ("jpeg", "png", "webp")
EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".tiff", ".tif", ".webp")
NAME_CHARS = 120
EXTENSION_CHARS = 12


class Unprocessable(BadRequest):
    """A parameter is out of its range (422, as FastAPI has it)."""

    code = "unprocessable"
    http_status = 422


# ------------------------------------------------------------------------------ requests


def read_wish(query: Mapping[str, str], fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The engine's parameters. Both ways of sending them count; the query wins.

    Raises `Unprocessable`."""

    def said(name: str) -> str | None:
        values = fields.get(name)
        return query.get(name, values[-1] if values else None)

    level = _one_of("quality_level", said("quality_level"), tuple(LEVELS), "high")
    tile = _whole("tile_size", said("tile_size"), TILE_SIZE, *TILE_SIZES)
    params: dict[str, Any] = {
        "tile_size": min(tile, LEVELS[level]),
        "quality_level": level,
        "mode": _one_of("mode", said("mode"), MODES, "photo"),
        "format": _one_of("format", said("format"), FORMATS, "jpeg"),
    }
    if said("quality") is not None:
        params["quality"] = _whole("quality", said("quality"), 95, 1, 100)
    return params


def _one_of(name: str, value: str | None, words: tuple[str, ...], default: str) -> str:
    if value is None or value == "":
        return default
    if value not in words:
        raise Unprocessable(f"{name} is not one of {', '.join(words)}", param=name)
    return value


def _whole(name: str, value: str | None, default: int, low: int, high: int) -> int:
    if value is None or value == "":
        return default
    if not (value.isascii() and value.isdigit() and low <= int(value[:9]) <= high):
        raise Unprocessable(f"{name} is not a whole number from {low} to {high}", param=name)
    return int(value)


def check_file(name: str, kind: str) -> None:
    """What the client says of its file, where it says anything: the bytes decide later.

    Raises `BadRequest` for another content type or extension."""
    kind = kind.partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise BadRequest("the part's content type is not an image's", word="File must be an image")
    base = re.split(r"[/\\]", name)[-1]
    dot = base.rfind(".")
    if dot > 0 and base[dot:].lower() not in TAKEN:
        raise BadRequest(
            "the file's extension is not an image's",
            word=f"Unsupported file format. Supported: {', '.join(TAKEN)}",
        )


def clean_name(name: str) -> str:
    """A client's file name, as text that may be shown and sent back.

    It is never a path: separators and what precedes them, control and formatting characters
    are gone."""
    base = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in base if unicodedata.category(c)[0] != "C")
    stem, extension = _halves(re.sub(r"\.{2,}", ".", kept).strip(" ."))
    return (stem[:NAME_CHARS].rstrip(" .") or "photo") + extension[:EXTENSION_CHARS]


def _halves(name: str) -> tuple[str, str]:
    """What stands before the last dot, and the rest with it."""
    at = name.rfind(".")
    return (name[:at], name[at:]) if at > 0 else (name, "")


def enhanced_name(params: Mapping[str, Any]) -> str:
    """``<stem>_enhanced.<extension of the result>``."""
    stem, _ = _halves(str(params.get("filename") or "photo"))
    return f"{stem}_enhanced.{EXTENSIONS.get(str(params.get('format')), 'jpg')}"


def disposition(name: str) -> bytes:
    """Content-Disposition of a download, for any name."""
    plain = "".join(c if c.isascii() and c not in '"\\%;' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()


# ----------------------------------------------------------------------------------- ids


def new_task_id(random: str) -> str:
    """``random``: 128 random bits in hex."""
    return str(uuid.UUID(hex=random, version=4))


def sub_task_id(batch: str, index: int) -> str:
    """The id of a batch's task. Nobody who does not know the batch's can guess it."""
    digest = hashlib.sha256(f"{batch}:{index}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


# ------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one task stands: its job, and the newest events that say more."""

    view: JobView
    progress: float = 0.0
    stage: str = ""
    eta_s: float | None = None
    result: Result | None = None
    ended: Ended | None = None
    now_s: float = 0.0  # on the broker's clock

    @classmethod
    def of(cls, view: JobView, events: Sequence[OutputEvent], now_s: float) -> Standing:
        """``events``: the newest of the job, oldest first; a few will do."""
        progress, stage, eta_s = 0.0, "", None
        result: Result | None = None
        ended: Ended | None = None
        for event in events:
            match event:
                case Progress() if not is_replaced(event):
                    progress, stage, eta_s = event.value, event.stage, event.eta_s
                case Result():
                    result = event
                case Ended():
                    ended = event
        return cls(view=view, progress=progress, stage=stage, eta_s=eta_s, result=result,
                   ended=ended, now_s=now_s)  # fmt: skip

    @property
    def task_id(self) -> str:
        return self.view.spec.name

    @property
    def status(self) -> str:
        state = self.view.state
        if state == "completed":
            return "completed"
        if state in ("failed", "cancelled", "expired"):
            return "failed"
        # A task that has begun does not go back to the queue for its clients.
        return "processing" if state == "running" or self.view.attempts else "queued"

    @property
    def share(self) -> float:
        if self.status == "completed":
            return 1.0
        return round(min(0.99, max(0.0, self.progress)), 4)

    @property
    def error(self) -> str | None:
        if self.status != "failed":
            return None
        if self.view.state == "cancelled":
            return "Task cancelled"
        return self.view.message or self.view.code or "Task failed"

    @property
    def created_at(self) -> float:
        return float(self.view.spec.params.get("created_at", 0.0))

    @property
    def updated_at(self) -> float:
        view = self.view
        latest = view.created_s
        if view.ended_s is not None:
            latest = view.ended_s
        elif view.started_s is not None:
            latest = self.now_s if self.status == "processing" else view.started_s
        return self.created_at + max(0.0, latest - view.created_s)

    @property
    def processing_time(self) -> float | None:
        view = self.view
        if view.started_s is None or view.ended_s is None:
            return None
        return round(max(0.0, view.ended_s - view.started_s), 3)

    @property
    def message(self) -> str:
        place = self.view.place
        if self.status == "queued" and place is not None:
            about = "" if place.eta_s is None else f", about {place.eta_s:.0f} s"
            return f"Waiting: place {place.position}{about}"
        return {
            "queued": "Waiting",
            "processing": "Image is being enhanced",
            "completed": "Image enhancement completed",
        }.get(self.status, f"Image enhancement failed: {self.error}")


def result_url(task: str) -> str:
    return f"/api/v1/download/{task}"


def task_body(standing: Standing) -> dict[str, Any]:
    """``GET /api/v1/status/{id}``. ``position`` and ``eta_s`` are our additions."""
    task, place = standing.task_id, standing.view.place
    waits = standing.status == "queued" and place is not None
    return {
        "task_id": task,
        "status": standing.status,
        "message": standing.message,
        "progress": standing.share,
        "result_url": result_url(task) if standing.status == "completed" else None,
        "error": standing.error,
        "created_at": standing.created_at,
        "updated_at": standing.updated_at,
        "processing_time": standing.processing_time,
        "position": place.position if waits and place is not None else None,
        "eta_s": _tenths(place.eta_s) if waits and place is not None else _tenths(standing.eta_s),
        "tiles_done": standing.view.marks.get("tiles", 0),
    }


def _tenths(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s, 1)


def batch_body(batch: str, tasks: Sequence[Standing]) -> dict[str, Any]:
    """``GET /api/v1/batch/status/{id}``: counts of this moment."""
    done = sum(task.status == "completed" for task in tasks)
    failed = sum(task.status == "failed" for task in tasks)
    over = done + failed == len(tasks)
    if over:
        status = "completed" if not failed else "partial_completed" if done else "failed"
    else:
        status = "queued" if all(task.status == "queued" for task in tasks) else "processing"
    share = sum(1.0 if task.status == "failed" else task.share for task in tasks)
    return {
        "batch_task_id": batch,
        "status": status,
        "total_files": len(tasks),
        "completed_files": done,
        "failed_files": failed,
        "progress": round(share / len(tasks), 4),
        "sub_tasks": [
            {
                "task_id": task.task_id,
                "status": task.status,
                "filename": str(task.view.spec.params.get("filename", "")),
                "progress": task.share,
                "error": task.error,
            }
            for task in tasks
        ],
        "created_at": min(task.created_at for task in tasks),
        "updated_at": max(task.updated_at for task in tasks),
        "message": f"{done} of {len(tasks)} done" + (f", {failed} failed" if failed else ""),
    }


def list_body(tasks: Sequence[Standing]) -> dict[str, Any]:
    """``GET /api/v1/tasks``."""
    return {
        "total_tasks": len(tasks),
        "tasks": [
            {
                "task_id": task.task_id,
                "status": task.status,
                "created_at": task.created_at,
                "updated_at": task.updated_at,
            }
            for task in tasks
        ],
    }


# -------------------------------------------------------------------------------- events


class PhotoWords:
    """Events of one task for its page; an `EventWords`.

    ``queued`` with place and time, ``processing``, ``progress``, ``tile`` with a URL,
    ``result``, and at the end ``completed`` or ``error``."""

    def __init__(self, task: str) -> None:
        self._task = task

    def opening(self, view: JobView) -> Sequence[Body]:
        standing = Standing.of(view, (), view.created_s)
        body: Body = {"type": "task", "task_id": self._task, "status": standing.status}
        if standing.status == "queued" and view.place is not None:
            return (body, *self.place(view.place))
        return (body,)

    def event(self, event: OutputEvent) -> Sequence[Body]:
        match event:
            case Progress() if not is_replaced(event):
                eta_s = _tenths(event.eta_s)
                return ({"type": "progress", "progress": event.value, "stage": event.stage,
                         "eta_s": eta_s},)  # fmt: skip
            case Tile():
                return (self._tile(event),)
            case Result():
                return (self._result(event),)
            case Notice():
                return ({"type": "notice", "code": event.code, "message": event.message},)
            case Ended():
                return (self._ended(event),)
            case _:
                return ()

    def _tile(self, event: Tile) -> Body:
        return {
            "type": "tile",
            "index": event.index,
            "total": event.total,
            "tiles": event.tiles,
            "x": event.x,
            "y": event.y,
            "width": event.width,
            "height": event.height,
            "url": f"/api/v1/tasks/{self._task}/tiles/{event.index}",
        }

    def _result(self, event: Result) -> Body:
        return {
            "type": "result",
            "url": result_url(self._task),
            "width": event.width,
            "height": event.height,
            "size_bytes": event.size_bytes,
            "sha256": event.sha256,
            "content_type": event.type,
        }

    def _ended(self, event: Ended) -> Body:
        if event.state == "completed":
            return {"type": "completed", "task_id": self._task, "status": "completed",
                    "result_url": result_url(self._task)}  # fmt: skip
        if event.state == "cancelled":
            return {"type": "error", "status": "failed", "code": "cancelled",
                    "message": "Task cancelled"}  # fmt: skip
        return {**error_body(error_of(event)), "status": "failed"}

    def place(self, place: QueuePlace) -> Sequence[Body]:
        return (place_body(place),)

    def lease(self, running: bool) -> Sequence[Body]:
        return ({"type": "processing"},) if running else ({"type": "recovering"},)

    def error(self, error: ForebayError) -> Sequence[Body]:
        return (error_body(error),)
