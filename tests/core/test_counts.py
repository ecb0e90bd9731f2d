"""Counts among what a worker's beat carries."""

from forebay.core.spec import COUNT, counts_of


def test_counts_are_told_from_the_rest_by_their_names() -> None:
    assert counts_of({"busy": 1, COUNT + "answers": 3, "cpu_s": 0.5}) == {"answers": 3.0}
    assert counts_of({}) == {}
