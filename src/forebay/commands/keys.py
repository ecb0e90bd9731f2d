"""`forebay keys`: make, list, rotate and revoke API keys."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from forebay.commands.common import console, dump, keys_file, notes, settled
from forebay.gateway import keys

__all__ = ["create", "revoke", "rotate", "show"]

DAY_S = 24 * 3600.0


def _file(config: Path | None, data_dir: Path | None) -> Path:
    return keys_file(settled(config, {"server.data_dir": data_dir}))


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"


def _hand_over(record: keys.KeyRecord, key: str, path: Path) -> None:
    # The key alone on standard output, so that a script can take it.
    console.print(key, markup=False)
    note = f"key {record.id} for tenant {record.tenant}, scopes {', '.join(record.scopes)}"
    notes.print(f"{note}, expires {_day(record.expires)}; it is not shown again ({path})")


def create(
    config: Path | None,
    data_dir: Path | None,
    name: str,
    tenant: str,
    scopes: Sequence[str],
    days: int | None,
) -> int:
    path = _file(config, data_dir)
    record, key = keys.create(
        path,
        now=time.time(),
        tenant=tenant,
        scopes=tuple(scopes) or keys.DEFAULT_SCOPES,
        name=name,
        expires_s=None if days is None else days * DAY_S,
    )
    _hand_over(record, key, path)
    return 0


def rotate(config: Path | None, data_dir: Path | None, key_id: str) -> int:
    path = _file(config, data_dir)
    record, key = keys.rotate(path, key_id, now=time.time())
    _hand_over(record, key, path)
    return 0


def revoke(config: Path | None, data_dir: Path | None, key_id: str) -> int:
    record = keys.revoke(_file(config, data_dir), key_id)
    console.print(f"key {record.id} is revoked")
    return 0


def show(config: Path | None, data_dir: Path | None, as_json: bool) -> int:
    path = _file(config, data_dir)
    records = keys.list_keys(path)
    if as_json:
        dump(
            [
                {
                    "id": r.id,
                    "name": r.name,
                    "tenant": r.tenant,
                    "scopes": r.scopes,
                    "created": r.created,
                    "expires": r.expires,
                    "revoked": r.revoked,
                }
                for r in records
            ]
        )
        return 0
    if not records:
        console.print(f"no keys in {path}")
        return 0
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "name", "tenant", "scopes", "made", "expires"):
        rows.add_column(title, overflow="fold")
    for record in records:
        until = "revoked" if record.revoked else _day(record.expires)
        scopes = ", ".join(record.scopes)
        rows.add_row(
            record.id, record.name, record.tenant, scopes, _day(record.created), until,
            style="" if record.live(time.time()) else "dim",
        )  # fmt: skip
    console.print(rows)
    return 0
