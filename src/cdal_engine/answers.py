"""From the networks' label maps in [-1, 1] to probabilities: pooled, tempered.

Label maps have one channel, the object's, or several, of which the first is the background's.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["object_map", "object_probability", "pooled", "tempered"]

_FLOOR = 1e-5  # of probabilities whose logarithm is taken: nothing is certain


def pooled(x_0: Tensor, supervised: Tensor, weight: float) -> Tensor:
    """Pool samples with the supervised head's answer, all (B, K, ...) label maps in [-1, 1].

    The logarithmic opinion pool of two: log-probabilities are averaged, `weight` being that of the
    sample, and made to add up. Genest and Zidek (1986), Statistical Science 1, 114.
    """
    sample, head = _probability(x_0), _probability(supervised)
    if x_0.shape[1] == 1:
        odds = torch.logit(head, _FLOOR).lerp(torch.logit(sample, _FLOOR), weight)
        return 2 * torch.sigmoid(odds) - 1
    logs = head.clamp_min(_FLOOR).log().lerp(sample.clamp_min(_FLOOR).log(), weight)
    return 2 * torch.softmax(logs, dim=1) - 1


def tempered(x_0: Tensor, temperature: float) -> Tensor:
    """Turn label maps (B, K, ...) in [-1, 1] into probabilities, at a temperature.

    It divides the log-odds of belonging to any object; which class or part stays as likely.
    """
    p = _probability(x_0)
    if temperature == 1:
        return p
    inside = torch.sigmoid(torch.logit(object_probability(p), eps=_FLOOR) / temperature)[:, None]
    if p.shape[1] == 1:
        return inside
    parts = p[:, 1:] + 1e-9  # where there is nothing to share out, evenly
    return torch.cat([1 - inside, inside * parts / parts.sum(dim=1, keepdim=True)], dim=1)


def object_probability(p: Tensor) -> Tensor:
    """Probability (B, ...) of belonging to any object, from (B, K, ...)."""
    return p[:, 0] if p.shape[1] == 1 else 1 - p[:, 0]


def object_map(x: Tensor) -> Tensor:
    """Channel (B, ...) of belonging to any object, of label maps or their states (B, K, ...)."""
    return x[:, 0] if x.shape[1] == 1 else -x[:, 0]


def _probability(x_0: Tensor) -> Tensor:
    return ((x_0.float() + 1) / 2).clamp(0, 1)  # a published network may have no bounds
