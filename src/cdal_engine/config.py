"""Frozen, validated settings of models and training; unknown keys are errors.

Both trees are read from and written to YAML (or JSON, its subset).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from .errors import CdalError
from .ncsnpp_config import NcsnppConfig

__all__ = [
    "MAX_MEGAPIXELS",
    "MAX_SAMPLES",
    "AttentionConfig",
    "DecodeConfig",
    "DiffusionConfig",
    "ImageConfig",
    "LossConfig",
    "ModelConfig",
    "NetworkConfig",
    "Target",
    "TrainConfig",
]

Target = Literal["binary", "classes", "nuclei"]
Width = Annotated[int, Field(ge=4)]
Pixels = Annotated[int, Field(ge=8)]
Beta = Annotated[float, Field(ge=0, lt=1)]
MAX_STEPS = 16
MAX_MEGAPIXELS = 400  # an input is segmented whole in memory, at about 60 bytes a pixel
MAX_SAMPLES = 64

_T = TypeVar("_T", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageConfig(_Frozen):
    """What the network takes in."""

    channels: Literal[1, 3] = 3
    mpp: Annotated[float, Field(gt=0)] | None = 0.25  # micrometres per pixel; None: any
    # (height, width) in pixels that every image as a whole is brought to, where `mpp` is None or
    # an imported model is run as published; None: images keep their size then.
    resized: tuple[Pixels, Pixels] | None = None
    # "constant": (x / max of its dtype - mean) / std, the same for every image;
    # "percentile": the whole image's 1st and 99th percentile become -1 and 1.
    normalisation: Literal["constant", "percentile"] = "constant"
    mean: tuple[float, ...] = (0.66, 0.47, 0.66)
    std: tuple[float, ...] = (0.2, 0.21, 0.17)
    slice_axis: Literal[-3, -2, -1] = -1  # of a volume's array: slices lie across this axis
    # Of a volume's slice, on either side: the network sees them as further channels.
    neighbours: Annotated[int, Field(ge=0, le=4)] = 0

    @model_validator(mode="after")
    def _one_constant_per_channel(self) -> Self:
        if self.normalisation == "constant" and not (
            len(self.mean) == len(self.std) == self.channels
        ):
            raise ValueError("mean and std need one value per image channel")
        if self.neighbours and (self.channels != 1 or self.normalisation != "percentile"):
            raise ValueError("neighbours are for volumes: one channel, normalised by percentiles")
        return self

    @property
    def planes(self) -> int:
        """Channels that the network sees."""
        return self.channels * (1 + 2 * self.neighbours)


class NetworkConfig(_Frozen):
    """Shape of the `amortized` generator and of the discriminator."""

    # What the engine asks of either architecture:
    has_head: ClassVar[bool] = True  # a supervised head, which also answers without diffusion
    has_discriminator: ClassVar[bool] = True  # to show where it looks
    fixed_tile: ClassVar[int | None] = None  # edge of its only tiles; None: any, with one answer

    architecture: Literal["amortized"] = "amortized"
    spatial_dims: Literal[2, 3] = 2
    widths: tuple[Width, ...] = (32, 64, 128, 256)  # encoder, at strides 2, 4, 8, ...
    denoiser_width: Annotated[int, Field(ge=8)] = 48
    denoiser_blocks: Annotated[int, Field(ge=1)] = 2
    detail_width: Annotated[int, Field(ge=4)] = 24
    latent_dim: Annotated[int, Field(ge=0)] = 32  # of z; 0: none
    discriminator_widths: tuple[Width, ...] = (16, 48, 96)  # at strides 2, 4, 8, ...

    @model_validator(mode="after")
    def _deep_enough(self) -> Self:
        if len(self.widths) < 2 or len(self.discriminator_widths) < 1:
            raise ValueError("the encoder needs two levels and the discriminator one")
        return self

    @property
    def stride(self) -> int:
        """Total stride of the networks: tiles start on multiples of it."""
        return int(2 ** max(len(self.widths), len(self.discriminator_widths)))


class DiffusionConfig(_Frozen):
    """Variance-preserving schedule in `steps` large steps."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 4
    beta_min: Annotated[float, Field(gt=0)] = 0.1
    beta_max: Annotated[float, Field(gt=0, le=100)] = 20.0
    # Amplitude of the label map in x_t. The smaller, the less of it shows through the noise, and
    # the more the denoiser looks at the image: Chen (2023), arXiv:2301.10972.
    label_scale: Annotated[float, Field(gt=0, le=1)] = 0.3

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.beta_min >= self.beta_max:
            raise ValueError(f"beta_min {self.beta_min:g} is not below beta_max {self.beta_max:g}")
        return self


