"""Measure the halo a model needs: largest change of any probability when tiles are small.

    python benchmarks/halo.py MODEL IMAGE... [--tile 256]

Prints, for each halo, the largest difference from the answer with the computed halo, in which
nothing a pixel depends on is cut off. Put the smallest sufficient one into the model's config.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from cdal_engine.io.discovery import open_source
from cdal_engine.model import Model
from cdal_engine.networks import receptive_halo
from cdal_engine.segmenter import Segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--tile", type=int, default=256)
    options = parser.parse_args()
    model = Model.load(options.model)
    stride = model.config.network.stride
    computed = receptive_halo(model.config, model.config.diffusion.steps)
    images = [(path, open_source(path).read()) for path in options.images]

    def answers(halo: int) -> list[tuple[np.ndarray, np.ndarray]]:
        config = model.config.model_copy(update={"halo": halo})
        segmenter = Segmenter(replace(model, config=config), "cpu", options.tile)
        results = [segmenter.segment(image, samples=1) for _, image in images]
        return [(r.probability, r.attention) for r in results]

    print(f"{model.name}: tiles of {options.tile}, stride {stride}, computed halo {computed}")
    exact = answers(computed)
    print(f"{'halo':>6} {'probability':>12} {'attention':>12} {'tile of 1024 costs':>20}")
    for halo in range(2 * stride, computed, 2 * stride):
        largest = [
            max(float(np.abs(a[i] - b[i]).max()) for a, b in zip(answers(halo), exact, strict=True))
            for i in (0, 1)
        ]
        cost = ((1024 + 2 * halo) / 1024) ** 2
        print(f"{halo:>6} {largest[0]:>12.2e} {largest[1]:>12.2e} {cost:>19.2f}x", flush=True)


if __name__ == "__main__":
    main()
