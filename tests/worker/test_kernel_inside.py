"""What a kernel says leaves in order and whole, whoever says it, and however it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kernel_world import error, result, text, world

from forebay.core.events import Cell, Display

SPEAKERS = """
import os, signal, subprocess, sys, threading

print("one")
print("two", file=sys.stderr)
print("three", flush=True)

def beside():
    print("from a thread")

thread = threading.Thread(target=beside)
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("from a handler"))
os.kill(os.getpid(), signal.SIGALRM)
child = os.fork()
if child == 0:
    print("from a child", flush=True)
    os._exit(0)
os.waitpid(child, 0)
subprocess.run(["echo", "from a program"])
sys.stdout.write("half a line")
"""


async def test_everybody_is_heard(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(SPEAKERS)
        said = text(events)
        assert text(events, "stderr") == "two\n"
        for words in ("one", "three", "from a thread", "from a handler", "half a line"):
            assert said.count(words) == 1, said
        # A child and a program are heard by another way, which may be later than the cell.
        assert "three\nfrom a thread\nfrom a handler\n" in said
        order = [e.data["text/plain"] for e in events if isinstance(e, Display)]
        assert order.index("two\n") > next(i for i, words in enumerate(order) if "one" in words)
        assert order.index("two\n") < next(i for i, words in enumerate(order) if "three" in words)


async def test_pictures_and_text_keep_their_order(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(
            "from IPython.display import HTML, display\n"
            "for i in range(50):\n    print(i)\n    display(HTML(str(i)))"
        )
        said = [
            event.data.get("text/html") or event.data["text/plain"].strip()
            for event in events
            if isinstance(event, Display)
        ]
        assert said == [str(i) for i in range(50) for _ in range(2)]


async def test_a_cell_that_awaits_runs_and_is_interrupted(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run("import asyncio\nawait asyncio.sleep(0.01)\nprint('slept')")
        assert text(events) == "slept\n"
        job = await here.submit(Cell(code="print('begun')\nawait asyncio.sleep(60)"))
        await here.until(job, lambda seen: "begun" in text(seen))
        await here.control("interrupt")
        assert result(await here.ended(job))["status"] == "interrupted"
        assert text(await here.run("print('lives')")) == "lives\n"


async def test_an_interrupt_in_the_middle_of_printing_divides_no_message(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run("1")
        for _ in range(5):
            job = await here.submit(
                Cell(code="i = 0\nwhile True:\n    print(i, flush=True)\n    i += 1")
            )
            await here.until(job, lambda seen: "20\n" in text(seen))
            await asyncio.sleep(0.01)
            await here.control("interrupt")
            events = await here.ended(job)
            assert error(events)["ename"] == "KeyboardInterrupt"
            numbers = text(events).split()
            assert numbers == [str(i) for i in range(len(numbers))]
        assert text(await here.run("print('whole')")) == "whole\n"


async def test_many_threads_print_whole_lines(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        events = await here.run(
            "import threading\n"
            "def speak(name):\n    for i in range(200):\n        print(f'{name} {i}\\n', end='')\n"
            "threads = [threading.Thread(target=speak, args=(n,)) for n in 'abcd']\n"
            "for t in threads: t.start()\nfor t in threads: t.join()"
        )
        lines = text(events).splitlines()
        assert sorted(lines) == sorted(f"{n} {i}" for n in "abcd" for i in range(200))
        for name in "abcd":
            own = [line for line in lines if line.startswith(name)]
            assert own == [f"{name} {i}" for i in range(200)]
