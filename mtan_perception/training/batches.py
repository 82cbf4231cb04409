# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Batches as a network and its losses take them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.training.losses import NO_TRUTH


def pad(batch: Mapping[str, Tensor], kinds: Mapping[str, str],
        multiple: int) -> Mapping[str, Tensor]:
    """
    Return a batch whose height and width are multiples, padded as the engine pads an image.

    The image's border pixels are repeated at the right and the bottom; there is no truth there.

    :param kinds: task -> kind, from the data set.
    """
    height, width = batch['image'].shape[-2:]
    padding = 0, -width % multiple, 0, -height % multiple
    if not any(padding):
        return batch
    return {**batch, 'image': functional.pad(batch['image'], padding, mode='replicate'), **{
        name: functional.pad(batch[name], padding, value=NO_TRUTH[kind])
        for name, kind in kinds.items() if name in batch}}


def thin(batch: Mapping[str, Tensor], stride: int) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """
    Return the truth on every n-th row and column, and its size.

    The rows and columns are those on which the network's output of that size lies: its corners
    are the image's corners (align_corners).
    """
    height, width = batch['image'].shape[-2:]
    size = max(1, height // stride), max(1, width // stride)
    if stride == 1:
        return dict(batch), size
    device = batch['image'].device
    rows = torch.linspace(0, height - 1, size[0], device=device).round().long()
    columns = torch.linspace(0, width - 1, size[1], device=device).round().long()
    return {name: value[..., rows[:, None], columns] for name, value in batch.items()
            if value.shape[-2:] == (height, width)}, size
