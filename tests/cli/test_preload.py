"""What the fork server loads: enough that a copy is quick, nothing that cannot be copied."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from forebay import spawner as spawning
from forebay.config import Config, load
from forebay.core.kinds import Kind
from forebay.engines import REGISTRY
from forebay.serve_preload import is_light, preload
from forebay.spawner import Spawner

EVERYTHING = list(REGISTRY)


def settled(folder: Path, **environ: str) -> Config:
    return load(environ=environ, folder=folder)


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
async def test_everything_that_is_loaded_leaves_a_process_that_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each engine of this build is asked for; a module that starts a thread when it
    is imported would turn the fork server off for everybody."""
    names = preload(settled(tmp_path), EVERYTHING, gateways=True, shared=True)
    assert names.count("--") == 1
    monkeypatch.setattr(spawning, "WARM_S", 300.0)  # however busy the machine is
    spawner = Spawner([name for name in names if name != "--"])
    try:
        await spawner.warm_up()
        assert spawner.warm
    finally:
        spawner.close()


def test_an_engine_with_a_library_of_its_own_is_left_to_its_process(tmp_path: Path) -> None:
    names = preload(
        settled(tmp_path), [(Kind.TEXT, "llama"), (Kind.SPEECH, "synthetic")],
        gateways=False, shared=False,
    )  # fmt: skip
    assert "forebay.engines.synthetic" in names and "forebay.engines.llama" not in names
    assert not [name for name in names if "gateway" in name or name == "--"]
    assert is_light(Kind.SPEECH, "synthetic") and not is_light(Kind.TEXT, "llama")


def test_without_a_fork_server_nothing_is_loaded_for_it(tmp_path: Path) -> None:
    config = settled(tmp_path, FOREBAY_SERVER_FORK_SERVER="false")
    assert preload(config, EVERYTHING, gateways=True, shared=True) == []
