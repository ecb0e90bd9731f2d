"""The floor for `/tts`: a bare WebSocket server that answers from memory.

No sessions, no queue, no engine, no recovery: at every clause mark it sends one frame of
audio made beforehand. What Forebay adds is measured against this.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json

from websockets.asyncio.server import ServerConnection, serve

TONE = base64.b64encode(bytes(1280)).decode()  # 40 ms at 16 kHz


async def talk(socket: ServerConnection) -> None:
    pending, first, chunk = "", 0, 0
    async for frame in socket:
        message = json.loads(frame)
        if message["type"] == "start":
            await socket.send(json.dumps({**message, "type": "start_ack", "ttl_s": 120.0}))
            continue
        pending += message.get("text", "")
        end = message["type"] == "text_end"
        if pending and (end or pending[-1] in "，。！？；：,.!?;\n" or len(pending) >= 24):
            chunk += 1
            last = first + len(pending) - 1
            audio = {
                "type": "audio_chunk",
                "session_id": message["session_id"],
                "seq": message["seq"],
                "chunk_seq": chunk,
                "unit_index_start": first,
                "unit_index_end": last,
                "units_text": pending,
                "audio_format": "pcm16_wav",
                "sample_rate": 16000,
                "channels": 1,
                "audio_base64": TONE,
            }
            await socket.send(json.dumps(audio))
            pending, first = "", last + 1
        if end:
            await socket.send(json.dumps({"type": "tts_end", "cancelled": False}))
            return


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    async with serve(talk, "127.0.0.1", parser.parse_args().port, compression=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
