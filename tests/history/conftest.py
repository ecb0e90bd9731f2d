"""Every test of the history runs on SQLite and on a real PostgreSQL.

Without PostgreSQL's binaries the second half is skipped; in CI that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if postgres.binaries() is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have PostgreSQL (scripts/system.sh installs it)")
        pytest.skip("no PostgreSQL on this machine")
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own for each test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    base: str = request.getfixturevalue("postgres_url")
    return base.removesuffix("postgres") + f"t{os.urandom(6).hex()}"
