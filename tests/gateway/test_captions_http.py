"""The original caption servers' calls, and what ours add to them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import QUICK
from room_world import PASS, world

from forebay.core.pace import WriterPace
from forebay.gateway import passphrases, rooms
from forebay.gateway.keys import create
from forebay.gateway.rooms import RoomOptions


async def test_a_message_makes_its_room_and_is_listed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for at in (w.main, w.captions):
            status, body = await w.post(at=at)
            assert status == 200 and body["status"] == "ok" and body["result"] == "appended"
        status, body = await w.get("/api/list?room=talk", at=w.captions)
        assert status == 200
        first = body["transcriptions"][0]
        assert first["user_name"] == "Ada" and first["text"] == "hello" and first["id"] == 1
        assert first["is_preview"] is False and first["font_family"] is None
        assert len(first["timestamp"]) == 8 and first["created_at"] > 1_600_000_000_000
        assert await w.get("/api/list?room=none") == (200, {"transcriptions": []})


@pytest.mark.parametrize(
    "path",
    ["/api/send?action=send", "/server.php?action=send", "/transcription/server.php?action=send"],
)
async def test_every_address_of_the_originals_takes_a_message(tmp_path: Path, path: str) -> None:
    async with world(tmp_path) as w:
        assert (await w.post(path, at=w.captions))[0] == 200
        assert await w.texts() == ["hello"]


async def test_the_errors_are_the_originals(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for field in ("room", "passphrase", "user_name", "text"):
            for value in (None, "", "   ") if field != "passphrase" else (None, ""):
                status, body = await w.post(**{field: value})
                assert (status, body["error"]) == (400, "Missing required fields"), field
        assert (await w.post())[0] == 200
        status, body = await w.post(passphrase="wrong")
        assert (status, body["error"]) == (401, "Invalid passphrase")
        status, body = await w.post(text="x" * 2001)
        assert status == 413 and body["code"] == "too_large"
        status, body = await w.post(room="no spaces")
        assert status == 400
        assert (await w.post(room="已经 spaces", at=w.captions))[0] == 200
        async with w.http.post(w.main + "/api/send", data=b"{") as answer:
            assert answer.status == 400
        assert await w.texts() == ["hello"]


async def test_the_php_servers_gets(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post()
        status, body = await w.get("/server.php", at=w.captions)
        assert status == 200 and body["service"] == "Local Transcription Multi-User Server"
        assert body["version"] == "1.0.0"
        good = f"/server.php?action=list&room=talk&passphrase={PASS.replace(' ', '+')}"
        assert (await w.get(good, at=w.captions))[1]["transcriptions"][0]["text"] == "hello"
        bad = "/server.php?action=list&room=talk&passphrase=wrong"
        assert (await w.get(bad, at=w.captions))[0] == 401
        assert (await w.get("/server.php?action=other", at=w.captions))[0] == 400
        assert (await w.get("/server.php?action=list", at=w.captions))[0] == 400


async def test_colours_and_fonts_are_taken_only_where_they_are_some(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(
            text_color="#ff0000",
            background_color="#00ff0080",
            user_color="red;background:url(//evil)",
            font_family="Noto Sans",
            font_type="google",
        )
        await w.post(font_family="x';}", font_type="evil")
        _, body = await w.get("/api/list?room=talk")
        good, bad = body["transcriptions"]
        assert good["text_color"] == "#ff0000" and good["background_color"] == "#00ff0080"
        assert good["user_color"] is None and good["font_family"] == "Noto Sans"
        assert bad["font_family"] is None and bad["font_type"] is None


async def test_numbered_messages_arrive_in_order_however_they_are_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(client_id="c", seq=1, text="1")
        order = [4, 2, 5, 3, 2]
        answers = await asyncio.gather(*(w.post(client_id="c", seq=n, text=str(n)) for n in order))
        assert all(status == 200 for status, _ in answers)
        assert await w.texts() == ["1", "2", "3", "4", "5"]
        status, body = await w.post(client_id="c", seq=5, text="5")
        assert (body["result"], body["next_seq"]) == ("repeat", 6)
        assert (await w.post(seq=3))[0] == 400
        assert (await w.post(client_id="has space"))[0] == 400


async def test_many_messages_in_one_request_are_answered_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        messages: list[Any] = [
            {"seq": 1, "text": "one"},
            {"seq": 2, "text": "x" * 3000},
            {"seq": 4, "text": "four", "user_name": "Bob"},
            {"seq": 2, "skip": True},
            {"text": "soon", "is_preview": True},
            {"seq": 3, "text": "three"},
            "nonsense",
        ]
        status, body = await w.post(client_id="c", text=None, messages=messages)
        assert status == 200 and body["next_seq"] == 5
        results = [(r["status"], r.get("result")) for r in body["results"]]
        assert results == [
            (200, "appended"),
            (413, None),
            (200, "held"),
            (200, "skipped"),
            (200, "preview"),
            (200, "appended"),
            (400, None),
        ]
        assert await w.texts() == ["one", "three", "four"]
        assert (await w.post(messages=[]))[0] == 400
        assert (await w.post(messages=[{}] * 65))[0] == 400


async def test_a_message_with_a_name_is_taken_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        results = [(await w.post(message_id="m1"))[1]["result"] for _ in range(2)]
        assert results == ["appended", "repeat"]
        results = [(await w.post(client_id="c", message_id="m1"))[1]["result"] for _ in range(2)]
        assert results == ["appended", "repeat"]


class HeldPace(WriterPace):
    """A writer's pace by a clock that the test moves."""

    now = 1000.0

    def __init__(self, rate: float, burst: int, now: float) -> None:
        super().__init__(rate, burst, HeldPace.now)

    def take(self, now: float, seq: int = 0) -> float | None:
        return super().take(HeldPace.now, seq)


