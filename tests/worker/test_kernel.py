"""Real kernels: what a cell says arrives, and whatever it does, it comes to an end."""

from __future__ import annotations

from pathlib import Path

from kernel_world import ending, error, notices, result, text, world

from forebay.core.events import Cell, Display, Result


def displays(events: list[object], what: str) -> list[Display]:
    return [e for e in events if isinstance(e, Display) and e.what == what]


async def test_a_cell_prints_returns_displays_and_fails(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run("print('hi'); import sys; print('oh', file=sys.stderr); 6*7")
        assert text(events) == "hi\n"
        assert text(events, "stderr") == "oh\n"
        assert displays(events, "result")[0].data["text/plain"] == "42"
        assert ending(events).state == "completed"
        assert result(events)["status"] == "ok"
        assert result(events)["execution_count"] == 1
        shown = await here.run(
            "from IPython.display import display, HTML, clear_output\n"
            "h = display(HTML('<b>x</b>'), display_id='d1')\n"
            "h.update(HTML('<b>y</b>'))\nclear_output(wait=True)\ndisplay(1)"
        )
        first = displays(shown, "display")[0]
        assert first.data["text/html"] == "<b>x</b>"
        assert first.display_id == "d1"
        assert displays(shown, "update")[0].data["text/html"] == "<b>y</b>"
        assert displays(shown, "clear")[0].data == {"wait": True}
        failed = await here.run("x = 1\n1/0")
        assert error(failed)["ename"] == "ZeroDivisionError"
        assert ending(failed).state == "completed"
        assert result(failed)["status"] == "error"
        assert text(await here.run("print(x)")) == "1\n"
        asked = await here.run("input('name? ')")
        assert error(asked)["ename"] == "StdinNotImplementedError"


async def test_a_large_picture_is_a_blob_and_large_text_comes_in_pieces(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(
            "from IPython.display import Image, display\nimport os\n"
            "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + os.urandom(200_000), format='png'))\n"
            "print('é' * 300_000)"
        )
        picture = displays(events, "display")[0]
        assert list(picture.blobs) == ["image/png"]
        data = here.blobs.path(picture.blobs["image/png"]).read_bytes()
        assert data[:4] == b"\x89PNG"
        assert len(data) == 200_008
        assert text(events) == "é" * 300_000 + "\n"


async def test_unfinished_progress_lines_give_way_to_the_newest(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(
            "import sys\nfor i in range(2000):\n    sys.stdout.write(f'\\r{i}%'); sys.stdout.flush()\n"
            "print('\\rdone')"
        )
        assert text(events).endswith("\rdone\n")
        job = (await here.broker.jobs())[0].spec.id
        kept = [
            e
            for e in await here.broker.read_after(job, 0, limit=9999)
            if isinstance(e, Display) and e.what
        ]
        assert text(kept) == "\rdone\n"
        assert [e.data for e in kept] == [{"text/plain": "\rdone\n"}]


async def test_an_interrupt_ends_a_loop_and_keeps_the_variables(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.submit(Cell(code="y = 5\nprint('on', flush=True)\nwhile True: pass"))
        await here.until(job, lambda seen: text(seen) == "on\n")
        assert await here.control("interrupt")
        events = await here.ended(job)
        assert error(events)["ename"] == "KeyboardInterrupt"
        assert result(events)["status"] == "interrupted"
        assert text(await here.run("print(y)")) == "5\n"


async def test_the_deadline_fires_in_a_silent_loop_and_the_kernel_lives_on(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run("z = 7")
        events = await here.run("while True: pass", run_s=0.5)
        assert ending(events).state == "expired"
        assert text(await here.run("print(z)")) == "7\n"


async def test_code_that_takes_no_interrupt_loses_its_kernel_and_the_next_cell_says_so(
    tmp_path: Path,
) -> None:
    stubborn = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('on', flush=True)\nwhile True:\n    try:\n        while True: pass\n"
        "    except BaseException: pass"
    )
    async with world(tmp_path, interrupt_s=0.5) as here:
        await here.run("z = 7")
        assert ending(await here.run(stubborn, run_s=0.5)).state == "expired"
        events = await here.run("print('z' in globals())")
        assert notices(events[:1]) == ["kernel_lost"]
        assert text(events) == "False\n"


async def test_a_cancelled_cell_stops_at_once_for_its_client(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.submit(Cell(code="print('on', flush=True)\nwhile True: pass"))
        await here.until(job, lambda seen: text(seen) == "on\n")
        await here.broker.cancel(job)
        assert ending(await here.ended(job)).state == "cancelled"
        assert text(await here.run("print('next')")) == "next\n"


async def test_endless_output_is_cut_with_a_notice_and_the_cell_runs_on(tmp_path: Path) -> None:
    async with world(tmp_path, output_mib=1.0) as here:
        events = await here.run("for i in range(60000): print('x' * 100)\nprint('last')\n1/0")
        assert notices(events) == ["output_limit"]
        assert 500_000 < len(text(events)) < 1_100_000
        assert error(events)["ename"] == "ZeroDivisionError"
        assert result(events)["dropped_bytes"] > 4_000_000
        stored = await here.broker.read_after((await here.broker.jobs())[0].spec.id, 0, limit=9999)
        assert stored[0].offset == 1  # all that is shown is still there


async def test_a_burst_of_lines_arrives_whole_and_in_few_events(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run("for i in range(100_000): print(i)")
        assert text(events) == "".join(f"{i}\n" for i in range(100_000))
        assert len(events) < 2000


async def test_prints_that_do_not_flush_come_while_the_cell_runs(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run("import time, os")
        code = "print('now')\nwhile not os.path.exists('go'): time.sleep(0.01)"
        job = await here.submit(Cell(code=code))
        await here.until(job, lambda seen: text(seen) == "now\n")  # it would wait for ever
        await here.op("write", name="go", data=b"")
        assert len(await here.ended(job)) == 3


async def test_files_are_listed_read_and_written_while_a_cell_runs(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        job = await here.submit(Cell(code="print('on', flush=True)\nimport time; time.sleep(30)"))
        await here.until(job, lambda seen: text(seen) == "on\n")
        written = await here.op("write", name="d/a.bin", data=b"\x00\xff")
        assert isinstance(written, Result)
        assert written.value["file"]["size"] == 2
        read = await here.op("read", name="d/a.bin")
        assert isinstance(read, Result)
        assert read.value["data"] == b"\x00\xff"
        listed = await here.op("list")
        assert isinstance(listed, Result)
        assert listed.value["files"][0]["children"][0]["path"] == "d/a.bin"
        large = await here.op("write", name="big", data=b"x" * 200_000)
        assert isinstance(large, Result)
        back = await here.op("read", name="big")
        assert isinstance(back, Result)
        assert here.blobs.path(back.blob).read_bytes() == b"x" * 200_000
        await here.control("interrupt")
        await here.ended(job)
        assert text(await here.run("print(open('d/a.bin','rb').read())")) == "b'\\x00\\xff'\n"


async def test_two_notebooks_run_side_by_side(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run("a = 1")
        one = await here.submit(Cell(code="import time; time.sleep(5)"))
        other = await here.run("print('a' in globals())", book="local/other")
        assert text(other) == "False\n"
        await here.control("interrupt")
        await here.ended(one)
