# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's logits to finished images by PyTorch, on any device."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.inference.images import MIN_NORM
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION


def finish(logits: Mapping[str, Tensor], size: tuple[int, int], axes: str) -> dict[str, Tensor]:
    """
    Return the images of the tasks at `size`, by their names.

    :param logits: task -> (N, C, h, w), before its activation.
    :param axes: those of the normals.
    :returns: 'label' (N, H, W) uint8, 'probability' (N, H, W) float32, 'depth' (N, H, W)
        float32 and 'normal' (N, H, W, 3) float32, those whose task is there.
    """
    maps = {name: upsample(part, size).float() for name, part in logits.items()}
    images = {}
    if SEGMENTATION in maps:
        images['label'], images['probability'] = classify(maps[SEGMENTATION])
    if DEPTH in maps:
        images['depth'] = maps[DEPTH][:, 0]
    if NORMAL in maps:
        images['normal'] = point_normals(maps[NORMAL], axes)
    return images


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, C, *size) in float32 or wider; what follows a head is cheap at that."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.interpolate(wide, size, mode='bilinear', align_corners=True)


def classify(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable class, uint8, and its probability, both (N, H, W)."""
    best, label = logits.max(dim=1, keepdim=True)
    return label[:, 0].byte(), 1 / (logits - best).exp().sum(dim=1)


def point_normals(normal: Tensor, axes: str) -> Tensor:
    """
    Return (N, H, W, 3) unit vectors in the optical frame from (N, 3, H, W) in `axes`.

    A vector without direction (zero or not finite) becomes (0, 0, -1), toward the camera.
    """
    # No tensor of numbers from the host: its copy cannot be part of a CUDA graph.
    planes = [sign * plane for sign, plane in zip(NORMAL_SIGNS[axes], normal.unbind(1),
                                                  strict=True)]
    length = sum(plane * plane for plane in planes).sqrt()
    pointing = (length > MIN_NORM) & length.isfinite()
    return torch.stack([torch.where(pointing, plane / length, toward)
                        for plane, toward in zip(planes, (0.0, 0.0, -1.0), strict=True)], dim=3)
