"""What correcting is worth: a perfect corrector on images that a model is weak on.

    python benchmarks/corrections.py MONUSEG/train -o corrections.json
    python docs/review_plot.py corrections.json

Each image is cut into quarters. The last is held out; the others are cut into four regions each,
which the corrector makes right, those with the most disagreement first or in random order.

- Objects: Dice and PQ of the answer's labels over the number of objects that were reviewed.
- Regions: Dice and PQ of a model fine-tuned on the first n regions, on the held-out quarters. A
  run's length is in steps, so that a busy machine gets the same figures as an idle one.

Every row is printed and saved as it comes: first disagreement, then one random order at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdal_engine import metrics
from cdal_engine.corrections.learn import held_out, learn
from cdal_engine.corrections.queue import by_disagreement, regions_by_disagreement
from cdal_engine.io.results import write_plane
from cdal_engine.model import Model
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.dataset import find_pairs, read_pair
from cdal_engine.training.finetune import defaults
from cdal_engine.weights import find

WEAK = ("TCGA-50-5931-01Z-00-DX1",)  # of the validation images the only one below Dice 0.79
MPP = 0.25
SHUFFLES = 10  # of a part's objects


class Part:
    """A piece of an image with its true labels and the model's answer."""

    def __init__(self, image: NDArray, truth: NDArray, segmenter: Segmenter, samples: int) -> None:
        self.image, self.truth = image, truth
        answer = segmenter.segment(image, mpp=MPP, samples=samples)
        self.labels, self.objects = answer.labels, answer.objects


