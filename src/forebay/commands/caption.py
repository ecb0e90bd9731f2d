"""`forebay caption`: what is said into a microphone, or a file, becomes captions of a room.

Words show here at once, whatever the network does: recognition and the room are two lines,
and each comes back by itself. A reader of the same room measures how long a final takes from
here to a display.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import wave
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from forebay.client import CaptionPublisher, ListenSession, PublisherStatus, Queued, Transcript
from forebay.commands.common import console
from forebay.core.capacity import counted
from forebay.errors import ConfigError, ForebayError, UpstreamFailed
from forebay.lab.stats import percentile

__all__ = ["CaptionOptions", "Lags", "main", "wav_pieces"]

RATE = 16_000
PIECE_S = 0.1
PREVIEW_EVERY_S = 0.15
SHOWN_LINES = 8
KEPT_LAGS = 10_000
LIGHTS = {
    "idle": ("dim", "not connected yet"),
    "ok": ("green", "ok"),
    "retrying": ("yellow", "retrying"),
    "offline": ("red", "offline: captions are kept and sent later"),
    "refused": ("red", "refused"),
    "closed": ("dim", "closed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions:
    """``url``: who recognises; ``server``: where the room is. ``sync`` false: nothing is sent."""

    url: str
    server: str
    room: str
    passphrase: str
    name: str
    wav: Path | None = None
    sync: bool = True
    previews: bool = True
    language: str | None = None
    max_workers: int = 3
    outbox: Path | None = None
    key: str | None = None
    export: Path | None = None


@dataclass(slots=True)
class OnDisplays:
    """How many of the displays that can tell have shown it, and when the last one did."""

    displays: int = 0
    of: int = 0
    lag_s: float | None = None


@dataclass(slots=True)
class Lags:
    """Seconds from a local final to the same caption back here, and on the last display."""

    since: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    displays: dict[int, OnDisplays] = field(default_factory=dict)

    def said(self, seq: int, now: float) -> None:
        for kept in (self.since, self.seconds, self.displays):
            while len(kept) >= KEPT_LAGS:
                del kept[next(iter(kept))]
        self.since[seq] = now

    def came(self, seq: int, now: float) -> None:
        """It came back to us, as to any reader of the room."""
        if seq in self.since and seq not in self.seconds:
            self.seconds[seq] = now - self.since[seq]

    def shown(self, news: Mapping[str, Any], now: float) -> None:
        """It stands on the displays of one gateway."""
        since = self.since.get(int(news["seq"]))
        if since is None:
            return
        one = self.displays.setdefault(int(news["seq"]), OnDisplays())
        one.displays += int(news["displays"])
        one.of += int(news["of"])
        if news["displays"]:
            one.lag_s = max(one.lag_s or 0.0, now - since - news["ago_ms"] / 1000)

    def words(self) -> str:
        return _spread(list(self.seconds.values()))

    def shown_words(self) -> str:
        """The slowest display, and how many there were for the newest caption."""
        if not self.displays:
            return "no display tells"
        newest = next(reversed(self.displays.values()))
        said = _spread([one.lag_s for one in self.displays.values() if one.lag_s is not None])
        return f"{said} ({newest.displays} of {newest.of} displays)"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    p50, p99 = percentile(seconds, 50) * 1000, percentile(seconds, 99) * 1000
    return f"last {seconds[-1] * 1000:.0f} ms, p50 {p50:.0f}, p99 {p99:.0f}"


# ----------------------------------------------------------------------------- sound


async def wav_pieces(path: Path) -> AsyncGenerator[bytes, None]:
    """A WAV file as mono 16 kHz, in real time. Raises `ConfigError` for anything else."""
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (OSError, wave.Error, EOFError) as exc:
        raise ConfigError(f"{path.name} cannot be read as a WAV file: {exc}") from exc
    if width != 2 or not rate:
        raise ConfigError(f"{path.name} has {8 * width} bits a sample, expected 16")
    samples = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2")
    mono = samples.reshape(-1, channels).mean(axis=1).astype(np.float32)
    if rate != RATE:
        import soxr

        mono = soxr.resample(mono, rate, RATE)
    sound = np.clip(mono, -32768, 32767).astype("<i2").tobytes()
    began, step = time.monotonic(), int(PIECE_S * RATE) * 2
    for number, at in enumerate(range(0, len(sound), step), 1):
        yield sound[at : at + step]
        await asyncio.sleep(max(0.0, began + number * PIECE_S - time.monotonic()))


def _sound_devices() -> Any:
    """The package that reads microphones. Raises `ConfigError` where it cannot work here."""
    try:
        import sounddevice
    except (ImportError, OSError) as exc:
        raise ConfigError(
            "--mic needs PortAudio and the package sounddevice: pip install sounddevice, and on "
            "Debian apt-get install libportaudio2; or use the page /speak, or --wav FILE"
        ) from exc
    return sounddevice


async def mic_pieces() -> AsyncGenerator[bytes, None]:
    """The default microphone. Raises `ConfigError` where there is none."""
    sounddevice = _sound_devices()
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=100)

    def heard(data: Any, frames: int, when: Any, status: Any) -> None:
        loop.call_soon_threadsafe(_offer, pieces, bytes(data))

    try:
        with sounddevice.RawInputStream(
            samplerate=RATE,
            channels=1,
            dtype="int16",
            blocksize=int(PIECE_S * RATE),
            callback=heard,
        ):
            while True:
                yield await pieces.get()
    except sounddevice.PortAudioError as exc:
        raise ConfigError(f"no microphone can be used: {exc}") from exc


def _offer(pieces: asyncio.Queue[bytes], data: bytes) -> None:
    if pieces.full():
        pieces.get_nowait()  # ten seconds behind: the oldest sound goes
    pieces.put_nowait(data)


# ---------------------------------------------------------------------------- screen


@dataclass(slots=True)
class _Screen:
    options: CaptionOptions
    lags: Lags
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=SHOWN_LINES))
    partial: str = ""
    queue: str = ""

    def draw(self, status: PublisherStatus | None) -> Group:
        text = Text("\n".join(self.lines))
        if self.partial:
            text.append(("\n" if self.lines else "") + self.partial, style="dim italic")
        if self.queue:
            text.append(f"\n{self.queue}", style="yellow")
        where = f"{self.options.server}/display?room={self.options.room}"
        below = Text("not sent (--no-sync)", style="dim")
        if status is not None:
            style, word = LIGHTS[status.state]
            counts = status.counters
            below = Text.assemble(
                ("● ", style), (word, style), f"  {status.reason}\n" if status.reason else "\n",
                f"sent {counts.sent}  queued {counts.queued}  retried {counts.retried}  "
                f"dropped {counts.dropped}  errors {counts.errors}\n",
                f"to the room and back: {self.lags.words()}\n",
                f"on the last display: {self.lags.shown_words()}",
            )  # fmt: skip
        return Group(Panel(text, title=where, title_align="left"), below)


async def _watch(options: CaptionOptions, client_id: str, lags: Lags) -> None:
    """A display of our own, for as long as we speak."""
    headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
    query = {"room": options.room, "passphrase": options.passphrase, "history": "0", "shown": "1"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with http.get(f"{options.server}/api/stream", params=query) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            said = json.loads(line[6:])
                            if said.get("client_id") != client_id or not said.get("seq"):
                                continue
                            if "displays" in said:
                                lags.shown(said, time.monotonic())
                            else:
                                lags.came(int(said["seq"]), time.monotonic())
            await asyncio.sleep(1)


async def _hear(
    options: CaptionOptions, ear: ListenSession, publisher: CaptionPublisher | None, screen: _Screen
) -> None:
    told = 0.0
    async for news in ear:
        if isinstance(news, Queued):
            screen.queue = f"waiting, place {news.position}" if news.position else ""
        elif isinstance(news, Transcript) and news.final:
            screen.partial, screen.queue = "", ""
            if text := news.text.strip():
                screen.lines.append(text)
                if publisher is not None:
                    screen.lags.said(publisher.send(text[:2000]), time.monotonic())
        elif isinstance(news, Transcript):
            screen.partial = news.text.strip()
            due = time.monotonic() - told >= PREVIEW_EVERY_S
            if publisher is not None and options.previews and screen.partial and due:
                told = time.monotonic()
                publisher.send(screen.partial[:2000], preview=True)


async def _say(options: CaptionOptions, ear: ListenSession) -> None:
    pieces = mic_pieces() if options.wav is None else wav_pieces(options.wav)
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            await ear.say(piece)
    await ear.end()


async def _run(options: CaptionOptions, publisher: CaptionPublisher | None) -> Lags:
    lags = Lags()
    screen = _Screen(options, lags)
    listen = options.url.replace("http", "ws", 1) + "/v1/listen"
    facts: dict[str, Any] = {"language": options.language} if options.language else {}

    async def redraw(live: Live) -> None:
        while True:
            live.update(screen.draw(publisher.status if publisher else None))
            await asyncio.sleep(0.1)

    with Live(console=console, refresh_per_second=10) as live:
        async with ListenSession(listen, key=options.key, **facts) as ear:
            async with asyncio.TaskGroup() as tasks:
                around = [tasks.create_task(redraw(live))]
                if publisher is not None:
                    watch = _watch(options, publisher.client_id, lags)
                    around.append(tasks.create_task(watch))
                saying = tasks.create_task(_say(options, ear))
                await _hear(options, ear, publisher, screen)
                await saying
                if publisher is not None:
                    await asyncio.to_thread(publisher.flush, 5.0)
                    await asyncio.sleep(0.3)  # the last caption comes back to our own display
                for task in around:
                    task.cancel()
        live.update(screen.draw(publisher.status if publisher else None))
    return lags


def _told(error: BaseExceptionGroup[BaseException]) -> BaseException:
    """What several tasks ended with, as the one error that caused it."""
    first: BaseException = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, ForebayError) else error


def main(options: CaptionOptions) -> int:
    """Caption until the file, or the person, is done; returns the exit status. Raises
    `ConfigError` for a microphone or file that cannot be read, `UpstreamFailed` where nobody
    recognises."""
    if options.wav is None:
        _sound_devices()  # before anything is begun
    publisher = None
    if options.sync:
        publisher = CaptionPublisher(
            options.server, room=options.room, passphrase=options.passphrase,
            user_name=options.name, outbox=options.outbox, max_workers=options.max_workers,
            key=options.key,
        )  # fmt: skip
    lags = Lags()
    try:
        lags = asyncio.run(_run(options, publisher))
    except KeyboardInterrupt:
        console.print("stopped")
    except BaseExceptionGroup as error:
        raise _told(error) from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamFailed(f"{options.url} cannot be reached: {error}") from error
    finally:
        counters = publisher.close().counters if publisher is not None else None
    if options.export is not None:
        found = {
            "counters": None if counters is None else asdict(counters),
            "lag_s": list(lags.seconds.values()),
            "shown": [{"seq": seq, **asdict(one)} for seq, one in lags.displays.items()],
            "room": options.room,
        }
        options.export.write_text(json.dumps(found, indent=2), encoding="utf-8")
    left = counters.queued if counters is not None else 0
    if left:
        kept = "kept in the outbox" if options.outbox else "lost: no --outbox was given"
        console.print(f"{counted(left, 'caption')} could not be sent: {kept}")
    return 1 if left and options.outbox is None else 0
