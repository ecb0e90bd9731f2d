"""What a process has loaded is taken out of the garbage collector's rounds, once."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from forebay.process import settle_heap
class Ring: pass
ring = Ring(); ring.ring = ring; del ring
settle_heap()
assert not any(type(o) is Ring for o in gc.get_objects()), "garbage was kept"
frozen = gc.get_freeze_count()
assert frozen > 1000 and len(gc.get_objects()) < 1000
later = Ring()
settle_heap()
assert gc.get_freeze_count() <= frozen, "it was done again"
later.ring = later
del later
assert gc.collect() > 0, "what comes later is not collected"
"""


def test_a_ready_process_collects_only_what_came_later() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
