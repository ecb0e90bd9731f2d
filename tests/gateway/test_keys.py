"""API keys: made once, stored as a hash, found in constant time, rotated, revoked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from forebay.errors import BadRequest, ConfigError, NotFound
from forebay.gateway import keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys.json"


def test_a_key_is_shown_once_and_only_its_hash_is_kept(path: Path) -> None:
    record, key = keys.create(path, now=100.0, tenant="acme", name="ci")
    assert key.startswith(f"fb_{record.id}_")
    assert len(key.rpartition("_")[2]) == 64
    text = path.read_text()
    assert key.rpartition("_")[2] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.list_keys(path) == [record]
    assert record.created == 100.0


def test_a_store_finds_live_keys_and_no_others(path: Path) -> None:
    record, key = keys.create(path, now=0.0, expires_s=60)
    other, _ = keys.create(path, now=0.0)
    store = keys.KeyStore(path)
    assert store.find(key, now=59.0, clock=0.0) == record
    assert store.find(key, now=60.0, clock=0.0) is None
    secret = key.rpartition("_")[2]
    for wrong in ("", "fb_", "fb__", key[:-1], key + "0", key.upper(), f"fb_{other.id}_{secret}",
                  f"xx_{record.id}_{secret}", secret, "fb_" + "é" * 40):  # fmt: skip
        assert store.find(wrong, now=1.0, clock=0.0) is None


def test_a_changed_file_is_noticed_within_a_second_and_a_revoked_key_is_dead(path: Path) -> None:
    record, key = keys.create(path, now=0.0)
    store = keys.KeyStore(path)
    assert store.find(key, now=1.0, clock=10.0) is not None
    keys.revoke(path, record.id)
    assert store.find(key, now=1.0, clock=10.5) is not None
    assert store.find(key, now=1.0, clock=11.0) is None
    keys.revoke(path, key[:15])  # by what it begins with, again


def test_rotation_leaves_both_keys_alive_for_the_grace_time(path: Path) -> None:
    old, old_key = keys.create(path, now=0.0, tenant="acme", scopes=("read",), name="n")
    new, new_key = keys.rotate(path, old.id, now=1000.0, grace_s=60)
    assert (new.tenant, new.scopes, new.name) == ("acme", ("read",), "n")
    store = keys.KeyStore(path)
    assert store.find(old_key, now=1059.0, clock=0.0) is not None
    assert store.find(old_key, now=1061.0, clock=0.0) is None
    assert store.find(new_key, now=1e9, clock=0.0) == new


@pytest.mark.parametrize("scopes", [(), ("root",), ("read", "nonsense")])
def test_unknown_scopes_are_refused(path: Path, scopes: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="expected some of submit"):
        keys.create(path, now=0.0, scopes=scopes)
    assert keys.list_keys(path) == []


@pytest.mark.parametrize("tenant", ["", "a b", "a/b", "é", "x" * 65, "a\n"])
def test_odd_tenants_are_refused(path: Path, tenant: str) -> None:
    with pytest.raises(BadRequest, match="tenant"):
        keys.create(path, now=0.0, tenant=tenant)


def test_unknown_ids_are_not_found(path: Path) -> None:
    for act in (lambda: keys.revoke(path, "nope"), lambda: keys.rotate(path, "nope", now=0.0)):
        with pytest.raises(NotFound):
            act()


def test_no_file_means_no_keys(path: Path) -> None:
    assert keys.list_keys(path) == []
    assert len(keys.KeyStore(path)) == 0


def test_a_file_others_may_read_is_refused(path: Path) -> None:
    keys.create(path, now=0.0)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 644, expected 600"):
        keys.list_keys(path)


def test_a_damaged_file_is_named_and_the_old_keys_stay_in_force(path: Path) -> None:
    _, key = keys.create(path, now=0.0)
    store = keys.KeyStore(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        store.reload()
    assert store.find(key, now=0.0, clock=0.0) is not None
