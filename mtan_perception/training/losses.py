# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The losses of the paper (Liu et al., CVPR 2019, section 4.1, equation 5) and close relatives.

Each takes a prediction (N, C, H, W), its truth and the valid pixels (N, H, W) or (N, C, H, W),
and returns a scalar: the mean over the valid pixels of the whole batch, that of all processes
included. It is 0 where no pixel is valid, so that an image without truth does no harm. The
arithmetic is float32 at least.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.training.distributed import mean_over_processes
from mtan_perception.training.layouts import (
    CLASSIFICATION,
    DEPTH,
    INVERSE_DEPTH,
    NORMAL,
    REGRESSION,
)

IGNORE = -1
"""The class id of a pixel without truth."""
NO_TRUTH = {CLASSIFICATION: IGNORE, DEPTH: 0.0, INVERSE_DEPTH: 0.0, NORMAL: 0.0,
            REGRESSION: float('nan')}
"""What every channel of a pixel without truth holds, by the kind of the task."""
# Added to the squared chord: the root's slope has no end at 0.
_CHORD_FLOOR = 1e-6


def valid_pixels(kind: str, truth: Tensor) -> Tensor:
    """
    Return where the truth of a task is known.

    A class is at least 0, a depth (or its inverse) above 0, a normal not the zero vector, and
    any other value not NaN.

    :param kind: that of the data set's layout.
    """
    if kind == CLASSIFICATION:
        return truth >= 0
    if kind in (DEPTH, INVERSE_DEPTH):
        return truth > 0
    if kind == NORMAL:
        return (truth != 0).any(dim=1)
    return ~truth.isnan()


def cross_entropy(prediction: Tensor, truth: Tensor, valid: Tensor,
                  weight: Tensor | None = None) -> Tensor:
    """
    Pixel-wise cross-entropy of logits or log-probabilities with class ids (N, H, W).

    With a class weight (C,) it is the weighted mean.
    """
    truth = truth.where(valid, IGNORE)
    pixels = functional.cross_entropy(_wide(prediction), truth, weight, ignore_index=IGNORE,
                                      reduction='none')
    count = valid if weight is None else weight[truth.clamp(min=0)] * valid
    return pixels.sum() / _count(count)


def absolute_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """L1: mean |prediction - truth|."""
    return _mean(_difference(prediction, truth, valid).abs(), valid)


def squared_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean (prediction - truth)^2."""
    return _mean(_difference(prediction, truth, valid).square(), valid)


def relative_error(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean |prediction - truth| / truth: the figure by which depth is judged."""
    return _mean(_difference(prediction, truth, valid).abs() / truth.where(valid, 1), valid)


def cosine_distance(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """1 - mean dot product of unit vectors (N, 3, H, W)."""
    return _mean(1 - (_wide(prediction) * truth).sum(dim=1), valid)


def chord(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """
    Mean distance of unit vectors (N, 3, H, W): 2 sin(angle / 2).

    Nearly the mean angle, by which normals are judged. Where a pixel may belong to either of two
    faces, 1 - cos is least between them, and this on the likelier one.
    """
    square = (_wide(prediction) - truth).square().sum(dim=1)
    return _mean((square + _CHORD_FLOOR).sqrt(), valid)


LOSSES: dict[str, Callable[..., Tensor]] = {
    'cross_entropy': cross_entropy,
    'l1': absolute_error,
    'mse': squared_error,
    'relative': relative_error,
    'cosine': cosine_distance,
    'chord': chord,
}

_FITTING = {
    CLASSIFICATION: ('cross_entropy',),
    DEPTH: ('l1', 'mse', 'relative'),
    INVERSE_DEPTH: ('l1', 'mse', 'relative'),
    NORMAL: ('cosine', 'chord'),
    REGRESSION: ('l1', 'mse'),
}


def choose_losses(kinds: Mapping[str, str], usual: Mapping[str, str],
                  wanted: Mapping[str, str]) -> dict[str, Callable[..., Tensor]]:
    """
    Return the loss of each task.

    :param kinds: task -> its kind in the data set's layout.
    :param usual: task -> the data set's loss.
    :param wanted: task -> another one that the configuration asks for.
    :raises ValueError: naming an unknown task, or a loss that does not fit the task.
    """
    for name in wanted:
        if name not in kinds:
            raise ValueError(f'losses: unknown task {name!r}; tasks are {", ".join(kinds)}')
    chosen = {**usual, **wanted}
    for name, kind in kinds.items():
        if chosen[name] not in _FITTING[kind]:
            raise ValueError(f'losses: {chosen[name]!r} does not fit {name}, a {kind} task; '
                             f'choose one of {", ".join(_FITTING[kind])}')
    return {name: LOSSES[chosen[name]] for name in kinds}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _difference(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    # Before the arithmetic, too: a NaN that is left out of a result comes back in its gradient.
    return _wide(prediction) - truth.where(valid, 0)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    # where, not a product: an invalid pixel may hold NaN, and NaN times 0 is NaN.
    return values.where(valid, 0).sum() / _count(valid)


def _count(valid: Tensor) -> Tensor:
    """
    Return the number of valid pixels of a process, averaged over the processes.

    DistributedDataParallel averages gradients. With this count the average of the losses of all
    processes is the mean over all their pixels, whatever share each one has.
    """
    total = valid.sum().detach()
    total = mean_over_processes(total if total.is_floating_point() else total.float())
    return total.clamp(min=torch.finfo(torch.float32).tiny)
