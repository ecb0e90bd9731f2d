"""The tables of the history: recognition sessions as the original kept them, and tasks.

``asr_sessions`` has the original's columns under their names and types, so that tools which
read it directly go on working; ours stand after them. Changed only together with a migration.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["metadata", "sessions", "tasks"]

metadata = sa.MetaData()
_when = sa.DateTime(timezone=True)

sessions = sa.Table(
    "asr_sessions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("user_id", sa.String(64), nullable=False, server_default="", index=True),
    sa.Column("status", sa.String(20), nullable=False, server_default="recording"),
    sa.Column("final_text", sa.Text, nullable=False, server_default=""),
    sa.Column("chunk_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("total_duration", sa.Float, nullable=False, server_default="0"),
    sa.Column("audio_path", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", _when, nullable=False),
    sa.Column("completed_at", _when),
    sa.Column("tenant", sa.String(64), nullable=False, server_default="local"),
    sa.Column("name", sa.String(256), nullable=False, server_default=""),
    sa.Column("job", sa.String(32), nullable=False, server_default=""),
    sa.Column("audio_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("model_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("error", sa.Text, nullable=False, server_default=""),
)
sa.Index("idx_asr_sessions_created_at", sessions.c.created_at.desc())
sa.Index("idx_asr_sessions_tenant_name", sessions.c.tenant, sessions.c.name)

tasks = sa.Table(
    "asr_tasks",
    metadata,
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
sa.Index("idx_asr_tasks_tenant_created_at", tasks.c.tenant, tasks.c.created_at.desc())
sa.Index("idx_asr_tasks_job", tasks.c.job)