class AttentionConfig(_Frozen):
    """Where the discriminator's features weigh the label map in training."""

    mode: Literal["paper", "normalized", "none"] = "normalized"
    level: Annotated[int, Field(ge=0)] = 2  # which of the discriminator's feature levels


class DecodeConfig(_Frozen):
    """From the networks' answers to probabilities and labels."""

    # Of each sample in its logarithmic pool with the supervised head's answer: 1 leaves the sample
    # as it is, towards 0 all become the head's.
    sample_weight: Annotated[float, Field(gt=0, le=1)] = 0.3
    # Fitted to the validation images as a model is trained: what each sample's log-odds are divided
    # by, and where the mean probability is cut; and the same of the supervised head's own answer.
    temperature: Annotated[float, Field(gt=0)] = 1.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    supervised_temperature: Annotated[float, Field(gt=0)] = 1.0
    supervised_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    boundary: Annotated[float, Field(ge=0)] = 0.75  # width of the boundary class, µm or pixels
    min_area: Annotated[float, Field(ge=0)] = 4.0  # smallest object, µm² or pixels


def _architecture(network: Any) -> Any:
    """Which architecture a `network` section is of."""
    if isinstance(network, dict):
        return network.get("architecture", "amortized")
    return getattr(network, "architecture", None)


class ModelConfig(_Frozen):
    """Everything needed to rebuild and run a model.

    Lengths are in micrometres where `image.mpp` is set and in pixels where it is not.
    `network.architecture` says which of the two generators it is, `amortized` if left out.
    """

    target: Target = "nuclei"
    classes: tuple[str, ...] = ("nucleus",)  # foreground classes, background not counted
    image: ImageConfig = ImageConfig()
    network: Annotated[
        Annotated[NetworkConfig, Tag("amortized")] | Annotated[NcsnppConfig, Tag("ncsnpp")],
        Discriminator(
            _architecture,
            custom_error_type="architecture",
            custom_error_message="expected keys, `architecture` being 'amortized' or 'ncsnpp'",
        ),
    ] = NetworkConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    attention: AttentionConfig = AttentionConfig()
    decode: DecodeConfig = DecodeConfig()
    halo: Annotated[int, Field(ge=0)] | None = None  # pixels, measured; None: computed

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target != "classes" and len(self.classes) != 1:
            raise ValueError(f"target {self.target!r} has one foreground class")
        if not self.classes:
            raise ValueError("name at least one class")
        if isinstance(self.network, NcsnppConfig):
            self._check_agreement(self.network)
        elif self.attention.level >= len(self.network.discriminator_widths):
            raise ValueError("attention.level is beyond the discriminator's levels")
        elif self.image.resized is not None:
            raise ValueError("image.resized is for imported models: training has no such size")
        if 2 * (self.halo or 0) >= (self.network.fixed_tile or math.inf):
            raise ValueError(f"halo must be below half a tile of {self.network.fixed_tile}")
        if self.halo is not None and self.halo % self.network.stride:
            raise ValueError(f"halo must be a multiple of the stride {self.network.stride}")
        return self

    def _check_agreement(self, network: NcsnppConfig) -> None:
        """Refuse what contradicts the published parameters, which the network is built from."""
        diffusion = self.diffusion
        said = {
            "image.channels": (self.image.planes, network.image_channels),
            "channels of target and classes": (self.label_channels, network.num_channels),
            "diffusion.steps": (diffusion.steps, network.num_timesteps),
            "diffusion.beta_min": (diffusion.beta_min, network.beta_min),
            "diffusion.beta_max": (diffusion.beta_max, network.beta_max),
            "diffusion.label_scale": (diffusion.label_scale, 1.0),
            "attention.mode": (self.attention.mode, "paper"),
            "attention.level": (self.attention.level, network.attn_scale),
            "decode.sample_weight": (self.decode.sample_weight, 1.0),  # no head to pool with
        }
        wrong = [f"{key} is {ours}, not {its}" for key, (ours, its) in said.items() if ours != its]
        if wrong:
            raise ValueError(f"the network is of other parameters: {', '.join(wrong)}")

    @property
    def amortized(self) -> NetworkConfig:
        """`network` of an `amortized` model, for what that architecture is built from."""
        assert isinstance(self.network, NetworkConfig)
        return self.network

    def with_decoding(self, **changes: float) -> Self:
        """The same with some of `decode` changed, rounded."""
        changes = {name: round(value, 2) for name, value in changes.items()}
        return self.model_copy(update={"decode": self.decode.model_copy(update=changes)})

    def of_supervised_head(self) -> Self:
        """The same, decoding as fits the supervised head's answer."""
        decode = self.decode
        return self.with_decoding(
            temperature=decode.supervised_temperature, threshold=decode.supervised_threshold
        )

    @property
    def takes_volumes(self) -> bool:
        """Whether it is for grayscale volumes, slice by slice."""
        image = self.image
        gray = image.channels == 1 and image.mpp is None and image.normalisation == "percentile"
        return gray and self.target != "nuclei"

    @property
    def label_channels(self) -> int:
        """Channels that are diffused: interior and boundary add to the background."""
        return {"binary": 1, "nuclei": 3, "classes": len(self.classes) + 1}[self.target]