async def test_one_writer_cannot_flood_a_room_and_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "WriterPace", HeldPace)
    monkeypatch.setattr(HeldPace, "now", 1000.0)
    keys = tmp_path / "keys.json"
    _, key = create(keys, now=0.0, scopes=("room:publish", "room:view"))
    options = replace(QUICK, keys_file=str(keys), require_key=True)
    async with world(tmp_path, options=options, rooms=RoomOptions(per_s=2.0, burst=3)) as w:
        w.http.headers["authorization"] = f"Bearer {key}"
        messages = [{"seq": n, "text": str(n)} for n in range(1, 6)]
        status, body = await w.post(client_id="c", text=None, messages=messages)
        assert status == 200
        assert [r["status"] for r in body["results"]] == [200, 200, 200, 429, 429]
        assert body["results"][3]["retry_after_s"] > 0
        status, body = await w.post(client_id="c", seq=5, text="5")
        assert status == 429 and body["code"] == "quota_exceeded"
        assert (await w.post(client_id="other", seq=1, text="other"))[0] == 200
        HeldPace.now += 0.6
        assert (await w.post(client_id="c", seq=5, text="5"))[0] == 429
        assert (await w.post(client_id="c", seq=4, text="4"))[0] == 200
        assert await w.texts() == ["1", "2", "3", "other", "4"]


async def test_on_this_machine_a_writer_may_be_as_quick_as_it_likes(tmp_path: Path) -> None:
    async with world(tmp_path, rooms=RoomOptions(per_s=2.0, burst=3)) as w:
        messages = [{"seq": n, "text": str(n)} for n in range(1, 21)]
        _, body = await w.post(client_id="c", text=None, messages=messages)
        assert [r["status"] for r in body["results"]] == [200] * 20
        display = await w.display()
        for n in range(21, 31):
            await display.ask("publish", channel="talk", data={
                "passphrase": PASS, "user_name": "Ada", "client_id": "c", "seq": n, "text": str(n)
            })  # fmt: skip
        assert len(await w.texts()) == 30


async def test_a_stream_has_what_was_said_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(text="one")
        url = w.main + "/api/stream?room=talk"
        async with w.http.get(url) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            seen = [await event(stream)]
            await w.post(text="two")
            await w.post(text="typing", is_preview=True)
            seen += [await event(stream), await event(stream)]
        assert [body["text"] for _, body in seen] == ["one", "two", "typing"]
        assert seen[2][0] == "" and seen[2][1]["is_preview"]
        await w.post(text="three")
        async with w.http.get(url, headers={"Last-Event-ID": seen[0][0]}) as stream:
            again = [await event(stream), await event(stream)]
        assert [body["text"] for _, body in again] == ["two", "three"]


async def event(stream: Any) -> tuple[str, Any]:
    """Position and body of the next event."""
    where = ""
    while True:
        line = (await asyncio.wait_for(stream.content.readline(), 60)).decode().rstrip("\n")
        if line.startswith("id: "):
            where = line[4:]
        if line.startswith("data: "):
            return where, json.loads(line[6:])


