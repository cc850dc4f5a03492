"""How fast objects are measured and written by one core, and whether memory stays flat.

    python benchmarks/objects.py [--objects 1000000]

Blocks of 1024 pixels with 1024 nucleus-like objects of a rough edge each, some touching, go through
`measure`, the table and the GeoJSON as a slide's blocks do. Prints objects a second of processor
time, and the peak of memory after the first tenth and at the end.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from cdal_engine import instances
from cdal_engine.io.geojson import GeoJsonWriter
from cdal_engine.io.tables import TableWriter, object_table

EDGE, PITCH = 1024, 32
PER_BLOCK = (EDGE // PITCH) ** 2
ACROSS = 32  # blocks in a row


def block(rng: np.random.Generator) -> np.ndarray:
    """Labels of a block of ellipses about 26 pixels long."""
    y, x = np.mgrid[:EDGE, :EDGE]
    cell = y // PITCH * (EDGE // PITCH) + x // PITCH
    angle, radius, flat = (
        rng.uniform(low, high, PER_BLOCK)[cell] for low, high in ((0, np.pi), (9, 17), (0.6, 1))
    )
    dy, dx = y % PITCH - PITCH / 2 + 0.5, x % PITCH - PITCH / 2 + 0.5
    along, beside = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    rough = rng.normal(0, 0.3, y.shape)
    return np.where(np.hypot(along, beside / flat) + rough < radius, cell + 1, 0).astype(np.uint32)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--objects", type=int, default=1_000_000)
    blocks = -(-parser.parse_args().objects // PER_BLOCK)
    rng = np.random.default_rng(0)
    templates = [block(rng) for _ in range(4)]
    image = rng.integers(0, 255, (EDGE, EDGE, 3), np.uint8)
    probability = rng.random((EDGE, EDGE), np.float32)
    shape = (-(-blocks // ACROSS) * EDGE, ACROSS * EDGE)
    seconds = {"measure": 0.0, "table": 0.0, "geojson": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            TableWriter(folder) as table,
            GeoJsonWriter(folder / "objects.geojson", "a.svs", 0.25, shape, 1.0) as outlines,
        ):
            for i in range(blocks):
                labels = templates[i % len(templates)]
                labels = labels + np.uint32(i * PER_BLOCK) * (labels > 0)
                corner = (i // ACROSS * EDGE, i % ACROSS * EDGE)
                start = time.process_time()
                objects = instances.measure(labels, probability, image)
                objects["agreement"] = np.full(len(objects["label"]), 0.8, np.float32)
                objects["class"] = np.full(len(objects["label"]), "nucleus")
                for axis, offset in zip("yx", corner, strict=True):
                    for key in (axis, f"{axis}0", f"{axis}1"):
                        objects[key] = objects[key] + offset
                measured = time.process_time()
                table.add(object_table(objects, 1.0, 0.25, shape))
                tabled = time.process_time()
                outlines.add(labels, objects, corner)
                seconds["measure"] += measured - start
                seconds["table"] += tabled - measured
                seconds["geojson"] += time.process_time() - tabled
                if i == blocks // 10:
                    print(f"peak after a tenth {peak_mb():.0f} MB")
        sizes = {path.name: path.stat().st_size / 1e6 for path in folder.iterdir()}
    print(f"peak at the end {peak_mb():.0f} MB")
    print(", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))
    count = blocks * PER_BLOCK
    for name, spent in seconds.items():
        print(f"{name}: {count / spent:.0f} objects/s, {spent / count * 1e6:.1f} us each")
    print(f"measure and table: {count / (seconds['measure'] + seconds['table']):.0f} objects/s")


if __name__ == "__main__":
    main()
