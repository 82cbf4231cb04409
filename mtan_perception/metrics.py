# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The figures by which dense prediction is judged, accumulated over any number of images.

Each class takes predictions and truth as tensors on any device or as arrays, of one shape, and
pools all pixels, so that the result does not depend on how images were batched. Without a single
valid pixel a figure is NaN.
"""

import math

import numpy as np
import torch

_NAN = float('nan')


class SegmentationMetrics:
    """
    Mean intersection over union and pixel accuracy from one accumulated confusion matrix.

    Truth of 255 or below 0 is unlabelled and ignored. A predicted 255 (or anything that is not a
    class) on a labelled pixel is a miss.
    """

    def __init__(self, num_classes: int) -> None:
        """Start with an empty (num_classes, num_classes + 1) matrix; last column: no class."""
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    def update(self, prediction, truth) -> None:
        """
        Count class ids `prediction` against `truth`, both of any one shape.

        Raise ValueError if the shapes differ or the truth holds a class that does not exist.
        """
        prediction, truth = _pair(prediction, truth)
        prediction, truth = prediction.long(), truth.long()
        labelled = (truth >= 0) & (truth != 255)
        prediction, truth = prediction[labelled], truth[labelled]
        if truth.numel() and truth.max() >= self.num_classes:
            raise ValueError(f'truth holds class {int(truth.max())}; there are '
                             f'{self.num_classes} (unlabelled pixels are 255 or negative)')
        no_class = (prediction < 0) | (prediction >= self.num_classes)
        columns = self.num_classes + 1
        index = truth * columns + prediction.masked_fill(no_class, self.num_classes)
        counts = torch.bincount(index, minlength=self.num_classes * columns)
        self.confusion += counts.reshape(self.num_classes, columns).cpu()

    def result(self) -> dict:
        """
        Return `miou`, `pixel_accuracy` and `per_class`, the list of the classes' IoU.

        A class that neither the truth nor the prediction holds has NaN and does not count in
        the mean.
        """
        confusion = self.confusion.double()
        hits = confusion[:, :-1].diagonal()
        union = confusion.sum(1) + confusion[:, :-1].sum(0) - hits
        per_class = hits / union
        return {'miou': per_class.nanmean().item(),
                'pixel_accuracy': (hits.sum() / confusion.sum()).item(),
                'per_class': per_class.tolist()}


class DepthMetrics:
    """Mean absolute (metres) and relative depth error where truth > 0 and both are finite."""

    def __init__(self) -> None:
        """Start with no pixel."""
        self.absolute = self.relative = 0.0
        self.count = 0

    def update(self, prediction, truth) -> None:
        """Add `prediction` against `truth`, metres, of any one shape, or raise ValueError."""
        prediction, truth = _pair(prediction, truth)
        prediction, truth = prediction.double(), truth.double()
        valid = (truth > 0) & truth.isfinite() & prediction.isfinite()
        truth = truth[valid]
        error = (prediction[valid] - truth).abs()
        self.absolute += error.sum().item()
        self.relative += (error / truth).sum().item()
        self.count += truth.numel()

    def result(self) -> dict:
        """Return `abs` in metres and `rel`, the mean of |prediction - truth| / truth."""
        if not self.count:
            return {'abs': _NAN, 'rel': _NAN}
        return {'abs': self.absolute / self.count, 'rel': self.relative / self.count}


class NormalMetrics:
    """
    Angle between predicted and true surface normals, where the truth is not a zero vector.

    The median is that of all pixels. It is kept in bins of a thousandth of a degree with each
    bin's mean, so memory does not grow and the error stays below a bin.
    """

    _BINS_PER_DEGREE = 1000
    _WITHIN = (11.25, 22.5, 30)

    def __init__(self) -> None:
        """Start with no pixel."""
        bins = 180 * self._BINS_PER_DEGREE + 1
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.sums = torch.zeros(bins, dtype=torch.float64)
        self.within = dict.fromkeys(self._WITHIN, 0)

    def update(self, prediction, truth) -> None:
        """
        Add `prediction` against `truth`: (N, 3, H, W) or (3, H, W) tensors, (H, W, 3) arrays.

        Vectors need not have unit length. A prediction that is zero or not finite counts as 90
        degrees. Raise ValueError if the shapes differ or no axis holds the three components.
        """
        last = not (isinstance(prediction, torch.Tensor) and isinstance(truth, torch.Tensor))
        prediction, truth = _pair(prediction, truth)
        axis = _vector_axis(truth.shape, last)
        prediction = prediction.movedim(axis, -1).double()
        truth = truth.movedim(axis, -1).double()
        length = truth.norm(dim=-1)
        valid = (length > 0) & length.isfinite()
        angle = _angle(prediction[valid], truth[valid])
        for limit in self.within:
            self.within[limit] += int((angle < limit).sum())
        index = (angle * self._BINS_PER_DEGREE).long()
        bins = self.counts.numel()
        self.counts += torch.bincount(index, minlength=bins).cpu()
        self.sums += torch.bincount(index, weights=angle, minlength=bins).cpu()

    def result(self) -> dict:
        """
        Return `mean` and `median` in degrees and the shares within_11.25, within_22.5, within_30.

        The shares are fractions of 1.
        """
        count = int(self.counts.sum())
        if not count:
            return {'mean': _NAN, 'median': _NAN,
                    **{f'within_{limit}': _NAN for limit in self.within}}
        # The two middle ranks of an even count; the same rank twice of an odd one.
        ranks = torch.tensor([(count + 1) // 2, count // 2 + 1])
        middle = torch.searchsorted(self.counts.cumsum(0), ranks)
        return {'mean': self.sums.sum().item() / count,
                'median': (self.sums[middle] / self.counts[middle]).mean().item(),
                **{f'within_{limit}': hits / count for limit, hits in self.within.items()}}


def _angle(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the angle in degrees between vectors (K, 3), exact near 0 where acos is not."""
    prediction = prediction.where(prediction.isfinite().all(-1, keepdim=True), 0)
    cross = torch.linalg.cross(prediction, truth).norm(dim=-1)
    dot = (prediction * truth).sum(-1)
    angle = torch.atan2(cross, dot) * (180 / math.pi)
    return angle.where((cross > 0) | (dot != 0), 90.0)


def _vector_axis(shape: torch.Size, last: bool) -> int:
    """Return the axis of the 3 components: the usual one of arrays (last) or of tensors."""
    for axis in (-1, -3) if last else (-3, -1):
        if len(shape) >= -axis and shape[axis] == 3:
            return axis
    raise ValueError(f'normals of shape {tuple(shape)} have no axis of 3 components; '
                     'give (N, 3, H, W) tensors or (H, W, 3) arrays')


def _pair(prediction, truth) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as detached tensors on the prediction's device; raise ValueError on a misfit."""
    tensors = [value.detach() if isinstance(value, torch.Tensor)
               else torch.tensor(np.asarray(value)) for value in (prediction, truth)]
    if tensors[0].shape != tensors[1].shape:
        raise ValueError(f'prediction has shape {tuple(tensors[0].shape)}, '
                         f'truth {tuple(tensors[1].shape)}; they must be the same')
    return tensors[0], tensors[1].to(tensors[0].device)
