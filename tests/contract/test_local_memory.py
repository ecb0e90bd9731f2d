"""What the local broker has forgotten, it no longer holds."""

from __future__ import annotations

import gc
import weakref

from homes import Home


async def test_a_job_that_is_forgotten_early_is_free_at_once() -> None:
    home = Home()
    worker = await home.worker("w1")
    await home.speech("a", "hello")
    await home.settle()
    worker.speak("a", "hello")
    await home.broker.cancel("a")
    kept = weakref.ref(home.broker._core.entries["a"].out)
    worker.park("a")
    worker.leases.clear()
    await home.broker.forget("a")
    gc.collect()
    assert kept() is None
    await home.advance(1000)  # the window passes: nothing is left to forget