def quarters(array: NDArray) -> list[NDArray]:
    """Upper left, upper right, lower left, lower right."""
    y, x = (n // 2 for n in array.shape[:2])
    return [array[:y, :x], array[:y, x:], array[y:, :x], array[y:, x:]]


def scores(found: NDArray, truth: NDArray) -> dict[str, float]:
    return {
        "dice": metrics.dice(found > 0, truth > 0),
        "pq": metrics.panoptic_quality(found, truth)["pq"],
    }


def corrected(labels: NDArray, truth: NDArray, label: int, first: int) -> NDArray:
    """What a perfect corrector makes of an object: the nuclei that it shows, or nothing.

    Those are the true ones that mostly lie in it or that it mostly lies in, so parts of one are
    merged and several are split. True nucleus n is drawn as `first` + n, over background only.
    """
    result, here = labels.copy(), labels == label
    result[here] = 0
    ids, shared = np.unique(truth[here], return_counts=True)
    for each, pixels in zip(ids[ids > 0], shared[ids > 0], strict=True):
        true, number = truth == each, first + int(each)
        shown = 2 * pixels > min(true.sum(), here.sum())
        if shown or (result == number).any():  # the second: what was drawn gets what it lacked
            result[true & (result == 0)] = number
    return result


def by_objects(part: Part, order: NDArray) -> list[dict[str, float]]:
    """Scores of the labels after each tenth of the objects was reviewed."""
    labels, first = part.labels.astype(np.int64), int(part.labels.max()) + 1
    rows, ends = [scores(labels, part.truth)], np.linspace(0, len(order), 11).round().astype(int)
    for start, end in pairwise(ends):
        for row in order[start:end]:
            labels = corrected(labels, part.truth, int(part.objects["label"][row]), first)
        rows.append(scores(labels, part.truth))
    return rows


def object_curves(parts: list[Part]) -> dict[str, list[dict[str, float]]]:
    """Mean over the parts at each tenth of their objects, reviewed in either order."""
    curves: dict[str, list[list[dict[str, float]]]] = {"disagreement": [], "random": []}
    for part in parts:
        order = by_disagreement(part.objects["agreement"], part.objects["score"])
        curves["disagreement"].append(by_objects(part, order))
        for seed in range(SHUFFLES):
            shuffled = np.random.default_rng(seed).permutation(len(order))
            curves["random"].append(by_objects(part, shuffled))
    return {
        name: [
            {"share": i / 10, **{k: float(np.mean([r[k] for r in rows])) for k in ("dice", "pq")}}
            for i, rows in enumerate(zip(*each, strict=True))
        ]
        for name, each in curves.items()
    }


def region_order(parts: list[Part]) -> list[int]:
    """Parts by the doubt in them, as the Review widget suggests regions."""
    doubts = []
    for part in parts:
        agreement, score = part.objects["agreement"], part.objects["score"]
        doubts.append(float(np.where(np.isnan(agreement), 1 - score, 1 - agreement).sum()))
    size = max(max(part.truth.shape) for part in parts)
    middles = (np.arange(len(parts)) + 0.5) * size
    shape = (size, size * len(parts))
    boxes = regions_by_disagreement(np.full(len(parts), 1), middles, np.array(doubts), shape, size)
    return [box[1].start // size for box in boxes]


def fine_tuned(parts: list[Part], folder: Path, model: Path, options: argparse.Namespace) -> Path:
    """The best model after fine-tuning on parts made right, as the Learn page does it."""
    stems = {}
    for number, part in enumerate(parts, 1):
        stem = f"region-{number}-1"
        for kind, pixels in (("images", part.image), ("labels", part.truth.astype(np.uint32))):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            path = folder / "data" / kind / f"{stem}.tif"
            write_plane(path, pixels, MPP, rgb=kind == "images")
        stems[number] = [stem]
    chosen, run = held_out(stems), folder / "run"
    config = defaults(Model.load(model).config).model_copy(update={"steps": options.steps})
    endless = 1e4  # minutes: the steps are what ends a run
    return learn(folder / "data", run, model, chosen, options.device, endless, config=config).best


def judged(model: Path, held: list[Part], options: argparse.Namespace) -> dict[str, float]:
    """Mean scores of a model on the held-out quarters."""
    segmenter = Segmenter(Model.load(model), options.device)
    rows = []
    for part in held:
        found = segmenter.segment(part.image, mpp=MPP, samples=options.samples)
        rows.append(scores(found.labels, part.truth))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def region_rows(
    pool: list[Part], held: list[Part], model: Path, options: argparse.Namespace
) -> Iterator[dict[str, float | str]]:
    """Scores on the held-out quarters by order and number of regions learned from."""
    orders = {"disagreement": region_order(pool)}
    for seed in range(options.seeds):
        orders[f"random {seed}"] = np.random.default_rng(seed).permutation(len(pool)).tolist()
    for name, order in orders.items():
        for count in (n for n in options.regions if n <= len(pool)):
            if count == len(pool) and name != "disagreement":
                continue  # all of them are the same regions in any order
            chosen = [pool[i] for i in order[:count]]
            with tempfile.TemporaryDirectory() as work:
                best = fine_tuned(chosen, Path(work), model, options)
                scored = judged(best, held, options)
            nuclei = sum(len(np.unique(part.truth)) - 1 for part in chosen)
            yield {"order": name, "regions": count, "nuclei": nuclei, **scored}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("corrections.json"))
    parser.add_argument("--model", default="nuclei-he")
    parser.add_argument("--images", nargs="+", default=list(WEAK))
    parser.add_argument("--regions", nargs="*", type=int, default=[2, 4, 8, 12])
    parser.add_argument("--seeds", type=int, default=2, help="random orders of regions")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of each fine-tuning")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    folder = find(options.model)
    model = Model.load(folder)
    segmenter = Segmenter(model, options.device)
    pool, held = [], []
    for pair in find_pairs(options.data):
        if pair.stem in options.images:
            image, labels, _ = read_pair(pair, model.config, MPP)
            both = list(zip(quarters(image), quarters(labels), strict=True))
            held.append(Part(*both[3], segmenter, options.samples))
            for sides in both[:3]:
                smaller = zip(*map(quarters, sides), strict=True)
                pool += [Part(*each, segmenter, options.samples) for each in smaller]
    result: dict = {"model": model.name, "images": options.images, "steps": options.steps}
    result["objects"] = object_curves(pool)
    result["before"] = judged(folder, held, options)
    result["regions"] = []
    print(json.dumps(result, indent=1), flush=True)
    options.output.write_text(json.dumps(result, indent=1))
    for row in region_rows(pool, held, folder, options):
        print(row, flush=True)
        result["regions"].append(row)
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
