# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Camera images to the network's input, and its results to the host, by PyTorch."""

from collections.abc import Hashable, Mapping, Sequence
import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.geometry import Fit


class TorchImages:
    """
    Images on a device, as tensors.

    :param device: where the network runs.
    :param mean: and ``std``, applied to RGB in 0..1 as (rgb - mean) / std.
    """

    def __init__(self, device: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self._device, self._scaling = torch.device(device), (mean, std)

    def prepare(self, image: np.ndarray, fit: Fit) -> bool:
        """Return whether anything was lacking for images like this: never."""
        return False

    @torch.inference_mode()
    def load(self, images: Sequence[np.ndarray],
             fits: Sequence[Fit]) -> tuple[list[Tensor], Tensor]:
        """
        Return each resized image, (fit.height, fit.width, 3) uint8, and the input of all.

        :param images: (H, W, 3) uint8 RGB, which are read and not kept.
        :param fits: that have one padded size; the input is (N, 3, padded height and width).
        """
        resized = [resize_image(image, fit, self._device)
                   for image, fit in zip(images, fits, strict=True)]
        inputs = [normalise_image(pixels, fit, *self._scaling)
                  for pixels, fit in zip(resized, fits, strict=True)]
        x = torch.cat(inputs) if len(inputs) > 1 else inputs[0]  # of one it would be a copy
        return [pixels[0].permute(1, 2, 0) for pixels in resized], x

    def wait(self) -> None:
        """Wait until the device has done what it was told."""
        if self._device.type == 'cuda':
            # Not the device, which would break the graph that another engine captures.
            torch.cuda.current_stream(self._device).synchronize()

    def fetch(self, outputs: Mapping[Hashable, Tensor]) -> dict[Hashable, np.ndarray]:
        """Return contiguous arrays on the host."""
        return copy_to_host(outputs)


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
