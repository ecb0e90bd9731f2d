"""Which browser, and how it is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from forebay.core.audio import wav_header
from forebay.core.tones import speak

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]

SOUND = speak(range(100))
"""What a browser's microphone hears, over and over, where it has one."""


def recording(folder: Path) -> Path:
    """`SOUND` as a file in ``folder``."""
    path = folder / "words.wav"
    path.write_bytes(wav_header(16_000, 1, data_bytes=len(SOUND)) + SOUND)
    return path
