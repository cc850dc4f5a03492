"""Which parts of the encoder do not learn while a model is fine-tuned."""

from __future__ import annotations

from torch import nn

__all__ = ["freeze"]

_TRUNK = ("stem", "down", "lateral", "up")  # all but the heads, which must fit the new images


def freeze(encoder: nn.Module, trunk: bool) -> None:
    """Keep the statistics of the encoder's norms in the next step, and perhaps its trunk's weights.

    Parameters
    ----------
    encoder : Module
        Of the `amortized` generator; in training mode, which each step sets anew.
    trunk : bool
        Whether the trunk, all of the encoder but its heads, keeps its weights, too.
    """
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            module.eval()
    for name in _TRUNK:
        getattr(encoder, name).requires_grad_(not trunk)
