"""Shape of the published cDAL networks, in the names of their own parameters file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["DISCRIMINATOR_BLOCKS", "DiscriminatorSize", "NcsnppConfig"]

DiscriminatorSize = Literal["large", "small"]
# Of every block: its channels in multiples of `ngf`, and whether it halves the size.
DISCRIMINATOR_BLOCKS: dict[DiscriminatorSize, tuple[tuple[int, bool], ...]] = {
    "large": ((4, True), (8, True), (8, True), (8, True), (8, True), (8, True)),
    "small": ((2, False), (4, True), (8, True), (8, True)),
}

Positive = Annotated[int, Field(ge=1, le=1024)]
Few = Annotated[int, Field(ge=1, le=16)]
_CONDITION_GROUPS = 32  # of the condition encoder's group norms


class NcsnppConfig(BaseModel):
    """What the published generator, discriminators and schedule are built from.

    Only what the published configurations share is built; any other option is an error, as is a
    key that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    has_head: ClassVar[bool] = False  # see `NetworkConfig`, which says the same of `amortized`
    group: ClassVar[int] = 4  # rows of a batch that the discriminator compares

    architecture: Literal["ncsnpp"] = "ncsnpp"
    discriminator: DiscriminatorSize | None = None  # which one came with the generator, if any

    dataset: str  # "monu": images of 3 channels, any other: of 1
    image_size: Positive  # pixels, before any halving
    num_channels: Positive  # label channels K

    num_channels_dae: Annotated[
        int, Field(multiple_of=_CONDITION_GROUPS, ge=_CONDITION_GROUPS, le=1024)
    ]
    ch_mult: Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)]  # one per level
    num_res_blocks: Few  # per level
    attn_resolutions: tuple[Positive, ...]  # sizes in pixels at which levels attend
    cond_enc_layers: Few
    cond_enc_num_res_blocks: Few
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # in training
    not_use_tanh: bool = False

    nz: Positive  # values of the latent z
    z_emb_dim: Positive
    n_mlp: Annotated[int, Field(ge=0, le=64)]

    num_timesteps: Annotated[int, Field(ge=1, le=16)]  # T, as `DiffusionConfig.steps`
    beta_min: float  # both checked as `DiffusionConfig`, which a model has beside this
    beta_max: float

    ngf: Positive  # width of the discriminators
    t_emb_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=2)]  # of the discriminators
    attn_scale: Annotated[int, Field(ge=0)]  # which of their features is the attention

    resblock_type: Literal["biggan"] = "biggan"
    embedding_type: Literal["positional"] = "positional"
    progressive: Literal["none"] = "none"
    progressive_input: Literal["residual"] = "residual"
    progressive_combine: Literal["sum"] = "sum"
    fir: Literal[True] = True
    fir_kernel: tuple[Literal[1], Literal[3], Literal[3], Literal[1]] = (1, 3, 3, 1)
    resamp_with_conv: Literal[True] = True
    skip_rescale: Literal[True] = True
    conditional: Literal[True] = True
    centered: Literal[True] = True
    use_geometric: Literal[False] = False

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.image_size % self.stride:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of the total stride {self.stride}"
            )
        if self.discriminator and self.attn_scale > len(DISCRIMINATOR_BLOCKS[self.discriminator]):
            raise ValueError(
                f"attn_scale {self.attn_scale} is beyond the features of the "
                f"{self.discriminator} discriminator"
            )
        return self

    @property
    def image_channels(self) -> int:
        """Channels of the image."""
        return 3 if self.dataset == "monu" else 1

    @property
    def levels(self) -> int:
        """Number of levels L, each half the size of the one before."""
        return len(self.ch_mult)

    @property
    def stride(self) -> int:
        """Total stride of the generator: sizes of its input are multiples of it."""
        return int(2 ** (self.levels - 1))

    @property
    def fixed_tile(self) -> int:
        """Edge of its tiles, in pixels: norms and attention look at all of a tile at once."""
        return self.image_size

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator came with the generator, to show where it looks."""
        return self.discriminator is not None

    @property
    def latent_dim(self) -> int:
        """Values of the latent z."""
        return self.nz

    @property
    def condition_blocks(self) -> int:
        """Number of residual blocks E of the condition encoder."""
        return self.cond_enc_layers * self.cond_enc_num_res_blocks

    def channels(self, level: int) -> int:
        """Channels c_i of a level in 0 … L - 1; -1 is the stem."""
        return self.num_channels_dae * (1 if level < 0 else self.ch_mult[level])

    def attends(self, level: int) -> bool:
        """Whether a level has self-attention."""
        return self.image_size // 2**level in self.attn_resolutions

    def block_inputs(self, level: int) -> list[int]:
        """Input channels of a level's residual blocks on the way down; all give `channels`."""
        repeated = [self.channels(level)] * (self.num_res_blocks - 1)
        return [self.channels(level - 1), *repeated]

    def skips(self, level: int) -> list[int]:
        """Channels of a level's skip tensors in the order they are made: e_i, then outputs."""
        return [self.channels(level - 1), *[self.channels(level)] * self.num_res_blocks]
