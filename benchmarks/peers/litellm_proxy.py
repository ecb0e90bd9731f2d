"""LiteLLM's proxy as a peer, in a virtual environment of its own.

``python -m benchmarks.peers.litellm_proxy --install DIR`` makes that environment; the
benchmark finds it through ``--litellm DIR/bin/litellm`` or ``FOREBAY_BENCH_LITELLM``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

__all__ = ["HOW", "find", "install", "start"]

HOW = "python -m benchmarks.peers.litellm_proxy --install DIR, then --litellm DIR/bin/litellm"
READY_S = 120.0


def find(given: str) -> str | None:
    """The proxy's program, or None where it is not installed."""
    for name in (given, os.environ.get("FOREBAY_BENCH_LITELLM", "")):
        if name and Path(name).is_file():
            return name
    return None


def install(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", "litellm[proxy]"], check=True)
    return folder / "bin" / "litellm"


def start(program: str, upstream: str, model: str, port: int, folder: Path) -> subprocess.Popen[bytes]:  # fmt: skip
    """One worker process, as its default is. Raises `RuntimeError` if it does not come up."""
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {model}\n    litellm_params:\n"
        f"      model: openai/{model}\n      api_base: {upstream}/v1\n      api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
    )
    log = (folder / "litellm.log").open("wb")
    quiet = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # loopback, as the rest
    }
    process = subprocess.Popen(
        [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **quiet}, cwd=folder,
    )  # fmt: skip
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2):
                return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    process.kill()
    text = (folder / "litellm.log").read_text(errors="replace")[-1000:]
    raise RuntimeError(f"litellm did not come up in {READY_S:g} s: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description="install LiteLLM's proxy for the benchmark")
    parser.add_argument("--install", type=Path, required=True)
    folder = parser.parse_args().install
    if shutil.which(str(folder / "bin" / "litellm")) is None:
        install(folder)


if __name__ == "__main__":
    main()