async def test_a_room_is_shown_exported_and_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(text="first --> line")
        await w.post(text="second")
        _, body = await w.get("/api/rooms")
        assert [one["room"] for one in body["rooms"]] == ["talk"]
        _, body = await w.get("/api/rooms/talk")
        assert body["messages"] == 2 and body["members"] == []
        _, text = await w.get("/api/rooms/talk/export?form=srt")
        assert text.startswith("1\n00:00:00,000 --> 00:00:0") and "first → line" in text
        _, text = await w.get("/api/rooms/talk/export?form=vtt")
        assert text.startswith("WEBVTT\n\n00:00:00.000 --> ") and "<v Ada>second" in text
        _, text = await w.get("/api/rooms/talk/export?form=txt")
        assert text.count("Ada: ") == 2
        assert (await w.get("/api/rooms/talk/export?form=exe"))[0] == 400
        assert (await w.get("/api/rooms/none"))[0] == 404
        assert (await w.post("/api/rooms/talk/drop", passphrase="wrong"))[0] == 401
        assert (await w.post("/api/rooms/talk/drop", passphrase=None))[0] == 400
        assert (await w.post("/api/rooms/talk/drop"))[0] == 200
        assert await w.texts() == []
        assert (await w.post(passphrase="another"))[0] == 200


async def test_only_a_recognition_of_ones_own_can_be_led_into_a_room(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post()
        assert (await w.post("/api/rooms/talk/pipe"))[0] == 400
        assert (await w.post("/api/rooms/talk/pipe", job="0" * 32))[0] == 404
        assert (await w.post("/api/rooms/talk/pipe", job="0" * 32, passphrase="x"))[0] == 401


async def test_reading_may_need_the_passphrase(tmp_path: Path) -> None:
    async with world(tmp_path, rooms=RoomOptions(private=True)) as w:
        await w.post()
        assert (await w.get("/api/list?room=talk"))[0] == 401
        assert (await w.get("/api/list?room=talk&passphrase=no"))[0] == 401
        assert (await w.get("/api/list?room=none&passphrase=no"))[0] == 401
        assert (await w.get("/api/list?room=talk&passphrase=open+sesame"))[0] == 200


async def test_guessing_a_passphrase_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passphrases, "GUESSES_PER_S", 1e-6)  # however long the guesses take
    async with world(tmp_path) as w:
        await w.post()
        statuses = [(await w.post(passphrase=f"guess {n}"))[0] for n in range(30)]
        burst = int(passphrases.GUESS_BURST)
        assert statuses == [401] * burst + [429] * (30 - burst)
        assert (await w.post())[0] == 200


async def test_a_persistent_room_is_there_after_a_restart(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"data_dir": str(tmp_path / "data")}
    async with world(tmp_path, **facts) as w:
        await w.post(client_id="c", seq=1, text="one")
        await w.post(room="brief", persist=False)
    async with world(tmp_path, **facts) as w:
        assert await w.texts() == ["one"]
        assert await w.texts("brief") == []
        assert (await w.post(client_id="c", seq=1, text="one"))[1]["result"] == "repeat"
        assert (await w.post(passphrase="wrong"))[0] == 401


async def test_the_pages_are_there_and_closed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path, at in [
            ("/", w.captions),
            ("/captions", w.main),
            ("/display?room=talk", w.captions),
            ("/display.php?room=talk&passphrase=x", w.captions),
            ("/folder/display.php?room=talk", w.captions),
            ("/room?room=talk", w.main),
        ]:
            async with w.http.get(at + path) as answer:
                assert answer.status == 200, path
                assert answer.headers["content-type"].startswith("text/html")
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy
                assert "google" not in policy and "frame-ancestors 'none'" in policy


async def test_a_display_opens_only_as_far_as_it_is_told(tmp_path: Path) -> None:
    options = RoomOptions(google_fonts=True, frame_ancestors=("https://example.com",))
    async with world(tmp_path, rooms=options) as w:
        async with w.http.get(w.main + "/display?room=talk") as answer:
            policy = answer.headers["content-security-policy"]
            assert "frame-ancestors https://example.com" in policy
            assert "https://fonts.googleapis.com" in policy
            assert "x-frame-options" not in answer.headers
            assert 'data-fonts="google"' in await answer.text()


async def test_metrics_count_what_rooms_do(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.post(client_id="c", seq=2)
        await w.post(client_id="c", seq=2)
        _, text = await w.get("/metrics")
        assert "forebay_captions_published_total 1.0" in text
        assert "forebay_captions_held_total 1.0" in text
        assert "forebay_captions_repeats_total 1.0" in text
