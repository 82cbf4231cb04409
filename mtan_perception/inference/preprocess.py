# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""From a camera image to the network's input, on the network's device."""

from collections.abc import Sequence
import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.geometry import Fit


def resize_image(image: np.ndarray, fit: Fit, device: torch.device) -> Tensor:
    """
    Upload `image` (H, W, 3) uint8 and resize it to (1, 3, fit.height, fit.width) uint8.

    Shrinking is anti-aliased: without it, a thin or textured surface flickers from frame to frame.
    """
    # A view of a BGR image, as cameras send it: its channels are turned once it is small.
    is_reversed = image.strides[2] < 0
    # torch shares the memory of an array only if that is writable and without negative strides.
    pixels = torch.from_numpy(np.require(image[..., ::-1] if is_reversed else image,
                                         requirements=('C', 'W')))
    pixels = pixels.to(device, copy=fit.scale == 1)  # what is not resized is the caller's memory
    resized = _resize(pixels.permute(2, 0, 1).unsqueeze(0), fit)
    return resized.flip(1) if is_reversed else resized


def _resize(pixels: Tensor, fit: Fit) -> Tensor:
    """Resize (1, 3, H, W) uint8 to (1, 3, fit.height, fit.width)."""
    if fit.scale == 1:
        return pixels
    device, (height, width) = pixels.device, pixels.shape[2:]
    # The CPU has a kernel for bytes, several times as fast as the one for floats; CUDA has not.
    source = pixels if device.type == 'cpu' else pixels.float()
    resized = functional.interpolate(
        source, mode='bilinear', antialias=True, align_corners=False,
        scale_factor=(_factor(fit.scale, height, fit.height),
                      _factor(fit.scale, width, fit.width)),
        # Sample with the scale itself. The ratio of the rounded sizes differs between the axes.
        recompute_scale_factor=False)
    return resized if device.type == 'cpu' else resized.round().clamp(0, 255).byte()


def normalise_image(image: Tensor, fit: Fit, mean: Sequence[float],
                    std: Sequence[float]) -> Tensor:
    """
    Return the network's input (1, 3, fit.padded_height, fit.padded_width) of a resized image.

    `mean` and `std` apply to RGB in 0..1. The border pixels are repeated into the padding, where
    a constant would draw an edge that the network sees from inside the image.
    """
    mean, std = _scaling(tuple(mean), tuple(std), image.device)
    normalised = image.float().sub_(mean).div_(std)
    padding = (0, fit.padded_width - fit.width, 0, fit.padded_height - fit.height)
    return functional.pad(normalised, padding, mode='replicate') if any(padding) else normalised


@functools.lru_cache(maxsize=8)  # on CUDA each would be a copy that waits for the device
def _scaling(mean: tuple[float, ...], std: tuple[float, ...],
             device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std of RGB in 0..255, (1, 3, 1, 1) each."""
    return tuple((255 * torch.tensor(values)).view(1, 3, 1, 1).to(device)
                 for values in (mean, std))


def _factor(scale: float, before: int, after: int) -> float:
    """Return the scale, or the least more of it with which torch too finds `after` pixels."""
    return scale if int(before * scale) == after else math.nextafter(after / before, math.inf)
