"""Runs the migrations on the connection that `history.migrate` hands over."""

from __future__ import annotations

from alembic import context

from forebay.history.tables import metadata

__all__: list[str] = []

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
