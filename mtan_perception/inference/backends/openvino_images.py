# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Camera images to the network's input by OpenVINO, as PyTorch does it and without PyTorch."""

from collections.abc import Hashable, Mapping, Sequence
import functools
from typing import Any

import numpy as np
import openvino
from openvino import Node
from openvino import opset13 as ops

from mtan_perception.geometry import Fit
from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.backends.openvino_runtime import (
    compile_model,
    infer,
    integers,
    number,
)

_MAX_SIZES = 16
"""Of images; what is built for one takes a megabyte, and 50 ms."""


class OpenVINOImages:
    """
    Images in memory, as NumPy's arrays.

    :param device: 'cpu'.
    :param mean: and ``std``, applied to RGB in 0..1 as (rgb - mean) / std.
    """

    def __init__(self, device: str, mean: Sequence[float], std: Sequence[float]) -> None:
        self._scaling = mean, std
        self._requests: LatestUsed[Any] = LatestUsed(_MAX_SIZES)

    def prepare(self, image: np.ndarray, fit: Fit) -> bool:
        """Build what images like this lack to be loaded; return whether it was lacking."""
        lacked = _key(image, fit) not in self._requests
        self._request(image, fit)
        return lacked

    def load(self, images: Sequence[np.ndarray],
             fits: Sequence[Fit]) -> tuple[list[np.ndarray], np.ndarray]:
        """
        Return each resized image, (fit.height, fit.width, 3) uint8, and the input of all.

        :param images: (H, W, 3) uint8 RGB, which are read and not kept.
        :param fits: that have one padded size; the input is (N, 3, padded height and width).
        """
        loaded = [infer(self._request(image, fit), _in_memory(image))
                  for image, fit in zip(images, fits, strict=True)]
        inputs = [results['x'] for results in loaded]
        x = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]  # of one it would be a copy
        return [results['image'] for results in loaded], x

    def wait(self) -> None:
        """Return at once: nothing is left to wait for."""

    def fetch(self, outputs: Mapping[Hashable, np.ndarray]) -> dict[Hashable, np.ndarray]:
        """Return them, contiguous."""
        return {name: np.ascontiguousarray(output) for name, output in outputs.items()}

    def _request(self, image: np.ndarray, fit: Fit) -> Any:
        height, width, is_reversed, _ = key = _key(image, fit)
        return self._requests.use(key, lambda: compile_model(_build(
            (height, width), is_reversed, fit, *self._scaling)).create_infer_request())


def _key(image: np.ndarray, fit: Fit) -> tuple[int, int, bool, Fit]:
    return *image.shape[:2], _is_reversed(image), fit


def _is_reversed(image: np.ndarray) -> bool:
    """Tell whether it is a view of a BGR image, as cameras send it."""
    return image.strides[2] < 0


def _in_memory(image: np.ndarray) -> np.ndarray:
    """Return contiguous pixels, of a view of a BGR image in that order."""
    return np.ascontiguousarray(image[..., ::-1] if _is_reversed(image) else image)


def _build(size: tuple[int, int], is_reversed: bool, fit: Fit, mean: Sequence[float],
           std: Sequence[float]) -> openvino.Model:
    """Return a model from (*size, 3) uint8 to the resized 'image' and the network's input 'x'."""
    image = ops.parameter((*size, 3), np.uint8)
    y = image
    for before, after in zip(size, (fit.height, fit.width), strict=True):
        # The other axis becomes the first: rows of pixels are copied whole.
        y = ops.transpose(_resized(y, before, after, fit.scale), integers(1, 0, 2))
    if is_reversed:  # once it is small
        y = ops.gather(y, ops.constant(np.array([2, 1, 0], np.int32)), integers(2))
    mean, std = (ops.constant(255 * np.array(values, np.float32)) for values in (mean, std))
    x = ops.divide(ops.subtract(ops.convert(y, 'f32'), mean), std)
    x = ops.unsqueeze(ops.transpose(x, integers(2, 0, 1)), integers(0))
    # The border is repeated: a constant would draw an edge that the network sees inside the image.
    x = ops.pad(x, integers(0, 0, 0, 0), integers(
        0, 0, fit.padded_height - fit.height, fit.padded_width - fit.width), 'edge')
    results = []
    for name, output in (('image', y), ('x', x)):
        results.append(ops.result(output))
        results[-1].output(0).set_names({name})
    return openvino.Model(results, [image], 'images')


def _resized(x: Node, before: int, after: int, scale: float) -> Node:
    """Return `after` rows of the `before` that a map of uint8 has, each a sum of a few."""
    if before == after:  # of an axis alone, too, as torch does it
        return x
    terms = [ops.multiply(ops.convert(ops.gather(x, ops.constant(rows), integers(0)), 'f32'),
                          ops.constant(shares[:, None, None]))
             for rows, shares in zip(*_taps(before, after, scale), strict=True)]
    total = ops.add(functools.reduce(ops.add, terms), number(0.5))
    return ops.convert(ops.clamp(ops.floor(total), 0, 255), 'u8')


def _taps(before: int, after: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return which pixels along an axis each of those after resizing is a sum of, and their shares.

    Both (taps, after). The shares are those of PyTorch's and Pillow's anti-aliased bilinear
    filter: a triangle, as wide as two pixels of whichever image has the larger ones.
    """
    centres = (np.arange(after) + 0.5) / scale
    distances = np.arange(before) + 0.5 - centres[:, None]
    shares = np.maximum(0, 1 - np.abs(distances) * min(scale, 1))
    shares /= shares.sum(1, keepdims=True)
    count = int((shares > 0).sum(1).max())
    first = np.minimum((shares > 0).argmax(1), before - count)
    rows = first + np.arange(count)[:, None]
    return rows.astype(np.int32), shares[np.arange(after), rows].astype(np.float32)