class LossConfig(_Frozen):
    """Weights of the generator's and discriminator's losses."""

    adversarial: Annotated[float, Field(ge=0)] = 0.1
    supervised: Annotated[float, Field(ge=0)] = 1.0
    r1: Annotated[float, Field(ge=0)] = 0.2  # gamma
    r1_interval: Annotated[int, Field(ge=1)] = 16  # discriminator steps between penalties


class TrainConfig(_Frozen):
    """One training run: what is learned, from how much, for how long."""

    model: ModelConfig = ModelConfig()
    # "paper": D learns from the generator's answer to x_t, then the generator from squared error
    # alone, on x_t^att of the D that has just learned; "ours": both from one answer, with `losses`.
    objective: Literal["ours", "paper"] = "ours"
    losses: LossConfig = LossConfig()
    validation: tuple[str, ...] = ()  # file stems held out; empty: a fifth of the patients
    # (i, K): held out is the i-th, from 1, of K parts of the patients, shuffled by `seed`
    fold: tuple[int, int] | None = None
    mpp: Annotated[float, Field(gt=0)] | None = None  # of the images; None: the file's or model's
    steps: Annotated[int, Field(ge=1)] = 4000  # optimiser steps
    minutes: Annotated[float, Field(gt=0)] | None = None  # stop earlier after this long
    batch_size: Annotated[int, Field(ge=1)] = 4
    crop: Annotated[int, Field(ge=32)] = 256  # pixels at the model's resolution
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)  # of the generator's Adam; D's are (0.5, 0.9)
    discriminator_learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup: Annotated[int, Field(ge=0)] = 100  # optimiser steps
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # per optimiser step
    augment: bool = True
    # Megabytes of decoded images and labels that are kept; what is beyond is read for each crop.
    cache_mb: Annotated[int, Field(ge=0)] = 8000
    # "any": turned and mirrored at will; "upright": tilted a little, where left, right, up and
    # down mean something, as in X-rays and MRI.
    orientation: Literal["any", "upright"] = "any"
    seed: int = 0
    # Share of the run at whose start the encoder learns in its heads only. Above 0, statistics of
    # its norms stay as they are to the end: few images would make them worse.
    frozen: Annotated[float, Field(ge=0, le=1)] = 0.0
    # Of the temperatures and thresholds in `model.decode`: fitted to the validation images, or
    # kept, as a single image would spoil them.
    decoding: Literal["fitted", "kept"] = "fitted"
    validate_every: Annotated[float, Field(gt=0)] = 8.0  # minutes
    # Validations in a row without a better model after which a run ends; None: it runs to its end
    patience: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[float, Field(gt=0)] = 3.0  # minutes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop % self.model.network.stride:
            raise ValueError(f"crop must be a multiple of {self.model.network.stride}")
        if self.fold is not None:
            part, parts = self.fold
            if not (parts >= 2 and 1 <= part <= parts):
                raise ValueError(f"fold is (i, K) with 1 <= i <= K and K from 2, got {self.fold}")
            if self.validation:
                raise ValueError("give `validation` or `fold`, not both")
        if self.objective == "paper" and (self.losses.adversarial or self.losses.supervised):
            raise ValueError(
                "objective 'paper' has neither term: losses.adversarial and losses.supervised must "
                "be 0"
            )
        if isinstance(self.model.network, NcsnppConfig):
            self._check_published(self.model.network)
        if self.losses.supervised == 0 and self.model.decode.sample_weight != 1:
            raise ValueError(
                "losses.supervised 0 leaves no head to pool samples with: "
                "model.decode.sample_weight must be 1"
            )
        return self

    def _check_published(self, network: NcsnppConfig) -> None:
        """Refuse what the published networks cannot be trained with."""
        group = NcsnppConfig.group
        wrong = {
            f"crop must be {network.image_size}, as image_size": self.crop != network.image_size,
            "network.discriminator must be large or small": not network.has_discriminator,
            "losses.supervised must be 0: there is no head": self.losses.supervised > 0,
            "frozen must be 0: the encoder has no trunk": self.frozen > 0,
            f"batch_size must be up to {group} or a multiple of it, as D compares its rows": (
                self.batch_size > group and self.batch_size % group > 0
            ),
        }
        if any(wrong.values()):
            raise ValueError("; ".join(rule for rule, broken in wrong.items() if broken))

    @classmethod
    def from_file(cls, path: Path, base: Self | None = None) -> Self:
        """Read YAML or JSON; raises `CdalError` naming every wrong key.

        What the file leaves out is as in `base`, by default as above.
        """
        return _read(cls, path, base)


