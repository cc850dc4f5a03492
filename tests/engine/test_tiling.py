"""Where tiles lie."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cdal_engine.tiling import cut, hull, plan_fixed


@given(st.integers(0, 50), st.integers(1, 500), st.integers(4, 100))
def test_no_piece_is_a_sliver(start: int, length: int, edge: int) -> None:
    pieces = cut(slice(start, start + length), edge)
    assert [n for p in pieces for n in range(p.start, p.stop)] == list(range(start, start + length))
    lengths = [p.stop - p.start for p in pieces]
    assert max(lengths) <= 1.25 * edge
    assert len(pieces) == 1 or min(lengths) > edge / 4


@given(st.data())
def test_fixed_tiles_cover_a_grid_once(data: st.DataObject) -> None:
    tile = data.draw(st.integers(2, 40))
    halo = data.draw(st.integers(0, (tile - 1) // 2))
    size = tuple(data.draw(st.integers(tile, 150)) for _ in range(2))
    tiles = plan_fixed(size, tile, halo)
    covered = np.zeros(size, int)
    for one in tiles:
        covered[one.core] += 1
        assert one.shape == (tile, tile)
        for core, box, n in zip(one.core, one.box, size, strict=True):
            assert box.start >= 0
            assert box.stop <= n
            assert core.start - box.start >= halo or core.start == 0
            assert box.stop - core.stop >= halo or core.stop == n
    assert (covered == 1).all()
    assert hull(tiles) == tuple(slice(0, n) for n in size)
    part = tuple(
        slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n))) for n in size
    )
    of_part = plan_fixed(size, tile, halo, part)
    assert {str(t.box) for t in of_part} <= {str(t.box) for t in tiles}
    covered[part] = 0
    for one in of_part:
        covered[one.core] += 1
    assert (covered == 1).all()
