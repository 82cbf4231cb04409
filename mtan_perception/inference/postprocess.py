# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's maps to finished images: computed on its device, then copied to the host."""

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from torch import Tensor

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.labels import UNLABELLED


def finish_segmentation(log_probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """
    Return class ids and confidence, both (H, W) uint8, from (C, H, W) log-probabilities.

    Where the greatest probability is below `threshold`, or not a number, the class is 255.
    """
    best, label = log_probabilities.float().max(dim=0)
    probability = best.exp()
    label = torch.where(probability >= threshold, label, UNLABELLED)
    confidence = (255 * probability).nan_to_num(0).round()
    return label.byte(), confidence.byte()


def finish_depth(depth: Tensor, depth_range: tuple[float, float]) -> Tensor:
    """Return (H, W) float32 metres from (1, H, W), NaN if outside the range or not above 0."""
    depth = depth[0].float()
    nearest, farthest = depth_range
    known = (depth >= nearest) & (depth <= farthest) & (depth > 0) & depth.isfinite()
    return torch.where(known, depth, torch.nan)


def finish_normal(normal: Tensor, axes: str) -> Tensor:
    """
    Return (H, W, 3) float32 unit vectors in the optical frame from (3, H, W) in `axes`.

    A vector without direction (zero or not finite) becomes (0, 0, -1), toward the camera.
    """
    normal = normal.float().permute(1, 2, 0) * normal.new_tensor(NORMAL_SIGNS[axes]).float()
    length = torch.linalg.vector_norm(normal, dim=2, keepdim=True)
    pointing = (length > 1e-4) & length.isfinite()
    return torch.where(pointing, normal / length, normal.new_tensor((0.0, 0.0, -1.0)))


def copy_to_host(images: Mapping[Hashable, Tensor]) -> dict[Hashable, np.ndarray]:
    """
    Return contiguous arrays of the tensors' shapes and types, fetched in one transfer.

    They are views of one buffer, which lives as long as any of them.
    """
    # The widest type first, so that each array starts at a multiple of its element size.
    tensors = sorted(images.items(), key=lambda item: -item[1].element_size())
    packed = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in tensors])
    buffer = packed.cpu().numpy()
    arrays = {}
    for name, tensor in tensors:
        content, buffer = np.split(buffer, [tensor.numel() * tensor.element_size()])
        # 'torch.float32' and 'torch.uint8' are named as in numpy.
        dtype = np.dtype(str(tensor.dtype).removeprefix('torch.'))
        arrays[name] = content.view(dtype).reshape(tensor.shape)
    return arrays
