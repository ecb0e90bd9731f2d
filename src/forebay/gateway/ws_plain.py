"""The usual WebSocket frame, read without the codec: whole, masked, unfragmented.

Nearly everything that clients send is one such frame in one read. Whatever is not (control
frames, fragments, frames in pieces, anything malformed) goes to the codec as before. The two
may take turns only between frames, so `FrameEdge` follows what the codec is given.
"""

from __future__ import annotations

from struct import Struct

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # C where compiled

__all__ = ["FrameEdge", "plain_frame"]

_PLAIN = (0x81, 0x82)  # final, text or binary, no extension
_MASKED = 0x80
_SHORT = Struct("!H")
_LONG = Struct("!Q")


def plain_frame(data: bytes, at: int, limit_bytes: int) -> tuple[bool, bytes, int] | None:
    """The frame that begins at ``at``: (whether it is text, its payload, where it ends); None
    where it is not plain, not whole, or longer than ``limit_bytes``."""
    if len(data) - at < 6 or data[at] not in _PLAIN or not data[at + 1] & _MASKED:
        return None
    size, body = data[at + 1] & 0x7F, at + 2
    if size >= 126:
        size, body = _size(data, at)
    end = body + 4 + size
    if size > limit_bytes or end > len(data):
        return None
    payload = apply_mask(data[body + 4 : end], data[body : body + 4])
    return data[at] == 0x81, payload, end


def _size(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Payload bytes of a longer frame, and where the mask begins. Bytes that are missing count
    as a frame that is not whole; a length in a longer form than it needs is the codec's to
    refuse."""
    size = data[at + 1] & 0x7F
    if size == 126:
        size = data[at + 2] << 8 | data[at + 3]
        return (size if size >= 126 else 1 << 63), at + 4
    return 1 << 63, at + 10


class FrameEdge:
    """Whether the codec, after all that it was fed, stands between two frames."""

    __slots__ = ("_head", "_left", "lost")

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0
        self.lost = False  # it was fed something else: nobody knows

    @property
    def between(self) -> bool:
        return not (self._left or self._head or self.lost)

    def fed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            self._left = self._frame_left()
            if self._left >= 0:
                self._head.clear()
            else:
                self._left = 0

    def _frame_left(self) -> int:
        """What of the frame follows its length; -1 while the length is not known."""
        head = self._head
        if len(head) < 2:
            return -1
        mask = 4 if head[1] & _MASKED else 0
        size = head[1] & 0x7F
        if size < 126:
            return size + mask
        if size == 126:
            return -1 if len(head) < 4 else _SHORT.unpack_from(head, 2)[0] + mask
        return -1 if len(head) < 10 else _LONG.unpack_from(head, 2)[0] + mask
