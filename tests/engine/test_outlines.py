"""Outlines: exactly the pixels, whatever touches, encloses or pinches."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import ndimage as ndi

from cdal_engine.outlines import Outlines, trace

maps = npst.arrays(
    np.uint32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=14),
    elements=st.sampled_from([0, 1, 2, 7, 2**32 - 1]),
    fill=st.just(0) | st.just(7),
)


def rings_of(outlines: Outlines) -> list[tuple[int, bool, np.ndarray]]:
    points = [outlines.points[a:b] for a, b in pairwise(outlines.starts.tolist())]
    return list(zip(outlines.labels.tolist(), outlines.outer.tolist(), points, strict=True))


def inside(ring: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels whose centre a ring goes round: left of an odd number of its upright edges."""
    crossed = np.zeros((shape[0], shape[1] + 1), int)
    for (x, y), (to_x, to_y) in pairwise(ring.tolist()):
        assert (x == to_x) != (y == to_y)
        crossed[min(y, to_y) : max(y, to_y), x] += 1
    return crossed[:, :-1].cumsum(axis=1) % 2 == 1


@settings(max_examples=200)
@given(maps)
def test_rings_drawn_give_the_labels_back(labels: np.ndarray) -> None:
    outlines = trace(labels)
    drawn = np.zeros_like(labels)
    for label, _, ring in rings_of(outlines):
        drawn ^= np.where(inside(ring, labels.shape), np.uint32(label), np.uint32(0))
    assert (np.diff(outlines.labels.astype(np.int64)) >= 0).all()
    assert np.array_equal(drawn, labels)


@settings(max_examples=200)
@given(maps)
def test_a_polygon_is_one_piece_with_its_own_holes(labels: np.ndarray) -> None:
    pieces: dict[int, list[np.ndarray]] = {}
    for label, outer, ring in rings_of(trace(labels)):
        if outer:
            pieces.setdefault(label, []).append(inside(ring, labels.shape))
        else:
            hole = inside(ring, labels.shape)
            assert (hole <= pieces[label][-1]).all()
            pieces[label][-1] = pieces[label][-1] & ~hole
    assert set(pieces) == set(np.unique(labels).tolist()) - {0}
    for label, polygons in pieces.items():
        found, count = ndi.label(labels == label)
        true = {(found == i).tobytes() for i in range(1, count + 1)}
        assert {polygon.tobytes() for polygon in polygons} == true
        assert len(polygons) == count


@settings(max_examples=200)
@given(maps)
def test_rings_are_closed_turn_everywhere_and_never_meet_themselves(labels: np.ndarray) -> None:
    for _, _, ring in rings_of(trace(labels)):
        assert (ring[0] == ring[-1]).all()
        corners = ring[:-1].tolist()
        assert len({tuple(corner) for corner in corners}) == len(corners)
        upright = np.diff(ring[:, 0]) == 0
        assert (upright != np.roll(upright, 1)).all()


@pytest.mark.parametrize("width", [3, 70, 300])
def test_long_rings_and_many_rows(width: int) -> None:
    """A comb whose one ring goes up and down all teeth, over several bands of rows."""
    labels = np.zeros((200, width), np.uint32)
    labels[:, ::2] = 5
    labels[-1] = 5
    ((label, outer, ring),) = rings_of(trace(labels))
    assert (label, outer) == (5, True)
    assert np.array_equal(inside(ring, labels.shape), labels == 5)


def test_nothing_has_no_outline() -> None:
    outlines = trace(np.zeros((4, 5), np.uint32))
    assert rings_of(outlines) == []
