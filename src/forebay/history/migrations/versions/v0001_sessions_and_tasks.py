"""Recognition sessions and tasks.

A table ``asr_sessions`` that the original made is taken over with its rows: it gets the
columns it lacks.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0001"
down_revision = None

_when = sa.DateTime(timezone=True)


def _original() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False, server_default=""),
        sa.Column("status", sa.String(20), nullable=False, server_default="recording"),
        sa.Column("final_text", sa.Text, nullable=False, server_default=""),
        sa.Column("chunk_count", sa.Integer, nullable=False, server_default="0"),
        sa.Column("total_duration", sa.Float, nullable=False, server_default="0"),
        sa.Column("audio_path", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", _when, nullable=False),
        sa.Column("completed_at", _when),
    ]


def _added() -> list[sa.Column[Any]]:
    return [
        sa.Column("tenant", sa.String(64), nullable=False, server_default="local"),
        sa.Column("name", sa.String(256), nullable=False, server_default=""),
        sa.Column("job", sa.String(32), nullable=False, server_default=""),
        sa.Column("audio_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("model_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("error", sa.Text, nullable=False, server_default=""),
    ]


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    if inspector.has_table("asr_sessions"):
        have = {column["name"] for column in inspector.get_columns("asr_sessions")}
        for column in _added():
            if column.name not in have:
                op.add_column("asr_sessions", column)
        op.execute("UPDATE asr_sessions SET name = id WHERE name = ''")
    else:
        op.create_table("asr_sessions", *_original(), *_added())
    indexes = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("asr_sessions")}
    for name, columns in (
        ("ix_asr_sessions_user_id", ["user_id"]),
        ("idx_asr_sessions_created_at", [sa.text("created_at DESC")]),
        ("idx_asr_sessions_tenant_name", ["tenant", "name"]),
    ):
        if name not in indexes:
            op.create_index(name, "asr_sessions", columns)
    op.create_table(
        "asr_tasks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False, server_default="local"),
        sa.Column("job", sa.String(32), nullable=False, server_default=""),
        sa.Column("status", sa.String(20), nullable=False, server_default="queued"),
        sa.Column("text", sa.Text, nullable=False, server_default=""),
        sa.Column("language", sa.String(32), nullable=False, server_default=""),
        sa.Column("audio_path", sa.Text, nullable=False, server_default=""),
        sa.Column("audio_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("audio_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("model_s", sa.Float, nullable=False, server_default="0"),
        sa.Column("error", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", _when, nullable=False),
        sa.Column("completed_at", _when),
    )
    op.create_index(
        "idx_asr_tasks_tenant_created_at", "asr_tasks", ["tenant", sa.text("created_at DESC")]
    )
    op.create_index("idx_asr_tasks_job", "asr_tasks", ["job"])


def downgrade() -> None:
    """The original's table stays, with the columns it had."""
    op.drop_table("asr_tasks")
    op.drop_index("idx_asr_sessions_tenant_name", "asr_sessions")
    with op.batch_alter_table("asr_sessions") as table:
        for column in _added():
            table.drop_column(str(column.name))
