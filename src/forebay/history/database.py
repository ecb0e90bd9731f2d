"""Opening the history's database, wherever it is: addresses, pragmas, migrations.

SQLite needs nothing; PostgreSQL is named by its URL and needs the package ``asyncpg``.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from forebay.errors import CannotBoot, ConfigError

__all__ = ["address", "connect", "migrate", "postgres_url"]

HEAD = "0001"
"""The newest migration, in ``migrations/versions``."""

CALL_S = 5.0
"""A statement or a connection attempt may take so long."""

TURN = 0x466F7265
"""PostgreSQL's advisory lock of who makes the database or its tables."""


def address(url: str) -> URL:
    """``url`` with the driver that is used here. Raises `ConfigError` without quoting it,
    since it may hold a password."""
    try:
        found = make_url(re.sub(r"^postgres://", "postgresql://", url))
    except ArgumentError as error:
        raise ConfigError("the history's database url cannot be read") from error
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    driver = drivers.get(found.get_backend_name())
    if driver is None:
        raise ConfigError(
            f"the history's database is {found.get_backend_name()}, expected sqlite or postgresql"
        )
    return found.set(drivername=driver)


def postgres_url(
    *, host: str, port: int, user: str, password: str | None, name: str, sslmode: str
) -> str:
    """The URL of a PostgreSQL database, with everything in it escaped."""
    url = URL.create("postgresql", user, password, host, port, name, query={"sslmode": sslmode})
    return url.render_as_string(hide_password=False)


def _options(url: URL) -> tuple[URL, dict[str, Any]]:
    """What the driver is called with. ``sslmode`` is libpq's word; asyncpg calls it ssl."""
    if url.get_backend_name() == "sqlite":
        return url, {"connect_args": {"timeout": CALL_S}}
    if importlib.util.find_spec("asyncpg") is None:
        raise CannotBoot(
            "a PostgreSQL history needs a package: pip install 'forebay[postgres]'", stage="history"
        )
    arguments: dict[str, Any] = {"timeout": CALL_S, "command_timeout": CALL_S}
    mode = url.query.get("sslmode")
    if mode is not None:
        url = url.difference_update_query(["sslmode"])
        arguments["ssl"] = mode
    return url, {"connect_args": arguments, "pool_size": 4, "max_overflow": 4}


def connect(url: URL) -> AsyncEngine:
    """An engine; nothing is opened yet."""
    url, options = _options(url)
    # What is written is what users said: no error and no log line quotes it.
    engine = create_async_engine(url, pool_pre_ping=True, hide_parameters=True, **options)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _pragmas)
    return engine


def _pragmas(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def migrate(engine: AsyncEngine, *, create: bool = False) -> None:
    """Bring the tables up to date, in one transaction. ``create``: make the PostgreSQL
    database first if it is not there. Of several processes that come at once one does it and
    the others wait. Raises `CannotBoot`."""
    try:
        if create and engine.url.get_backend_name() == "postgresql":
            await _create(engine.url)
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except (SQLAlchemyError, OSError) as error:
        raise CannotBoot(
            f"the history's database cannot be opened: {type(error).__name__}", stage="history"
        ) from error


def _upgrade(connection: Connection) -> None:
    if _version(connection) == HEAD:
        return  # up to date, as nearly always: what can migrate need not be loaded
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": TURN})
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    if _version(connection) == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise CannotBoot(
            f"the history's database is of another version: {error}", stage="history"
        ) from error


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


async def _create(url: URL) -> None:
    """CREATE DATABASE, from the server's own."""
    engine = connect(url.set(database="postgres"))
    try:
        async with engine.connect() as plain:
            connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(sa.text("SELECT pg_advisory_lock(:turn)"), {"turn": TURN})
            found = await connection.scalar(
                sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database}
            )
            if found is None:
                quoted = engine.dialect.identifier_preparer.quote(url.database or "")
                await connection.execute(sa.text(f"CREATE DATABASE {quoted}"))
    finally:
        await engine.dispose()
