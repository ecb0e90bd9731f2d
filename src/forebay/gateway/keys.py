"""The API key file: what ``forebay keys`` writes and a gateway reads.

A key is ``fb_<id>_<secret>``: 48 random bits to find it by, 256 to prove it. The file keeps
the SHA-256 of the whole key, never the key; whoever made it has seen it once. The file is
JSON, readable by its owner only, and replaced whole, so a reader never sees half of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from forebay.errors import BadRequest, ConfigError, NotFound

__all__ = [
    "DEFAULT_SCOPES",
    "SCOPES",
    "KeyFile",
    "KeyRecord",
    "KeyStore",
    "create",
    "list_keys",
    "revoke",
    "rotate",
    "valid_tenant",
]

PREFIX = "fb_"
SCOPES = ("submit", "read", "cancel", "admin", "room:publish", "room:view")
DEFAULT_SCOPES = ("submit", "read", "cancel")
ROTATE_GRACE_S = 24 * 3600.0
MAX_KEYS = 10_000
_NO_KEY = hashlib.sha256(b"").hexdigest()


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one key. Times are seconds since 1970; ``expires`` None: never."""

    id: str
    sha256: str
    tenant: str = "local"
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    name: str = ""
    created: float = 0.0
    expires: float | None = None
    revoked: bool = False

    def live(self, now: float) -> bool:
        return not self.revoked and (self.expires is None or now < self.expires)


class _File(msgspec.Struct, kw_only=True):
    version: int = 1
    keys: list[KeyRecord] = []


def create(
    path: Path,
    *,
    now: float,
    tenant: str = "local",
    scopes: Sequence[str] = DEFAULT_SCOPES,
    name: str = "",
    expires_s: float | None = None,
) -> tuple[KeyRecord, str]:
    """Add a key to the file at ``path``, which is made if absent. Returns the record and the
    key itself, which cannot be had again. Raises `BadRequest` for an unknown scope."""
    _check_scopes(scopes)
    if not valid_tenant(tenant):
        raise BadRequest(
            f"tenant is {len(tenant)} long or malformed, expected [A-Za-z0-9._-]{{1,64}}"
        )
    with _changing(path) as file:
        return _add(file, tenant, tuple(scopes), name, now, expires_s)


def list_keys(path: Path) -> list[KeyRecord]:
    """Every key of the file, revoked and expired ones too; [] when there is no file.

    Raises `ConfigError` when the file is not a key file or others may read it."""
    return _read(path).keys


def rotate(
    path: Path, key_id: str, *, now: float, grace_s: float = ROTATE_GRACE_S
) -> tuple[KeyRecord, str]:
    """Make a successor with the same tenant, scopes and name. The old key works for
    ``grace_s`` more, so that clients can change over. Raises `NotFound`."""
    with _changing(path) as file:
        at, old = _find(file, key_id)
        until = now + grace_s if old.expires is None else min(old.expires, now + grace_s)
        file.keys[at] = msgspec.structs.replace(old, expires=until)
        life = None if old.expires is None else max(0.0, old.expires - old.created)
        return _add(file, old.tenant, old.scopes, old.name, now, life)


def revoke(path: Path, key_id: str) -> KeyRecord:
    """End a key at once. Idempotent. Raises `NotFound`."""
    with _changing(path) as file:
        at, old = _find(file, key_id)
        file.keys[at] = msgspec.structs.replace(old, revoked=True)
        return file.keys[at]


def valid_tenant(tenant: str) -> bool:
    """Whether ``tenant`` may be one: a short name without surprises in a log or a path."""
    return 0 < len(tenant) <= 64 and all(
        c.isascii() and (c.isalnum() or c in "._-") for c in tenant
    )


class KeyFile(ABC):
    """A file of keys that is read again when it changes (looked at once a second)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")
        self.reload()

    def reload(self) -> None:
        """Read the file now, as on SIGHUP. Raises `ConfigError` and keeps the old keys."""
        self._stamp = _stamp(self.path)
        self._read()

    def _look(self, clock: float) -> None:
        """Before a key is looked up. ``clock``: monotonic seconds."""
        if clock - self._looked_at >= 1.0:
            self._looked_at = clock
            if _stamp(self.path) != self._stamp:
                self.reload()

    @abstractmethod
    def _read(self) -> None: ...

    @abstractmethod
    def __len__(self) -> int: ...


class KeyStore(KeyFile):
    """The live keys of one file of ours."""

    _by_id: dict[str, KeyRecord]

    def __len__(self) -> int:
        return len(self._by_id)

    def _read(self) -> None:
        self._by_id = {record.id: record for record in list_keys(self.path)}

    def find(self, key: str, *, now: float, clock: float) -> KeyRecord | None:
        """The record of ``key`` if it is live at ``now``. Takes the same time for a wrong
        secret as for an unknown id. ``clock``: monotonic seconds."""
        self._look(clock)
        key_id = key[len(PREFIX) :].partition("_")[0] if key.startswith(PREFIX) else ""
        record = self._by_id.get(key_id)
        expected = record.sha256 if record is not None else _NO_KEY
        same = hmac.compare_digest(_digest(key), expected)
        if record is None or not same or not record.live(now):
            return None
        return record


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _add(
    file: _File,
    tenant: str,
    scopes: tuple[str, ...],
    name: str,
    now: float,
    expires_s: float | None,
) -> tuple[KeyRecord, str]:
    if len(file.keys) >= MAX_KEYS:
        raise BadRequest(f"the file holds {len(file.keys)} keys, expected fewer than {MAX_KEYS}")
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}{key_id}_{secrets.token_hex(32)}"
    record = KeyRecord(
        id=key_id,
        sha256=_digest(key),
        tenant=tenant,
        scopes=scopes,
        name=name,
        created=now,
        expires=None if expires_s is None else now + expires_s,
    )
    file.keys.append(record)
    return record, key


def _check_scopes(scopes: Sequence[str]) -> None:
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise BadRequest(
            f"read scope {', '.join(unknown) or 'none'}, expected some of {', '.join(SCOPES)}"
        )


def _find(file: _File, key_id: str) -> tuple[int, KeyRecord]:
    wanted = key_id[len(PREFIX) :] if key_id.startswith(PREFIX) else key_id
    for at, record in enumerate(file.keys):
        if record.id == wanted:
            return at, record
    raise NotFound("no key of that id")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """By which a changed file is known; None: there is none."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _read(path: Path) -> _File:
    try:
        facts = path.stat()
        raw = path.read_bytes()
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error
    if facts.st_mode & 0o077:
        mode = facts.st_mode & 0o777
        raise ConfigError(f"key file {path} has mode {mode:o}, expected 600: run chmod 600")
    try:
        return msgspec.json.decode(raw, type=_File)
    except msgspec.DecodeError as error:
        raise ConfigError(f"key file {path} is damaged: {error}") from error


@contextmanager
def _changing(path: Path) -> Iterator[_File]:
    """The file's content, written back whole on leaving without an exception. Two writers
    wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = _read(path)
        yield file
        _write(path, msgspec.json.format(msgspec.json.encode(file)))
    finally:
        os.close(lock)


def _write(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content + b"\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
