"""Pieces worked on side by side come together in order, and nobody is left in the network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from forebay.engines.ncnn_net import Net, Shape, Stopped, lanes_of
from forebay.engines.pictures import Box, Pixels, plan
from forebay.errors import EngineFailed

SHAPE = Shape(param="", weights="", input="", output="", scale=2, pad=0, side=40, lanes=4)


class Doubling(Net):
    """Doubles pixels instead of running a network. ``first``: called with every piece."""

    def __init__(self, lanes: int, first: Callable[[Box], None] = lambda box: None) -> None:
        self.shape, self._scale, self._lanes = SHAPE, SHAPE.scale, lanes
        self.first = first

    def _piece(self, picture: Pixels, box: Box) -> Pixels:
        self.first(box)
        part = picture[box.y : box.y + box.height, box.x : box.x + box.width]
        return part.repeat(2, axis=0).repeat(2, axis=1)


def picture(width: int = 100, height: int = 90) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def still_inside() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("net")]


def test_lanes_share_the_threads_without_a_rest() -> None:
    found = [lanes_of(threads, 4) for threads in (1, 2, 3, 4, 5, 6, 8, 16)]
    assert found == [1, 2, 3, 4, 1, 3, 4, 4]
    assert lanes_of(8, 1) == 1


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 5), (100, 90)])
def test_parts_come_in_order_and_whole_whichever_piece_is_done_first(
    lanes: int, size: tuple[int, int]
) -> None:
    given = picture(*size)
    boxes = plan(*size, 60)
    late = iter([0.02, 0.0] * 200)
    net = Doubling(lanes, lambda box: time.sleep(next(late)))
    canvas = np.zeros((size[1] * 2, size[0] * 2, 3), np.uint8)
    tiles = list(net.tiles(given, list(enumerate(boxes)), len(boxes), lambda: False))
    assert [tile.index for tile in tiles] == list(range(len(boxes)))
    for tile in tiles:
        part = np.frombuffer(tile.data, np.uint8).reshape(tile.height, tile.width, 3)
        canvas[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = part
    assert (canvas == given.repeat(2, axis=0).repeat(2, axis=1)).all()
    assert still_inside() == []


def test_as_many_pieces_as_there_are_lanes_are_worked_on_at_once() -> None:
    meet = threading.Barrier(2, timeout=20)
    net = Doubling(2, lambda box: (meet.wait(), None)[1])
    assert net.enlarge(picture(80, 80), Box(0, 0, 80, 80), lambda: False).shape == (160, 160, 3)


def test_no_more_is_worked_ahead_than_the_lanes_and_one() -> None:
    done: list[Box] = []
    net = Doubling(2, done.append)
    boxes = plan(100, 90, 20)
    parts = net.parts(picture(), boxes, lambda: False)
    next(parts)
    time.sleep(0.1)  # nobody takes anything meanwhile
    assert len(done) <= 2 + 3
    parts.close()
    assert still_inside() == []


def test_who_is_stopped_leaves_before_another_piece_is_begun() -> None:
    stop = threading.Event()
    done: list[Box] = []

    def first(box: Box) -> None:
        done.append(box)
        if len(done) >= 3:
            stop.set()
            time.sleep(0.05)

    net = Doubling(2, first)
    with pytest.raises(Stopped):
        list(net.parts(picture(), plan(100, 90, 20), stop.is_set))
    assert len(done) <= 4
    assert still_inside() == []


def test_a_piece_that_fails_ends_the_call_and_the_others() -> None:
    def first(box: Box) -> None:
        if box.y > 30:
            raise EngineFailed("ncnn ended with status -100")

    with pytest.raises(EngineFailed, match="-100"):
        list(Doubling(2, first).parts(picture(), plan(100, 90, 20), lambda: False))
    assert still_inside() == []
