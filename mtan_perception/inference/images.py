# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The images that are made of the network's logits, whatever runtime makes them.

What no setting changes belongs to the backend, which may fuse it with the network
(mtan_perception.inference.postprocess.finish in PyTorch); the limits, which may change from frame
to frame, are applied to its results, arrays of NumPy or of PyTorch.
"""

import sys
from types import ModuleType
from typing import TypeVar

from mtan_perception.labels import UNLABELLED
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

IMAGES = {SEGMENTATION: ('label', 'probability'), DEPTH: ('depth',), NORMAL: ('normal',)}
"""Task -> the names of the images that a backend makes of it."""

MIN_NORM = 1e-4
"""A normal shorter than this has no direction to speak of."""

Array = TypeVar('Array')
"""numpy.ndarray or torch.Tensor."""


def limit_confidence(label: Array, probability: Array, threshold: float) -> tuple[Array, Array]:
    """
    Return class ids and confidence, both uint8, of a map's classes and their probability.

    Where the probability is below `threshold`, or not a number, the class is 255.
    """
    library = _library_of(label)
    rounded = library.round(library.where(probability >= 0, 255 * probability, 0))
    return (library.where(probability >= threshold, label, UNLABELLED),
            library.asarray(rounded, dtype=library.uint8))


def limit_depth(depth: Array, depth_range: tuple[float, float]) -> Array:
    """Return float32 metres, NaN if outside the range or not above 0."""
    library, (nearest, farthest) = _library_of(depth), depth_range
    limits = library.finfo(depth.dtype)
    within = library.clip(depth, max(nearest, limits.tiny), min(farthest, limits.max))
    return library.where(within == depth, depth, library.nan)


def _library_of(array: Array) -> ModuleType:
    """Return numpy or torch; what is called here has one name and meaning in both."""
    return sys.modules[type(array).__module__.partition('.')[0]]
