"""What each part of the model is worth: small models trained alike but for one thing.

python benchmarks/ablation.py DATA -o DIR [--rows ours "no latent"] [--steps 400] [--device cpu]

DATA holds images/ and labels/ at 0.25 µm per pixel. Every row trains on the same crops at 0.5 µm
per pixel from the same seed, and is scored on the validation images that train.yaml names, its
temperature and threshold fitted to them first, as a shipped model's are. Rows that DIR holds for
as many steps are not run again. The table of all of them is printed at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from categorical import train_categorical
from controls import EightViews, Ensemble, train_stochastic
from torch import Tensor, nn

from cdal_engine.config import ModelConfig, TrainConfig
from cdal_engine.diffusion import NoiseSchedule, q_posterior
from cdal_engine.model import Model, Networks
from cdal_engine.networks import Features, Generator, to_label_grid
from cdal_engine.segmenter import Segmenter
from cdal_engine.training.calibration import best_threshold, fit_temperature
from cdal_engine.training.dataset import Pair, find_pairs, read_pair
from cdal_engine.training.loop import Trainer
from cdal_engine.training.splits import split
from cdal_engine.training.validation import Scores, evaluate
from cdal_engine.weights import available

SMALL = {
    "model.image.mpp": 0.5,
    "model.network.widths": (16, 32, 64, 128),
    "model.network.denoiser_width": 32,
    "model.network.discriminator_widths": (16, 32, 64),
    "mpp": 0.25,
    "batch_size": 8,
    "crop": 128,
    "learning_rate": 1e-3,
    "minutes": None,
    "validate_every": 1e6,
    "checkpoint_every": 1e6,
}
PAPER = {
    "objective": "paper",
    "losses.adversarial": 0,
    "losses.supervised": 0,
    "model.decode.sample_weight": 1.0,
}
COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "aji": "AJI",
    "pq": "PQ",
    "dice_one_sample": "one sample",
    "pairwise_dice": "pairwise",
    "raw_ece_pooled": "ECE raw",
    "ece_pooled": "ECE",
    "ece": "ECE by image",
    "error_auroc": "AUROC",
}


class AttendedGenerator(nn.Module):
    """Attention in sampling too: x̂_0 ⊙ A_D goes on to the next step, as x_0 ⊙ A_D in training."""

    def __init__(self, networks: Networks, config: ModelConfig) -> None:
        super().__init__()
        self.inner, self.config = networks.generator, config
        self.attention_map = networks.attention_map
        self.schedule = NoiseSchedule.variance_preserving(config.diffusion)

    preview = staticmethod(Generator.preview)
    label_stride = Generator.label_stride

    def encode(self, image: Tensor) -> Features:
        """As the generator inside; the image is kept for the discriminator."""
        self.image = image
        return self.inner.encode(image)

    def denoise(self, x_t: Tensor, level: Tensor, z: Tensor, features: Features) -> Tensor:
        """x̂_0, weighed by A_D but for the last step."""
        x_0 = self.inner.denoise(x_t, level, z, features)
        t = (level * self.schedule.steps).round().long()
        if int(t[0]) == 1:
            return x_0
        on_grid = to_label_grid(x_0, self.config.diffusion.label_scale)
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(int(t[0])))
        x_prev = q_posterior(self.schedule, on_grid, x_t, t, noise.to(x_t.device))
        image = self.image.repeat_interleave(len(x_t) // len(self.image), dim=0)
        return x_0 * self.attention_map(x_prev, x_t, image, level, x_0.shape[2:])


def attended(segmenter: Segmenter) -> None:
    """Apply attention in sampling."""
    networks = segmenter.networks
    networks.generator = AttendedGenerator(networks, segmenter.model.config)


def eight_views(segmenter: Segmenter) -> None:
    """Answer by eight views of the supervised head."""
    segmenter.networks.generator = EightViews(segmenter.networks.generator)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    changes : dict
        What the training config has otherwise, by dotted name.
    of : str, optional
        The row whose model this one runs, instead of training its own.
    altered : callable, optional
        What is done to the segmenter before it is scored.
    steps : int, optional
        T in sampling; 0 for the supervised head.
    decode : dict
        What the model's `decode` has otherwise.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    altered: Callable[[Segmenter], None] | None = None
    steps: int | None = None
    decode: dict[str, float] = field(default_factory=dict)


ROWS = {
    "ours": Row(),
    "ours, seed 1": Row({"seed": 1}),
    "ours, seed 2": Row({"seed": 2}),
    "control: supervised head": Row(of="ours", steps=0),
    "control: 8 views of the head": Row(of="ours", steps=0, altered=eight_views),
    "control: heads of 3 seeds": Row(of="ours", steps=0),  # see `segmenter_of`
    "control: stochastic segmentation network": Row(decode={"sample_weight": 1.0}),  # likewise
    "categorical labels": Row(),  # likewise
    "categorical labels, samples not pooled": Row(decode={"sample_weight": 1.0}),  # likewise
    "paper's objective": Row(PAPER | {"model.attention.mode": "paper"}),
    "no latent": Row({"model.network.latent_dim": 0}),
    "no attention": Row({"model.attention.mode": "none"}),
    "no adversarial term": Row({"losses.adversarial": 0}),
    "adversarial weight 1": Row({"losses.adversarial": 1.0}),
    "R1 penalty 0.02": Row({"losses.r1": 0.02}),
    "R1 penalty 2": Row({"losses.r1": 2.0}),
    "samples not pooled": Row(of="ours", decode={"sample_weight": 1.0}),
    "label scale 0.1": Row({"model.diffusion.label_scale": 0.1}),
    "label scale 0.5": Row({"model.diffusion.label_scale": 0.5}),
    "T = 1": Row({"model.diffusion.steps": 1}),
    "T = 2": Row({"model.diffusion.steps": 2}),
    "T = 8": Row({"model.diffusion.steps": 8}),
}
for mode, level in itertools.product(("normalized", "paper"), (0, 1, 2)):
    name = f"attention {mode}, stride {2 << level}"
    if (mode, level) == ("normalized", 2):
        name = "ours"
    else:
        ROWS[name] = Row({"model.attention.mode": mode, "model.attention.level": level})
    ROWS[f"{name}, attention in sampling too"] = Row(of=name, altered=attended)
STOCHASTIC = "control: stochastic segmentation network"
CATEGORICAL = "categorical labels"
SEEDS = "control: heads of 3 seeds"


def slug(name: str) -> str:
    """File name of a row."""
    return re.sub(r"\W+", "-", name)


def config_of(row: Row, steps: int) -> TrainConfig:
    """The shipped model's training, made small, with the row's changes."""
    tree = TrainConfig.from_file(available()["nuclei-he"] / "train.yaml").model_dump()
    for name, value in (SMALL | {"steps": steps} | row.changes).items():
        *path, last = name.split(".")
        branch = tree
        for key in path:
            branch = branch[key]
        branch[last] = value
    return TrainConfig.model_validate(tree)


def trained(name: str, options: argparse.Namespace) -> Model:
    """The model of a row, trained unless the folder holds it."""
    folder = options.output / slug(name)
    if not (folder / "last" / "model.safetensors").is_file():
        config = config_of(ROWS[name], options.steps)
        pairs = options.pairs[0], options.pairs[1][:1]  # scored below, on all images
        Trainer(config, pairs, folder, options.device).run()
    return Model.load(folder / "last")


def one_step_model(
    name: str, train: Callable[[Trainer], Generator], options: argparse.Namespace
) -> Model:
    """A model that does all its steps in one call, trained on our batches."""
    config = config_of(ROWS[name], options.steps)
    trainer = Trainer(config, options.pairs, options.output / slug(name), options.device)
    generator = train(trainer)
    diffusion = config.model.diffusion.model_copy(update={"steps": 1})
    one_step = config.model.model_copy(update={"diffusion": diffusion})
    networks = Networks(one_step).eval()
    networks.generator = generator
    return Model(name, one_step, networks, "")


def segmenter_of(name: str, options: argparse.Namespace) -> Segmenter:
    """What a row runs."""
    row = ROWS[name]
    if name.startswith((STOCHASTIC, CATEGORICAL)):
        train = train_stochastic if name == STOCHASTIC else train_categorical
        return Segmenter(one_step_model(name, train, options), options.device)
    segmenter = Segmenter(trained(row.of or name, options), options.device)
    if name == SEEDS:
        others = [trained(f"ours, seed {seed}", options).networks.generator for seed in (1, 2)]
        segmenter.networks.generator = Ensemble([segmenter.networks.generator, *others])
    if row.altered is not None:
        row.altered(segmenter)
    return segmenter


def scored(name: str, options: argparse.Namespace) -> Scores:
    """Mean scores of a row on the validation images, with its size and the time of one image.

    As for a shipped model, temperature and threshold are fitted to these images first.
    """
    segmenter, steps, pairs = segmenter_of(name, options), ROWS[name].steps, options.pairs[1]
    networks = segmenter.networks

    def decoding(temperature: float, threshold: float) -> Segmenter:
        config = segmenter.model.config.with_decoding(
            temperature=temperature,
            threshold=threshold,
            supervised_temperature=temperature,
            supervised_threshold=threshold,
            **ROWS[name].decode,
        )
        other = Segmenter(replace(segmenter.model, config=config), options.device)
        other.networks = networks
        return other

    raw = evaluate(decoding(1.0, 0.5), pairs, mpp=0.25, steps=steps)
    temperature = fit_temperature(raw.samples, raw.truths)
    threshold, _ = best_threshold(raw.samples, raw.truths, temperature)
    segmenter = decoding(temperature, threshold)
    scores = evaluate(segmenter, pairs, mpp=0.25, steps=steps).mean
    scores |= {f"raw_{metric}": value for metric, value in raw.mean.items()}
    image, _, mpp = read_pair(pairs[0], segmenter.model.config, 0.25)
    seconds = [
        segmenter.segment(image, mpp=mpp, steps=steps, attention=False).seconds for _ in range(2)
    ]
    scores["seconds"] = seconds[1]  # the first warms up
    scores["parameters"] = sum(
        p.numel()
        for part, p in networks.generator.named_parameters()
        if steps != 0 or "denoiser." not in part
    )
    return scores | {"temperature": temperature, "threshold": threshold}


def table(options: argparse.Namespace) -> str:
    """Markdown of every row that has been scored."""
    head = ["row", *COLUMNS.values(), "M parameters", "s per image"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in ROWS:
        path = options.output / f"{slug(name)}.json"
        if not path.is_file():
            continue
        scores = json.loads(path.read_text())
        cells = [f"{scores[key]:.3f}" if key in scores else "–" for key in COLUMNS]
        cells += [f"{scores['parameters'] / 1e6:.2f}", f"{scores['seconds']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train and score the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.pairs: tuple[list[Pair], list[Pair]] = split(
        find_pairs(options.data), config_of(Row(), options.steps)
    )
    options.output = options.output / f"{options.steps}-steps"
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.rows:
        path = options.output / f"{slug(name)}.json"
        if not path.is_file():
            path.write_text(json.dumps(scored(name, options)))
            print(name, "done", flush=True)
    print(table(options))


if __name__ == "__main__":
    main()
