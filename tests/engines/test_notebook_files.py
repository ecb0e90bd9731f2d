"""A notebook's folder against hostile content: nothing leads out of it, nothing blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forebay.core.events import FileOp
from forebay.core.notebook import FileInUse
from forebay.engines.notebook_files import Files, file_result
from forebay.errors import BadRequest, NotFound, QuotaExceeded


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    made = Files(tmp_path / "book", 10_000)
    made.make()
    return made


def test_what_is_written_is_read_listed_and_deleted(files: Files) -> None:
    facts = files.write("a/b/c.txt", b"hi")
    assert (facts["path"], facts["size"], facts["type"]) == ("a/b/c.txt", 2, "file")
    assert files.read("a/b/c.txt")[1] == b"hi"
    files.write("z.txt", b"")
    files.write(".hidden", b"")
    files.write(".assets/p.png", b"")
    assert [n["name"] for n in files.tree()] == [".assets", "a", "z.txt"]
    assert files.info("a")["type"] == "directory"
    files.delete("a")
    with pytest.raises(NotFound):
        files.read("a/b/c.txt")
    assert not [n for n in files.folder.iterdir() if n.name.endswith(".part")]


def test_links_lead_nowhere_for_any_operation(files: Files, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (files.folder / "dir").symlink_to(outside)
    (files.folder / "file").symlink_to(outside / "secret")
    for name in ("dir/secret", "file"):
        with pytest.raises(NotFound):
            files.read(name)
    with pytest.raises(NotFound):
        files.write("dir/new", b"x")
    files.write("file", b"mine")  # takes the link's place
    assert (outside / "secret").read_text() == "secret"
    files.delete("dir")
    assert (outside / "secret").exists()
    assert [n["name"] for n in files.tree()] == ["file"]


def test_pipes_and_devices_block_nobody(files: Files) -> None:
    os.mkfifo(files.folder / "pipe")
    with pytest.raises(NotFound):
        files.read("pipe")
    with pytest.raises(NotFound):
        files.info("pipe")
    assert files.tree() == []


def test_a_file_in_use_a_folder_and_a_full_notebook_are_refused(files: Files) -> None:
    files.write("a", b"1")
    with pytest.raises(FileInUse):
        files.write("a", b"2", overwrite=False)
    files.write("d/x", b"1")
    with pytest.raises(BadRequest):
        files.write("d", b"2")
    with pytest.raises(NotFound, match="d is a folder"):
        files.read("d")
    with pytest.raises(NotFound):
        files.write("none/x", b"2", make_dirs=False)
    with pytest.raises(QuotaExceeded):
        files.write("big", b"x" * 10_001)
    assert files.read("a")[1] == b"1"


def test_names_that_cannot_be_shown_are_left_out(files: Files) -> None:
    (files.folder / "new\nline").write_text("")
    with open(os.fsencode(files.folder) + b"/\xff", "wb"):
        pass
    files.write("good", b"")
    assert [n["name"] for n in files.tree()] == ["good"]


def test_a_notebook_without_a_folder_has_no_files(tmp_path: Path) -> None:
    none = Files(tmp_path / "none", 100)
    assert not none.exists()
    with pytest.raises(NotFound):
        none.tree()
    for op in ("list", "info", "read", "delete"):
        with pytest.raises((NotFound, BadRequest)):
            file_result(none, FileOp(op=op, args={"name": "x"}))
    with pytest.raises(BadRequest):
        file_result(none, FileOp(op="format the disk"))
    assert file_result(none, FileOp(op="forget")).value == {"exists": False}
