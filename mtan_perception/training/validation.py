# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Judge a network on frames that training never sees."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn, Tensor

from mtan_perception.metrics import DepthMetrics, NormalMetrics, SegmentationMetrics
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training.layouts import INVERSE_DEPTH

# Figure -> how much a unit of it is worth when weights are chosen; degrees as shares of 90.
_WORTH = {(SEGMENTATION, 'miou'): 1.0, (DEPTH, 'rel'): -1.0, (NORMAL, 'mean'): -1 / 90}

Figures = dict[str, dict[str, float]]


@torch.inference_mode()
def validate(network: nn.Module, batches: Iterable[Mapping[str, Tensor]],
             tasks: Mapping[str, int], normalise: Callable[[Tensor], Tensor],
             losses: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]],
             ) -> Figures:
    """
    Return the figures of each task, by the names of `metrics`, and its mean `loss`.

    Depth is judged at the focal length that it is learnt for: the relative error is the same as
    at the camera's own, the absolute one is not.

    :param network: in eval mode.
    :param losses: of outputs and truth, by task.
    """
    kinds = {SEGMENTATION: lambda: SegmentationMetrics(tasks[SEGMENTATION]),
             DEPTH: DepthMetrics, NORMAL: NormalMetrics}
    metrics = {name: kinds[name]() for name in tasks if name in kinds}
    totals, count = dict.fromkeys(tasks, 0.0), 0
    for batch in batches:
        outputs = network(normalise(batch['image']))
        for name, loss in losses(outputs, batch).items():
            totals[name] = totals[name] + loss.double() * len(batch['image'])
        count += len(batch['image'])
        for name, metric in metrics.items():
            output = outputs[name].float()
            metric.update(output.argmax(dim=1) if name == SEGMENTATION else output, batch[name])
    return {name: {'loss': float(totals[name]) / max(count, 1),
                   **(metrics[name].result() if name in metrics else {})} for name in tasks}


def score(figures: Figures, kinds: Mapping[str, str]) -> float:
    """
    Return one number to choose weights by, the greater the better.

    :param kinds: task -> kind, from the data set. A relative error of inverse depth, which goes
        to 0 with the distance, would outweigh all else: that counts by its loss.
    """
    total = 0.0
    for name, values in figures.items():
        judged = [worth * values[key] for (task, key), worth in _WORTH.items()
                  if task == name and kinds[name] != INVERSE_DEPTH]
        total += judged[0] if judged else -values['loss']
    return total