def read_model_config(path: Path) -> ModelConfig:
    """Read a model's config.json; raises `CdalError` naming every wrong key."""
    return _read(ModelConfig, path)


def _read(kind: type[_T], path: Path, base: _T | None = None) -> _T:
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        raise CdalError(f"cannot be read: {error.strerror}", "check the path", path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CdalError(f"not YAML or JSON: {error}", "check its syntax", path) from None
    if base is not None and isinstance(values, dict):
        values = _laid_over(base.model_dump(mode="json"), values)
    return validated(kind, values, path)


def _laid_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`base` with `values` in place of its own, section by section.

    Of another architecture, nothing of the base's network has a meaning.
    """
    if values.get("architecture", base.get("architecture")) != base.get("architecture"):
        return values
    both = {
        key: _laid_over(base[key], value)
        for key, value in values.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | values | both


def validated(kind: type[_T], values: object, path: Path | None = None) -> _T:
    """Make a config of what a file holds; raises `CdalError` naming every wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        unknown = {"Extra inputs are not permitted": "no such key"}  # pydantic's words for it
        reasons = ((_key(e["loc"]), e["msg"].removeprefix("Value error, ")) for e in error.errors())
        problems = "; ".join(f"{key}: {unknown.get(reason, reason)}" for key, reason in reasons)
        raise CdalError(f"invalid config: {problems}", "correct these keys", path) from None


def _key(location: tuple[int | str, ...]) -> str:
    """The key in the file; which architecture's it is, pydantic's own part of it, left out."""
    tags = ("amortized", "ncsnpp")
    return ".".join(str(part) for part in location if part not in tags) or "config"
