"""Objects found block by block are those found at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage as ndi
from scipy.special import expit

from cdal_engine import targets
from cdal_engine.blocks import HALO, assemble, decode_block
from cdal_engine.config import DecodeConfig, ModelConfig
from cdal_engine.tiling import Box, plan


def config_of(target: str, min_area: float = 0.0) -> ModelConfig:
    return ModelConfig(target=target, decode=DecodeConfig(min_area=min_area))


def field(seed: int, size: tuple[int, int], smooth: float, level: float) -> np.ndarray:
    """Background, interior and boundary of random blobs, (3, H, W), summing to 1."""
    rng = np.random.default_rng(seed)
    outer, deep = (ndi.gaussian_filter(rng.normal(size=size), smooth) * smooth for _ in range(2))
    inside = expit(10 * outer + 2 * level)
    inner = inside * expit(10 * deep + 1)
    return np.stack([1 - inside, inner, inside - inner]).astype(np.float32)


def by_blocks(p: np.ndarray, block: int, halo: int, config: ModelConfig) -> np.ndarray:
    size = p.shape[1:]
    blocks = [
        decode_block(lambda box: p[:, *box], size, tile.core, config, 0.25, halo)
        for tile in plan(size, block, 0)
    ]
    order = np.random.default_rng(0).permutation(len(blocks))
    return assemble([blocks[i] for i in order], size)


@given(
    st.integers(0, 2**31),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.floats(0.5, 5),
    st.floats(-2, 2),
    st.integers(5, 60),
    st.integers(0, 10),
    st.sampled_from(["nuclei", "binary"]),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([None, 1, 0]),
)
def test_any_blocks_give_what_decoding_at_once_gives(
    seed: int,
    size: tuple[int, int],
    smooth: float,
    level: float,
    block: int,
    halo: int,
    target: str,
    min_area: float,
    digits: int | None,
) -> None:
    """Of probabilities that differ, and of rounded ones, of which many are equal."""
    config = config_of(target, min_area)
    p = field(seed, size, smooth, level)
    p = p if digits is None else p.round(digits)
    p = p if target == "nuclei" else 1 - p[:1]
    whole = targets.decode(p, config, 0.25)
    assert np.array_equal(by_blocks(p, block, halo, config), whole)


def test_without_looking_further_objects_would_be_cut() -> None:
    """The property above can fail: decoding each block by itself does not have it."""
    config, p = config_of("nuclei"), field(1, (80, 80), 3, 0)
    alone = [targets.decode(p[:, *t.core], config, 0.25).max() for t in plan((80, 80), 20, 0)]
    assert sum(alone) > targets.decode(p, config, 0.25).max()


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_each_object_has_one_owner(size: tuple[int, int]) -> None:
    config, p = config_of("nuclei"), field(2, size, 2, 0)
    markers = [
        tuple(at)
        for tile in plan(size, 16, 0)
        for at in decode_block(
            lambda box: p[:, *box], size, tile.core, config, 0.25, halo=4
        ).markers
    ]
    assert len(set(markers)) == len(markers) == targets.decode(p, config, 0.25).max()


def test_a_block_looks_further_only_where_its_foreground_goes_on() -> None:
    p = np.zeros((3, 600, 600), np.float32)
    p[0] = 1
    p[:, 40:44, 40:44] = [[[0.0]], [[1.0]], [[0.0]]]  # well inside the first block
    p[:, 300:302, 100:500] = [[[0.0]], [[1.0]], [[0.0]]]  # longer than any halo
    seen: list[Box] = []

    def read(box: Box) -> np.ndarray:
        seen.append(box)
        return p[:, *box]

    config = config_of("nuclei")
    first = decode_block(read, (600, 600), (slice(0, 128), slice(0, 128)), config, 0.25)
    assert len(seen) == 1
    assert seen[0][0].stop == 128 + HALO
    assert len(first.markers) == 1
    seen.clear()
    line = decode_block(read, (600, 600), (slice(256, 384), slice(0, 128)), config, 0.25)
    assert len(seen) > 1
    assert (line.labels > 0).sum() == 800  # the whole line, by the block it starts in
    middle = decode_block(read, (600, 600), (slice(256, 384), slice(128, 256)), config, 0.25)
    assert len(middle.markers) == 0


def test_classes_have_no_objects() -> None:
    p = np.full((3, 8, 8), 0.3, np.float32)
    config = ModelConfig(target="classes", classes=("a", "b"))
    with pytest.raises(ValueError, match="regions, not objects"):
        by_blocks(p, 4, 2, config)


def test_no_blocks_no_objects() -> None:
    assert assemble([], (5, 7)).shape == (5, 7)
    empty = np.zeros((1, 9, 9), np.float32)
    assert by_blocks(empty, 4, 2, config_of("binary")).max() == 0


def test_nothing_is_read_beyond_the_limit() -> None:
    """A piece longer than what there is to read is cut there, and found by one block only."""
    p = np.zeros((3, 64, 600), np.float32)
    p[0] = 1
    p[:, 30:34, 10:590] = [[[0.0]], [[1.0]], [[0.0]]]
    config, seen = config_of("nuclei"), []

    def read(box: Box) -> np.ndarray:
        seen.append(box)
        return p[:, *box]

    limit = (slice(0, 64), slice(0, 256))
    first = decode_block(read, (64, 600), (slice(0, 64), slice(0, 128)), config, 0.25, 64, limit)
    assert max(box[1].stop for box in seen) == 256
    assert len(first.markers) == 1
    assert (first.labels > 0).sum() == 4 * (256 - 10)
    assert not first.others.any()
