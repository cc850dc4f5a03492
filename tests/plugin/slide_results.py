"""Results of the small slide, to be corrected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.draw import disk

from cdal_engine.instances import measure
from cdal_engine.io.discovery import open_source
from cdal_engine.io.ome_zarr import write_labels
from cdal_engine.io.results import ResultsFolder
from cdal_engine.io.tables import TableWriter, object_table
from cdal_engine.samples import slide_path

PIXEL = 2  # of the slide, to one of its labels


def write_results(folder: Path, seed: int) -> Path:
    """Results of the small slide as a run publishes them, with disks for nuclei."""
    source = open_source(slide_path())
    assert source.mpp is not None
    rng = np.random.default_rng(seed)
    labels = np.zeros([-(-n // PIXEL) for n in source.shape], np.uint32)
    for number, place in enumerate(rng.uniform(0, labels.shape, (60, 2)), 1):
        labels[disk(place, rng.uniform(5, 9), shape=labels.shape)] = number
    objects = measure(labels, np.full(labels.shape, 0.9, np.float32))
    count = len(objects["label"])
    objects["agreement"] = rng.choice([0.4, 0.6, 1.0], count).astype(np.float32)
    objects["class"] = np.full(count, "nucleus")
    with ResultsFolder(folder) as results:
        pixels = source.mpp * PIXEL
        write_labels(results.aside / "labels.ome.zarr", labels, pixels, source.mpp / 2)
        with TableWriter(results.aside) as table:
            table.add(object_table(objects, PIXEL, source.mpp, source.shape))
        results.publish(
            {
                "input": {"path": str(slide_path()), "shape": list(source.shape)},
                "model": {"name": "tiny", "digest": f"{seed}"},
                "parameters": {"samples": 5, "steps": 2, "seed": seed},
                "mpp": source.mpp,
            }
        )
    return folder
