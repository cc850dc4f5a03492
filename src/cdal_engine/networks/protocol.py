"""What the generators of both architectures are to the rest of the engine."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

__all__ = ["LabelGenerator"]

Features = TypeVar("Features", bound=tuple[Any, ...])


class LabelGenerator(nn.Module, Generic[Features]):
    """x̂_0 = G(x_t, t, z, I) = denoise(x_t, t, z, encode(I)), paper eq. 3.

    Attributes
    ----------
    label_stride : int
        Image pixels per pixel of x_t.
    reduced_precision : bool
        Whether float16 is enough for weights in files and for all on a GPU.
    encoder, denoiser : Module
        (image) to features, a named tuple of tensors with one row an image; and
        (x_t, level, z, features) to x̂_0.
    """

    label_stride: ClassVar[int]
    reduced_precision: ClassVar[bool]
    encoder: nn.Module
    denoiser: nn.Module

    def encode(self, image: Tensor) -> Features:
        """Encode (B, C, H, W) normalised intensities, once per tile."""
        features: Features = self.encoder(image)
        return features

    def denoise(self, x_t: Tensor, level: Tensor, z: Tensor, features: Features) -> Tensor:
        """Predict x̂_0 (B, K, H, W); parameters as the denoiser's."""
        x_0: Tensor = self.denoiser(x_t, level, z, features)
        return x_0

    def forward(self, x_t: Tensor, level: Tensor, z: Tensor, image: Tensor) -> Tensor:
        """Encode and denoise in one call."""
        return self.denoise(x_t, level, z, self.encode(image))

    @staticmethod
    def preview(features: Features) -> Tensor | None:
        """The supervised head's own label map (B, K, H, W) in [-1, 1]; None without a head."""
        return None
