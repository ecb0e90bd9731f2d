"""Kokoro-82M (int8 ONNX) speaking Mandarin: text to phonemes by misaki, phonemes to audio.

One call makes the audio of one piece and cannot be stopped; it takes about as long as the
audio lasts on two cores. So pieces are short, and calls run one after another (``lanes``).

English words inside Chinese are spoken by the same voice: their phonemes come from hibari,
which writes the alphabet Kokoro reads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from forebay.engines.sound import Samples

__all__ = ["RATE", "VOICES", "Kokoro", "normalise"]

RATE = 24_000
VOICES = (
    "zf_xiaoxiao",
    "zf_xiaobei",
    "zf_xiaoni",
    "zf_xiaoyi",
    "zm_yunxi",
    "zm_yunjian",
    "zm_yunxia",
    "zm_yunyang",
)

_MODEL = "kokoro-v1.0.int8.onnx"
_STYLES = (510, 1, 256)  # one style for every length of phonemes
_MAX_TOKENS = 509
_POLL_S = 0.05
_G2P_ERRORS = (ValueError, KeyError, IndexError, AssertionError, UserWarning)
_MAX_NUMBER_DIGITS = 15  # what cn2an can say as one number

# Kokoro's symbols and their numbers: from config.json of hexgrad/Kokoro-82M (Apache-2.0).
_SYMBOLS = dict(
    zip(
        ';:,.!?—…"()“” \u0303ʣʥʦʨᵝ\uab67AIOQSTWYᵊabcdefhijklmnopqrstuvwxyz'
        "ɑɐɒæβɔɕçɖðʤəɚɛɜɟɡɥɨɪʝɯɰŋɳɲɴøɸθœɹɾɻʁɽʂʃʈʧʊʋʌɣɤχʎʒʔˈˌːʰʲ↓→↗↘ᵻ",
        [
            *(1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23),
            *(24, 25, 31, 33, 35, 36, 39, 41, 42, 43, 44, 45, 46, 47, 48),
            *range(50, 73),
            *(75, 76, 77, 78, 80, 81, 82, 83, 85, 86, 87, 90, 92, 99, 101, 102, 103, 110),
            *(111, 112, 113, 114, 115, 116, 118, 119, 120, 123, 125, 126, 128, 129, 130, 131),
            *(132, 133, 135, 136, 138, 139, 140, 142, 143, 147, 148, 156, 157, 158, 162, 164),
            *(169, 171, 172, 173, 177),
        ],
        strict=True,
    )
)


class Kokoro:
    """One loaded model. Blocking; safe from several threads, which take turns.

    ``english``: phonemes of an English phrase in the misaki alphabet.
    """

    def __init__(
        self, folder: Path, *, threads: int, lanes: int, english: Callable[[str], str]
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between two operators take the cores from everybody else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / _MODEL), options, providers=["CPUExecutionProvider"]
        )
        self._styles = {
            name: np.fromfile(folder / f"{name}.bin", "<f4").reshape(_STYLES) for name in VOICES
        }
        self._g2p = _g2p(folder)
        self._english = english
        self._lanes = threading.BoundedSemaphore(lanes)

    def speak(
        self, text: str, voice: str, speed: float, stopped: Callable[[], bool]
    ) -> Samples | None:
        """The audio of ``text``, empty when nothing in it can be said; None when stopped
        while another call was at work."""
        tokens = self.tokens(text)
        if not tokens:
            return np.zeros(0, np.float32)
        with self._turn(stopped) as mine:
            return self._run(tokens, voice, speed) if mine else None

    def tokens(self, text: str) -> list[int]:
        """Phonemes of ``text`` as numbers; what the model has no symbol for is left out."""
        found = [_SYMBOLS[c] for c in self._phonemes(text) if c in _SYMBOLS]
        return found[:_MAX_TOKENS]

    def _phonemes(self, text: str) -> str:
        parts = []
        for english, other in _WORDS.findall(normalise(text)):
            if english:
                parts.append(f" {self._english(english).strip(' .')} ")
            elif other.strip():
                parts.append(self._chinese(other))
        return "".join(parts).strip()

    def _chinese(self, text: str) -> str:
        """misaki fails on some seventy rare characters: then all but those are said."""
        try:
            return str(self._g2p(text)[0])
        except _G2P_ERRORS:
            if len(text) == 1:
                return ""
            return "".join(self._chinese(char) for char in text)

    def _run(self, tokens: list[int], voice: str, speed: float) -> Samples:
        found = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": self._styles[voice][len(tokens) - 1],
                "speed": np.array([speed], np.float32),
            },
        )[0]
        return np.asarray(found, np.float32).ravel()

    def _turn(self, stopped: Callable[[], bool]) -> _Turn:
        return _Turn(self._lanes, stopped)


class _Turn:
    """Waits for a lane, looking up now and then to see whether anybody still wants it."""

    def __init__(self, lanes: threading.BoundedSemaphore, stopped: Callable[[], bool]) -> None:
        self._lanes, self._stopped, self._held = lanes, stopped, False

    def __enter__(self) -> bool:
        while not self._held and not self._stopped():
            self._held = self._lanes.acquire(timeout=_POLL_S)
        return self._held

    def __exit__(self, *exc: object) -> None:
        if self._held:
            self._lanes.release()


_WORDS = re.compile(r"([A-Za-z][A-Za-z '’-]*[A-Za-z]|[A-Za-z])|([^A-Za-z]+)")

_RULES: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"(?<!\d)(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)"), r"\1年\2月\3日"),
    (re.compile(r"(?<!\d)(\d{1,2})[:：](\d{2})(?!\d)"), r"\1点\2分"),
    (re.compile(r"[￥¥](\d[\d,]*(?:\.\d+)?)"), r"\1元"),
    (re.compile(r"\$(\d[\d,]*(?:\.\d+)?)"), r"\1美元"),
    (re.compile(r"(?<=\d),(?=\d{3})"), ""),
    (re.compile(r"(?<=\d)[-~～–—](?=\d)"), "到"),
    (
        re.compile(rf"\d{{{_MAX_NUMBER_DIGITS + 1},}}"),
        lambda match: "".join("零一二三四五六七八九"[int(digit)] for digit in match[0]),
    ),
)


def normalise(text: str) -> str:
    """Dates, times, money and numbers as misaki's reader expects them. Pure."""
    text = "".join(chr(ord(c) - 0xFEE0) if "０" <= c <= "９" else c for c in text)
    text = text.replace("〇", "零")
    for pattern, word in _RULES:
        text = pattern.sub(word, text)
    return text


def _g2p(folder: Path) -> Callable[[str], tuple[str, Any]]:
    import jieba
    from misaki.zh import ZHG2P

    jieba.setLogLevel("WARNING")
    # Its cache is a marshal file: never read one from a folder that others may write.
    jieba.dt.tmp_dir = str(folder)
    jieba.initialize()
    reader: Callable[[str], tuple[str, Any]] = ZHG2P()
    return reader
