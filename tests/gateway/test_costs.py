"""Whose processor time and memory `/metrics` tells of."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forebay.gateway.costs import process_costs

PARENT = """
import subprocess, sys
waits = "import sys; print('up', flush=True); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-c", waits, sys.argv[1]], stdin=subprocess.PIPE)
sys.stdin.read()
child.communicate()
"""


@pytest.mark.parametrize(("word", "counts"), [("forebay.fork_server", False), ("worker", True)])
def test_a_fork_server_is_no_worker_and_what_runs_beside_it_is(word: str, counts: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, word], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        found = process_costs(parent.pid)()
        assert ("worker" in found) is counts
        assert found["supervisor"][1] > 0
    finally:
        parent.communicate()
