"""Ids and file names of notebooks: what is let in, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.core.notebook import MAX_DEPTH, affinity_of, check_id, check_path, folder_of
from forebay.errors import BadRequest


@pytest.mark.parametrize("good", ["a", "A-b_9", "0" * 128])
def test_an_id_of_word_characters_and_dashes_is_taken(good: str) -> None:
    assert check_id(good) == good


@pytest.mark.parametrize("bad", ["", "a b", "../x", "a/b", "é", "a\n", "x" * 129, None, 5])
def test_any_other_id_is_refused(bad: object) -> None:
    with pytest.raises(BadRequest):
        check_id(bad)


@pytest.mark.parametrize("good", ["a.txt", "dir/a b.csv", ".assets/图.png", "a/.hidden"])
def test_plain_relative_names_are_taken(good: str) -> None:
    assert "/".join(check_path(good)) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../../b",
        "a//b",
        "./a",
        "a/.",
        "a\0b",
        "a\\..\\b",
        "a\nb",
        "x" * 2000,
        "/".join("a" * (MAX_DEPTH + 1)),
        "x" * 256,
        "\ud800",
        None,
        7,
    ],
)
def test_names_that_could_leave_the_folder_are_refused(bad: object) -> None:
    with pytest.raises(BadRequest):
        check_path(bad)


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(["a", "b-1", "_"]))
def test_no_two_tenants_share_a_folder_or_an_affinity(one: str, two: str, notebook: str) -> None:
    left, right = affinity_of(one, notebook), affinity_of(two, notebook)
    assert (left == right) == (one == two)
    assert (folder_of(left) == folder_of(right)) == (one == two)
    parts = folder_of(left).split("/")
    assert len(parts) == 2
    assert not {"", ".", ".."} & set(parts)
