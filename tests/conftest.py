"""Settings every test shares, and the order of files.

Property tests run the same examples each time, so a failure in CI is a failure at a desk.
`HYPOTHESIS_PROFILE=explore` looks for new ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from forebay.engines.kernel_jail import probe

SLOW_FIRST = """
test_serve_process test_asr_process test_many_gateways test_recognition test_notebook_page
test_voice_process test_commands test_photos_page test_llama test_processes test_listen_page
test_voices test_javascript_client test_captions_bench test_caption test_behind_nginx test_photo
test_photo_bench test_captions_process test_photo_process test_kernel_abuse test_notebook_faults
test_console test_chat_resume test_listening_process test_service_files test_display
test_notebook_process test_history test_notebook_bench test_speak_page test_access
test_stream_properties test_main test_redis_faults test_openai_path test_supervisor
test_operation_path test_kernel test_deploy_files test_picture_process test_captions_sdk
test_kernel_life test_rolling test_listen_process test_spawner test_store test_weights
""".split()
"""Files that take longest, longest first: processes that test together (``make test``) take
files in this order, so that none is left alone with a slow one at the end."""

HERE = Path(__file__).parent
PROVABLE = {"core", "dialects"}
"""Pure: the same each time, so never tried twice. All else starts processes, browsers and
servers on a machine that others use too; what fails there once and then passes is named in
the summary as RERUN, with its traceback: a lead to follow. At most five in one run."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    place = {name: n for n, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        if not PROVABLE.intersection(item.path.relative_to(HERE).parts[:-1]):
            item.add_marker(pytest.mark.flaky(reruns=1))


if os.geteuid() == 0 and probe()[0] is None:
    # A container that confines nothing, as root: the product refuses kernels there, and what
    # the tests run in theirs is the tests' own. Tests of the jail itself are skipped.
    os.environ.setdefault("FOREBAY_KERNEL_CONFINE", "never")

settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", settings.get_profile("fixed"), derandomize=False, max_examples=1000
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
