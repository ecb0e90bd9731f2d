"""What a piece of audio is, from its first bytes: a complete file, or headerless samples.

Clients of one protocol send either without saying which. A wrong guess in either direction
is noise for the recogniser, so magic that can also be two ordinary samples (an mp3 frame's)
counts only where frames of the same kind follow it.
"""

from __future__ import annotations

__all__ = ["is_file"]

MAGIC: tuple[tuple[int, bytes], ...] = (
    (0, b"OggS"),
    (0, b"fLaC"),
    (0, b"\x1a\x45\xdf\xa3"),  # EBML: WebM, Matroska
    (4, b"ftyp"),  # mp4, m4a
)
_FIRST = (b"R", b"O", b"f", b"\x1a", b"I", b"\xff")
"""What all of them but mp4 begin with: samples seldom do."""
MP3_KBIT = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def is_file(data: bytes) -> bool:
    """Whether ``data`` is a complete container (WAV, Ogg, WebM, mp4, FLAC, mp3)."""
    if data[:1] not in _FIRST and data[4:8] != b"ftyp":
        return False
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return True
    if any(data[at : at + len(magic)] == magic for at, magic in MAGIC):
        return True
    if data[:3] == b"ID3" and len(data) > 10 and data[3] < 0xFF and max(data[6:10]) < 0x80:
        return True
    return _is_mp3(data)


def _is_mp3(data: bytes) -> bool:
    """Whether two frames of one kind follow one another, and a third where there is room."""
    at = 0
    for _ in range(3):
        length = _mp3_frame(data, at)
        if length == 0 or data[at + 1] != data[1] or data[at + 2] & 0x0C != data[2] & 0x0C:
            return False
        at += length
        if len(data) < at + 4:
            break
    return at > _mp3_frame(data, 0)


def _mp3_frame(data: bytes, at: int) -> int:
    """The length of the layer III frame that begins at ``at``; 0 if none does."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, bits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return 0
    newest = version == 3
    kbit = MP3_KBIT[1 if newest else 2][bits]
    samples = 144 if newest else 72
    return samples * kbit * 1000 // MP3_RATES[version][rate] + (head[2] >> 1 & 1)
