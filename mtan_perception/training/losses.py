# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The losses of the paper (Liu et al., CVPR 2019, section 4.1, equation 5) and close relatives.

Each takes a prediction (N, C, H, W) and its truth and returns a scalar: the mean over the valid
pixels of the whole batch, and 0 where none is valid, so that an image without truth does no harm.
They are computed in float32 at least.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

IGNORE = -1


def cross_entropy(log_probabilities: Tensor, truth: Tensor, weight: Tensor | None = None,
                  ignore: int = IGNORE) -> Tensor:
    """
    Pixel-wise cross-entropy of log-probabilities (N, C, H, W) with class ids (N, H, W).

    With a class `weight` (C,) it is the weighted mean, as in torch's.
    """
    truth = truth.where(truth != ignore, -100)
    total = functional.nll_loss(_wide(log_probabilities), truth, weight, reduction='sum')
    valid = truth >= 0
    count = valid.sum() if weight is None else (weight[truth.clamp(min=0)] * valid).sum()
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def absolute_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """L1: mean |prediction - truth| over all channels where the truth is known (not 0)."""
    return _masked_mean((_wide(prediction) - truth).abs(), truth != 0)


def relative_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean |prediction - truth| / truth where truth > 0: the figure by which depth is judged."""
    valid = truth > 0
    error = (_wide(prediction) - truth).abs() / truth.where(valid, 1)
    return _masked_mean(error, valid)


def cosine_distance(prediction: Tensor, truth: Tensor) -> Tensor:
    """1 - mean dot product of unit vectors (N, 3, H, W) where the truth is not a zero vector."""
    valid = (truth != 0).any(dim=1)
    return _masked_mean(1 - (_wide(prediction) * truth).sum(dim=1), valid)


LOSSES: dict[str, Callable[..., Tensor]] = {
    'cross_entropy': cross_entropy,
    'l1': absolute_error,
    'relative': relative_error,
    'cosine': cosine_distance,
}

DEFAULT_LOSSES = {SEGMENTATION: 'cross_entropy', DEPTH: 'l1', NORMAL: 'cosine'}


def choose_losses(tasks: Mapping[str, int],
                  wanted: Mapping[str, str]) -> dict[str, Callable[..., Tensor]]:
    """
    Return the loss of each task: the wanted one, else that of the paper.

    :raises ValueError: naming an unknown task, an unknown loss, or a task that needs one.
    """
    for name in wanted:
        if name not in tasks:
            raise ValueError(f'losses: unknown task {name!r}; tasks are {", ".join(tasks)}')
    chosen = {}
    for name in tasks:
        loss = wanted.get(name, DEFAULT_LOSSES.get(name))
        if loss not in LOSSES:
            raise ValueError(f'losses: {loss!r} for {name}; choose one of {", ".join(LOSSES)}')
        chosen[name] = LOSSES[loss]
    return chosen


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    # where, not a product: an invalid pixel may hold NaN, and NaN times 0 is NaN.
    return values.where(valid, 0).sum() / valid.sum().clamp(min=1)
