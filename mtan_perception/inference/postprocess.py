# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
From the network's logits to finished images, on its device, then to the host.

What no setting changes (``finish``) belongs to the backend, which may fuse it with the network;
the limits, which may change from frame to frame, are applied to its results.
"""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.labels import UNLABELLED
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

# A normal shorter than this has no direction to speak of.
MIN_NORM = 1e-4

IMAGES = {SEGMENTATION: ('label', 'probability'), DEPTH: ('depth',), NORMAL: ('normal',)}
"""Task -> the names of the images that `finish` makes of it."""


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


def limit_confidence(label: Tensor, probability: Tensor,
                     threshold: float) -> tuple[Tensor, Tensor]:
    """
    Return class ids and confidence, both uint8, of a map's classes and their probability.

    Where the probability is below `threshold`, or not a number, the class is 255.
    """
    label = torch.where(probability >= threshold, label, UNLABELLED)
    return label, (255 * probability).nan_to_num_(0).round_().byte()


def limit_depth(depth: Tensor, depth_range: tuple[float, float]) -> Tensor:
    """Return float32 metres, NaN if outside the range or not above 0."""
    nearest, farthest = depth_range
    limits = torch.finfo(depth.dtype)
    within = depth.clamp(max(nearest, limits.tiny), min(farthest, limits.max))
    return torch.where(within == depth, depth, torch.nan)


def copy_to_host(images: Mapping[Hashable, Tensor]) -> dict[Hashable, np.ndarray]:
    """
    Return contiguous arrays of the tensors' shapes and types.

    On the host that is the tensors' own memory, where they are contiguous. From a device they are
    fetched in one transfer: views of one buffer, which lives as long as any of them.
    """
    if not any(tensor.is_cuda for tensor in images.values()):
        return {name: tensor.contiguous().numpy() for name, tensor in images.items()}
    packed = pack(images)
    # Into pinned memory the device writes by itself, at full speed.
    pinned = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    pinned.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(packed.device).synchronize()
    return unpack(pinned.numpy(), images)


def pack(images: Mapping[Hashable, Tensor]) -> Tensor:
    """Return the bytes of all tensors, the widest type first: each starts at a multiple of it."""
    return torch.cat([images[name].contiguous().view(-1).view(torch.uint8)
                      for name in _widest_first(images)])


def unpack(buffer: np.ndarray, images: Mapping[Hashable, Tensor]) -> dict[Hashable, np.ndarray]:
    """Return views of what `pack` gave, with the tensors' shapes and types."""
    arrays = {}
    for name in _widest_first(images):
        tensor = images[name]
        content, buffer = np.split(buffer, [tensor.numel() * tensor.element_size()])
        # 'torch.float32' and 'torch.uint8' are named as in numpy.
        dtype = np.dtype(str(tensor.dtype).removeprefix('torch.'))
        arrays[name] = content.view(dtype).reshape(tensor.shape)
    return arrays


def _widest_first(images: Mapping[Hashable, Tensor]) -> list[Hashable]:
    return sorted(images, key=lambda name: -images[name].element_size())
