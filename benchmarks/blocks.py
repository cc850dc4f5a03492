"""How far blocks must look to find their objects, on true nuclei.

    python benchmarks/blocks.py DATA [--block 256]

DATA holds labels/ of nuclei at 0.25 µm per pixel. Each label map becomes the probabilities of a
perfect network. For each halo: how many blocks had to look further, how many pixels all blocks
read for each of their own, and whether the objects are those of decoding at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile

from cdal_engine import targets
from cdal_engine.blocks import assemble, decode_block
from cdal_engine.config import ModelConfig
from cdal_engine.tiling import Box, plan


def main() -> None:
    """Print one line a halo."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--block", type=int, default=256)
    options = parser.parse_args()
    config = ModelConfig()
    maps = []
    for path in sorted((options.data / "labels").glob("*.tif")):
        maps.append((targets.encode(tifffile.imread(path).astype(np.int32), config) + 1) / 2)
    whole = [targets.decode(p, config, 0.25) for p in maps]
    print(f"{'halo':>5} {'blocks':>7} {'looked further':>15} {'pixels read':>12} {'same':>5}")
    for halo in (8, 16, 32, 64, 96, 128):
        blocks = further = read_pixels = 0
        same = True
        for p, expected in zip(maps, whole, strict=True):
            found = []
            for tile in plan(p.shape[1:], options.block, 0):
                boxes: list[Box] = []

                def read(box: Box, p: np.ndarray = p, boxes: list[Box] = boxes) -> np.ndarray:
                    boxes.append(box)
                    return p[:, *box]

                found.append(decode_block(read, p.shape[1:], tile.core, config, 0.25, halo))
                blocks += 1
                further += len(boxes) > 1
                read_pixels += sum(p[0][box].size for box in boxes)
            same &= np.array_equal(assemble(found, p.shape[1:]), expected)
        share = read_pixels / sum(p[0].size for p in maps)
        print(f"{halo:>5} {blocks:>7} {further:>15} {share:>11.2f}x {same!s:>5}", flush=True)


if __name__ == "__main__":
    main()
