"""Blobs, in a folder and behind an fsspec URL: one contract, both homes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import fsspec
import pytest

from forebay.blobs import Blobs, Limits, LocalBlobs, open_blobs
from forebay.blobs.names import NOBODY, expires_s, is_name, name_of, owner_of, tag_of
from forebay.blobs.remote import RemoteBlobs, cache_folder
from forebay.errors import ConfigError, MissingEngine, NotFound, QuotaExceeded, StoreFull


class Wall:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Home:
    """A kind of store, and how to look into it from outside."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.kind = kind
        self.tmp_path = tmp_path
        self.wall = Wall()
        self.url = f"memory://blobs-{tmp_path.name}-{os.getpid()}"

    def open(self, limits: Limits | None = None) -> Blobs:
        if self.kind == "folder":
            return LocalBlobs(self.tmp_path / "blobs", limits, wall=self.wall)
        return RemoteBlobs(self.url, self.tmp_path / "cache", limits, wall=self.wall)

    def names(self) -> set[str]:
        if self.kind == "folder":
            return {p.name for p in (self.tmp_path / "blobs").glob("*")}
        fs, root = fsspec.core.url_to_fs(self.url)
        return (
            {e.rsplit("/", 1)[-1] for e in fs.ls(root, detail=False)} if fs.exists(root) else set()
        )

    def forget_copies(self) -> None:
        for path in (self.tmp_path / "cache").glob("*"):
            path.unlink()


