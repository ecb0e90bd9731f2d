"""Recorded, not judged: Enter to first word and first sound with the real local models.

One person at a time, through `/chat`, as the console does it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time

import aiohttp
import msgspec

from benchmarks.harness import options, report, run, serving
from forebay.lab.stats import summary

PROMPTS = (
    "Tell me about rivers in three sentences.",
    "Why does a dam need a quiet pool?",
    "Name two things that float on water.",
)


async def ask(http: aiohttp.ClientSession, url: str, prompt: str) -> dict[str, float]:
    found: dict[str, float] = {"audio_s": 0.0, "chars": 0.0}
    async with http.ws_connect(url, compress=0, max_msg_size=1 << 20) as socket:
        at = time.monotonic()
        first = {
            "prompt": prompt,
            "session_id": secrets.token_hex(16),
            "audio_format": "pcm16_wav",
            "sample_rate": 24000,
            "channels": 1,
        }
        await socket.send_str(msgspec.json.encode(first).decode())
        async for message in socket:
            said = msgspec.json.decode(message.data)
            now = time.monotonic() - at
            match said["type"]:
                case "llm_delta":
                    found.setdefault("word_s", now)
                    found["chars"] += len(said["delta"])
                case "audio_chunk":
                    found.setdefault("sound_s", now)
                    found["audio_s"] += len(base64.b64decode(said["audio_base64"])) / 48000
                case "llm_done":
                    found["written_s"] = now
                case "orchestrator_error":
                    raise RuntimeError(said["message"])
    return found


async def main() -> int:
    wanted = options(__doc__ or "", rounds=5)
    with serving(ready_s=300) as server:
        pools = server.get("/api/status")["pools"]
        await asyncio.to_thread(server.wait_spares)
        async with aiohttp.ClientSession() as http:
            url = server.tts.replace("/tts", "/chat")
            await ask(http, url, "Hello.")
            runs = [
                await ask(http, url, PROMPTS[i % len(PROMPTS)]) for i in range(wanted.rounds * 3)
            ]
    word, sound = (summary([r[k] for r in runs]) for k in ("word_s", "sound_s"))
    rows: list[tuple[str, str, str, bool | None]] = [
        ("models", ", ".join(p["name"] for p in pools), "", None),
        ("Enter to first word p50 / p99", f"{word['p50_ms']} / {word['p99_ms']} ms", "", None),
        ("Enter to first sound p50 / p99", f"{sound['p50_ms']} / {sound['p99_ms']} ms", "", None),
        (
            "characters / s while writing",
            f"{sum(r['chars'] for r in runs) / sum(r['written_s'] for r in runs):.0f}",
            "",
            None,
        ),
        ("speech per answer", f"{sum(r['audio_s'] for r in runs) / len(runs):.1f} s", "", None),
    ]
    return report("real models", rows, wanted.output_json, runs=runs)


if __name__ == "__main__":
    run(main)
