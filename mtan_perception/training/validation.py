# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Judge a network on synthetic rooms that training never sees."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn, Tensor

from mtan_perception.metrics import DepthMetrics, NormalMetrics, SegmentationMetrics
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training.rooms import render_packed, unpack


def make_metrics(tasks: Mapping[str, int]) -> dict[str, object]:
    """Return an empty metric for each task that has one."""
    kinds = {SEGMENTATION: lambda: SegmentationMetrics(tasks[SEGMENTATION]),
             DEPTH: DepthMetrics, NORMAL: NormalMetrics}
    return {name: kinds[name]() for name in tasks if name in kinds}


def update_metrics(metrics: Mapping[str, object], outputs: Mapping[str, Tensor],
                   batch: Mapping[str, Tensor]) -> None:
    """Add a batch of network outputs and their truth."""
    for name, metric in metrics.items():
        output = outputs[name].float()
        metric.update(output.argmax(dim=1) if name == SEGMENTATION else output, batch[name])


def score(figures: Mapping[str, Mapping[str, float]]) -> float:
    """Return one number to choose weights by: the greater the better."""
    signs = ((SEGMENTATION, 'miou', 1.0), (DEPTH, 'rel', -1.0), (NORMAL, 'mean', -1 / 90))
    return sum(sign * figures[task][key] for task, key, sign in signs if task in figures)


class RoomValidation:
    """A fixed set of rooms, rendered once."""

    def __init__(self, seeds: Sequence[int], size: tuple[int, int], focal_length: float,
                 device: torch.device, batch: int = 4) -> None:
        parts = [render_packed(seeds[start:start + batch], size, focal_length, device)
                 for start in range(0, len(seeds), batch)]
        self._batches = parts

    @torch.inference_mode()
    def __call__(self, network: nn.Module, tasks: Mapping[str, int],
                 normalise) -> dict[str, dict[str, float]]:
        """
        Return the figures of each task.

        Relative depth error is the same at the canonical focal length as at the camera's own;
        the absolute one is that at the canonical focal length.
        """
        metrics = make_metrics(tasks)
        for packed in self._batches:
            batch = unpack(packed)
            update_metrics(metrics, network(normalise(batch['image'])), batch)
        return {name: metric.result() for name, metric in metrics.items()}