@pytest.fixture(params=["folder", "url"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home(request.param, tmp_path)


def test_what_was_put_is_there_whole(home: Home) -> None:
    blobs = home.open()
    name = blobs.put([b"one ", b"two"])
    assert blobs.path(name).read_bytes() == b"one two"
    home.forget_copies()
    assert home.open().path(name).read_bytes() == b"one two"
    assert home.names() == {name}


@pytest.mark.parametrize(
    "name",
    ["", "../x", "/etc/passwd", "a" * 31, "A" * 32, "a" * 32 + "\n", "0" * 31 + "/", "\0" * 32],
)
def test_a_name_that_is_none_of_ours_is_not_found_and_no_path(home: Home, name: str) -> None:
    blobs = home.open()
    with pytest.raises(NotFound):
        blobs.path(name)
    blobs.drop(name)


def test_an_unknown_name_is_not_found(home: Home) -> None:
    with pytest.raises(NotFound):
        home.open().path("0" * 32)


def test_a_dropped_blob_is_gone_and_dropping_it_again_is_nothing(home: Home) -> None:
    blobs = home.open()
    name = blobs.put([b"x"])
    blobs.drop(name)
    blobs.drop(name)
    with pytest.raises(NotFound):
        blobs.path(name)
    assert home.names() == set()


def test_a_write_that_is_given_up_leaves_nothing(home: Home) -> None:
    blobs = home.open(Limits(total_bytes=10))
    writer = blobs.writer(10)
    writer.write(b"abc")
    writer.abort()
    writer.abort()
    assert home.names() == set()
    assert not list(home.tmp_path.rglob("*.part"))
    with pytest.raises(StoreFull):
        writer.write(b"more")
    assert blobs.put([b"0123456789"])  # what it had reserved is free again


def test_parts_that_fail_leave_nothing(home: Home) -> None:
    def parts():
        yield b"abc"
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        home.open().put(parts())
    assert home.names() == set()
    assert not list(home.tmp_path.rglob("*.part"))


def test_a_tenant_is_held_to_its_own_quota_by_name(home: Home) -> None:
    blobs = home.open(Limits(tenant_bytes=10))
    mine, yours = blobs.of("me"), blobs.of("you")
    name = mine.put([b"12345678"])
    with pytest.raises(QuotaExceeded) as refused:
        mine.put([b"345"])
    assert refused.value.details["limit_bytes"] == 10
    assert refused.value.http_status == 429
    assert yours.put([b"0123456789"])
    mine.drop(name)
    assert mine.put([b"0123456789"])


def test_the_store_is_held_to_its_total(home: Home) -> None:
    blobs = home.open(Limits(total_bytes=10))
    blobs.of("me").put([b"123456"])
    with pytest.raises(StoreFull) as refused:
        blobs.of("you").put([b"12345"])
    assert refused.value.http_status == 503
    assert refused.value.retry_after_s
    assert blobs.usage().total == 6


def test_what_is_announced_counts_before_it_is_written(home: Home) -> None:
    blobs = home.open(Limits(total_bytes=10))
    writer = blobs.writer(8)
    assert blobs.usage().coming == 8
    with pytest.raises(StoreFull):
        blobs.writer(3)
    writer.write(b"12345678")
    with pytest.raises(StoreFull):
        writer.write(b"901")
    assert blobs.usage().coming == 0


def test_what_another_process_wrote_is_counted(home: Home) -> None:
    home.open().of("me").put([b"123456789"])
    with pytest.raises(QuotaExceeded):
        home.open(Limits(tenant_bytes=10)).of("me").put([b"12"])


def test_a_blob_goes_after_its_own_time(home: Home) -> None:
    blobs = home.open()
    short, long = blobs.of("me", 60).put([b"a"]), blobs.of("me", 7200).put([b"b"])
    assert blobs.sweep() == 0
    home.wall.now += 130
    assert blobs.sweep() == 1
    with pytest.raises(NotFound):
        blobs.path(short)
    assert blobs.path(long).read_bytes() == b"b"


def test_a_name_says_whose_and_until_when_and_nothing_of_the_tenant() -> None:
    name = name_of("acme", 1000.0, 7)
    assert is_name(name)
    assert owner_of(name) == tag_of("acme") != tag_of("other")
    assert 1000 < expires_s(name) <= 1060
    assert "acme" not in name
    assert tag_of("") == NOBODY
    assert is_name(name_of("x", 1e30, 2**68 - 1))


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "deep" / "blobs")
    blobs.put([b"x"])
    assert stat.S_IMODE(blobs.folder.stat().st_mode) == 0o700


def test_an_old_unfinished_write_is_swept(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    old, new = tmp_path / "x.part", tmp_path / "y.part"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    assert blobs.sweep() == 1
    assert new.exists()


def test_a_folder_that_cannot_be_written_is_a_full_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFull):
        LocalBlobs(tmp_path / "file").put([b"x"])


def test_a_remote_store_that_fails_is_a_full_store_and_keeps_no_part(tmp_path: Path) -> None:
    blobs = RemoteBlobs(f"memory://broken-{tmp_path.name}", tmp_path / "cache")
    name = blobs.put([b"x"])

    class Broken:
        def __getattr__(self, _: str):
            def fail(*args: object, **facts: object) -> None:
                raise RuntimeError("no such bucket")

            return fail

    blobs._fs = Broken()
    with pytest.raises(StoreFull):
        blobs.put([b"y"])
    (tmp_path / "cache" / name).unlink()
    with pytest.raises(StoreFull):
        blobs.path(name)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_copies_past_their_time_or_too_many_are_thinned_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Wall()
    blobs = RemoteBlobs(f"memory://thin-{tmp_path.name}", tmp_path / "cache", wall=wall)
    kept = blobs.put([b"x" * 100])
    monkeypatch.setattr("forebay.blobs.remote.CACHE_BYTES", 50)
    os.utime(tmp_path / "cache" / kept, (wall.now, wall.now))
    blobs.sweep()
    assert (tmp_path / "cache" / kept).exists()
    os.utime(tmp_path / "cache" / kept, (1, 1))
    blobs.sweep()
    assert not (tmp_path / "cache" / kept).exists()
    assert blobs.path(kept).read_bytes() == b"x" * 100


def test_a_place_is_a_folder_or_a_url_that_something_understands(tmp_path: Path) -> None:
    assert isinstance(open_blobs(tmp_path), LocalBlobs)
    assert isinstance(open_blobs("memory://x", cache=tmp_path), RemoteBlobs)
    with pytest.raises(ConfigError):
        open_blobs("nosuchthing://x", cache=tmp_path)
    with pytest.raises(MissingEngine):
        open_blobs("gs://bucket/x", cache=tmp_path)


def test_a_cache_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    folder = cache_folder(str(tmp_path))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(ConfigError):
        cache_folder(str(tmp_path))
