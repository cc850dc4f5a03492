"""The training loop: generator, supervised head and discriminator, resumable at any checkpoint."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from .. import targets
from ..config import ModelConfig, TrainConfig
from ..device import select_device
from ..errors import Cancelled, CdalError
from ..model import Model, Networks
from ..preparation import normalise
from ..segmenter import Segmenter
from .augmentation import Augmentation, random_crop
from .calibration import decoding_fitted
from .checks import load_checked
from .curves import append_row, draw_curves, read_rows
from .dataset import Pair
from .examples import draw_examples
from .freezing import freeze
from .objective import Objective
from .validation import Scores, evaluate

__all__ = ["Trainer", "deciding_score", "update_average"]

Report = Callable[[dict[str, float]], None]
Batch = tuple[Tensor, Tensor]  # normalised images (B, C, H, W), label maps x_0 (B, K, H, W)
CHECKPOINT = "checkpoint.pt"


class Trainer:
    """One training run in one folder.

    The folder holds config.yaml, metrics.csv, curves.png, checkpoint.pt, the models `last/` and
    `best/`, and in the end `examples/`: validation images with the answer drawn over. The best has
    the highest validation Dice of the sampled mean, cut where that is highest unless
    `config.decoding` is kept. With `init`, that model is the first to beat; without validation
    pairs, the last is the best.

    Parameters
    ----------
    config : TrainConfig
    pairs : tuple of list of Pair
        Training and validation.
    run : Path
        The run's folder.
    device : str
        See `select_device`.
    resume : bool
        Go on from the folder's checkpoint.
    init : Model, optional
        Start from its weights: fine-tuning.
    known : list of CdalError
        Problems of the data found already, to be named with those of `load_checked`.

    Raises
    ------
    CdalError
        If the folder holds another run and `resume` is False, or nothing to resume from, or the
        data do not fit the config.
    """

    def __init__(
        self,
        config: TrainConfig,
        pairs: tuple[list[Pair], list[Pair]],
        run: Path,
        device: str = "auto",
        resume: bool = False,
        init: Model | None = None,
        known: Sequence[CdalError] = (),
    ) -> None:
        self.config, self.run_folder, self.validation_pairs = config, run, pairs[1]
        self.device = select_device(device)
        network = config.model.network
        if network.architecture == "amortized" and network.spatial_dims != 2:
            raise CdalError("spatial_dims 3: training is 2-D so far", "use spatial_dims: 2")
        self._check_folder(resume)
        self.data = load_checked(pairs, config, known)
        torch.manual_seed(config.seed)
        self.networks = Networks(config.model)
        self.objective = Objective(config, self.networks.generator, self.device)
        self.init = init
        if init is not None:
            _start_from(self.networks, init)
        self.networks.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.networks.requires_grad_(True)
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.networks.generator.parameters(), config.learning_rate, betas=config.betas
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.networks.discriminator.parameters(),
            config.discriminator_learning_rate,
            betas=(0.5, 0.9),
        )
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.in_vain = 0  # validations since the best
        if resume:
            self._restore(self.run_folder / CHECKPOINT)
        else:
            self._write_config()

    def _check_folder(self, resume: bool) -> None:
        """Refuse another run's folder; one that ended before its first checkpoint is used again."""
        folder = self.run_folder
        if resume:
            if not (folder / CHECKPOINT).is_file():
                raise CdalError("no checkpoint to resume from", "start without --resume", folder)
            return
        if folder.is_dir() and {path.name for path in folder.iterdir()} - {"config.yaml"}:
            raise CdalError(
                "the run folder is not empty", "choose another with -o, or --resume", folder
            )

    def _write_config(self) -> None:
        """Make the run's folder, now that nothing is wrong with the data."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        try:
            self.run_folder.mkdir(parents=True, exist_ok=True)
            (self.run_folder / "config.yaml").write_text(text)
        except OSError as error:
            reason = f"cannot be used as run folder: {error.strerror}"
            raise CdalError(reason, "choose another with -o", self.run_folder) from None

    # -- the loop ---------------------------------------------------------------------------------

    def run(self, report: Report | None = None) -> Path:
        """Train to the end and return the folder of the best model.

        Parameters
        ----------
        report : callable, optional
            Called after every step with `progress` in 0 … 1 and the losses, and after validation
            with its metrics. If it raises `Cancelled`, the run is saved and can be resumed.

        Raises
        ------
        Cancelled
            If `report` did.
        CdalError
            If a loss is no longer finite; the last checkpoint stays.
        """
        report = report or (lambda row: None)
        try:
            self._run(report)
        except Cancelled:
            self._save()  # raised between two steps: nothing is half done
            raise
        return self.run_folder / "best"

    def _run(self, report: Report) -> None:
        start = time.perf_counter() - self.seconds
        validated = saved = self.seconds
        losses: dict[str, list[float]] = defaultdict(list)
        if self.init is not None and self.step == 0 and self.validation_pairs:
            self._score(losses, report)
            start = time.perf_counter()
        batches = self.batches()
        while self._progress() < 1:
            images, x_0 = next(batches)
            for name, value in self._train_step(images, x_0, self._progress()).items():
                losses[name].append(value)
            self.step += 1
            self.seconds = time.perf_counter() - start
            if not all(math.isfinite(values[-1]) for values in losses.values()):
                raise CdalError(
                    f"training diverged at step {self.step}",
                    "lower learning_rate or losses.adversarial; the last checkpoint is kept",
                    self.run_folder,
                )
            row = {"step": float(self.step), "seconds": self.seconds}
            report(row | {"progress": self._progress()} | {k: v[-1] for k, v in losses.items()})
            if self._progress() >= 1 or self.seconds - saved >= 60 * self.config.checkpoint_every:
                self._save()
                saved = self.seconds
            if self._progress() < 1 and (
                self.seconds - validated >= 60 * self.config.validate_every
            ):
                self._score(losses, report)
                self.seconds = time.perf_counter() - start
                validated = saved = self.seconds
        rows = read_rows(self.run_folder / "metrics.csv")
        if not rows or rows[-1]["step"] != self.step:  # not so if a finished run is resumed
            self._score(losses, report)
        if self.validation_pairs and not (self.run_folder / "examples").is_dir():
            best = Segmenter(Model.load(self.run_folder / "best"), str(self.device))
            draw_examples(
                best, self.validation_pairs, self.run_folder / "examples", self.config.mpp
            )

    def _score(self, losses: dict[str, list[float]], report: Report) -> None:
        """Validate, save, and add a row to metrics.csv and the curves."""
        row = {"step": float(self.step), "seconds": self.seconds}
        row |= {name: float(np.mean(values)) for name, values in losses.items()}
        losses.clear()
        row |= self._validate()
        self._save()  # with the best score, which `best/` now holds
        append_row(self.run_folder / "metrics.csv", row)
        draw_curves(read_rows(self.run_folder / "metrics.csv"), self.run_folder / "curves.png")
        report(row | {"progress": self._progress()})

    def _progress(self) -> float:
        """Share of the run that is done, 1 or more at its end."""
        if self.config.patience is not None and self.in_vain >= self.config.patience:
            return 1.0
        by_steps = self.step / self.config.steps
        if self.config.minutes is None:
            return by_steps
        return max(by_steps, self.seconds / (60 * self.config.minutes))

    def learning_rate_factor(self, progress: float) -> float:
        """Share of the learning rate at `progress` 0 … 1: warm-up, then cosine to a hundredth."""
        warm = min(1.0, (self.step + 1) / max(self.config.warmup, 1))
        return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)

    # -- data -------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """Batches from step `self.step` on, made one ahead; each a function of (seed, step)."""
        workers = max(1, min(8, (os.cpu_count() or 2) - 1))
        # One augmentation a thread's crop: MONAI's random state belongs to the transform.
        with ThreadPoolExecutor(workers) as pool:

            def submit(step: int) -> list[Future[Batch]]:
                return [pool.submit(self._item, step, i) for i in range(self.config.batch_size)]

            ahead = submit(self.step)
            while True:
                ready, ahead = ahead, submit(self.step + 1)
                images, x_0 = zip(*(future.result() for future in ready), strict=True)
                yield self._to_device(torch.stack(images)), self._to_device(torch.stack(x_0))

    def _to_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, memory_format=torch.channels_last)

    def _item(self, step: int, index: int) -> Batch:
        config = self.config
        rng = np.random.default_rng([config.seed, step, index])
        image, labels = self.data[int(rng.integers(len(self.data)))]
        constant = config.model.image.normalisation == "constant"
        upright = config.orientation == "upright"
        if config.augment:
            stained = config.model.image.channels == 3 and constant
            augmentation = Augmentation(config.crop, stained, upright)
            image, labels = augmentation(image, labels, rng)
        else:
            image, labels = random_crop(image, labels, config.crop, rng, upright)
        x_0 = torch.from_numpy(targets.encode(labels[0].numpy(), config.model))
        return normalise(image, config.model.image) if constant else image, x_0

    # -- one step ---------------------------------------------------------------------------------

    def _train_step(self, images: Tensor, x_0: Tensor, progress: float) -> dict[str, float]:
        """One step of the discriminator and one of the generator, sharing one encoder pass."""
        for optimizer, rate in (
            (self.optimizer, self.config.learning_rate),
            (self.discriminator_optimizer, self.config.discriminator_learning_rate),
        ):
            optimizer.param_groups[0]["lr"] = rate * self.learning_rate_factor(progress)
        networks, weights, objective = self.networks.train(), self.config.losses, self.objective
        if self.config.frozen > 0:
            freeze(networks.generator.encoder, trunk=progress < self.config.frozen)
        draw = torch.Generator().manual_seed(hash((self.config.seed, self.step)) & 0x7FFFFFFF)
        reduced = self.device.type == "cuda" and networks.generator.reduced_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            batch = objective.noised(images, x_0, draw)
            features = networks.generator.encode(images)
            x_0_pred = objective.shown(networks, batch, features, draw)
            x_prev_pred = objective.previous(batch, x_0_pred, draw)
            penalise = weights.r1 > 0 and self.step % weights.r1_interval == 0
            loss_d, penalty = objective.of_discriminator(
                networks, batch, x_prev_pred.detach(), penalise
            )
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            (loss_d + weights.r1 * weights.r1_interval * penalty).backward()
            self.discriminator_optimizer.step()
            x_0_pred = objective.learned_from(networks, batch, features, x_0_pred, draw)
            losses = objective.of_generator(networks, batch, features, x_0_pred, x_prev_pred)
        loss = torch.stack([objective.weights[k] * value for k, value in losses.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(networks.generator.parameters(), 5.0)
        self.optimizer.step()
        decay = min(self.config.ema_decay, (self.step + 1) / (self.step + 10))  # faster at first
        update_average(self.average, networks, decay)
        return {name: value.item() for name, value in losses.items()} | {
            "discriminator": loss_d.item()
        }

    # -- results ----------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        """Score the averaged model as users will run it, and keep it if it is the best so far."""
        if self.step == 0 and self.init is not None:
            _, scores = self._judged(self.init)
            config, networks = self.init.config, self.init.networks  # best/ is the model as it was
        else:
            last, networks = self.run_folder / "last", self.average
            Model.save(last, self.config.model, networks)
            config, scores = self._judged(Model.load(last))
            Model.save(last, config, networks)
        score = scores.get(deciding_score(self.config), math.inf)
        self.in_vain += 1
        if score > self.best or not scores:
            self.best, self.in_vain = score, 0
            Model.save(self.run_folder / "best", config, networks)
        return scores

    def _judged(self, model: Model) -> tuple[ModelConfig, Scores]:
        """The model's config with the decoding that is due, and its scores if it has images."""
        pairs, device, mpp = self.validation_pairs, str(self.device), self.config.mpp
        if not pairs:
            return model.config, {}
        if self.config.decoding == "fitted":
            return decoding_fitted(model, pairs, device, mpp)
        return model.config, evaluate(Segmenter(model, device), pairs, mpp=mpp).mean

    def _save(self) -> None:
        state = {
            "config": self.config.model_dump_json(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "in_vain": self.in_vain,
            "networks": self.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }
        aside = self.run_folder / f".{CHECKPOINT}.tmp"
        torch.save(state, aside)
        os.replace(aside, self.run_folder / CHECKPOINT)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            saved = TrainConfig.model_validate_json(state["config"])
        except Exception as error:  # a damaged file may raise anything
            raise CdalError(
                "the checkpoint is damaged", "start anew in another folder with -o", path
            ) from error
        length = {"minutes", "steps"}  # a run may be made longer or shorter
        if saved.model_dump(exclude=length) != self.config.model_dump(exclude=length):
            raise CdalError(
                "the checkpoint is of another config", "resume with the run's config.yaml", path
            )
        for name in ("networks", "average", "optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.in_vain = state.get("in_vain", 0)  # none in checkpoints before `patience`


def deciding_score(config: TrainConfig) -> str:
    """Name of the validation score that the best model is the best by."""
    return "fitted_dice" if config.decoding == "fitted" else "dice"


@torch.no_grad()
def update_average(average: nn.Module, networks: nn.Module, decay: float) -> None:
    """Move the exponential moving average of weights and buffers a step."""
    state = networks.state_dict()
    for name, averaged in average.state_dict().items():
        if averaged.is_floating_point():
            averaged.lerp_(state[name], 1 - decay)
        else:
            averaged.copy_(state[name])


def _start_from(networks: Networks, init: Model) -> None:
    """Copy a model's weights; both must be of one architecture."""
    try:
        networks.load_state_dict(init.networks.state_dict())
    except RuntimeError:
        raise CdalError(
            f"model {init.name!r} has another architecture than the config",
            "take `model:` of the config from the model's config.json",
        ) from None
