# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Image fitting, camera intrinsics, back-projection and normal conventions.

The camera optical frame of REP 103 is used throughout: x right, y down, z forward. Depth is z in
metres, and a surface normal points toward the camera: a wall that faces it is (0, 0, -1).
"""

from dataclasses import dataclass
import functools
import math

import numpy as np
from numpy.typing import DTypeLike

# Factor per component that brings a normal of the named convention into the optical frame.
# NYUv2's axes are right, down, toward the camera.
NORMAL_SIGNS = {'optical': (1, 1, 1), 'nyu': (1, 1, -1)}

INPUT_LIMITS = 32, 4096
"""Least and most height and width, in pixels, of what the network is given."""

# 480 * 0.6 is 287.99999999999994 in floating point, and means 288.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Fit:
    """
    An image's place in a target size: one scale for both axes, then padding right and below.

    `height` and `width` are the scaled image in pixels, `padded_height` and `padded_width` what
    the network is given; `scale` is in output pixels per input pixel.
    """

    scale: float
    height: int
    width: int
    padded_height: int
    padded_width: int


def fit_image(size: tuple[int, int], target: tuple[int, int], multiple: int = 8) -> Fit:
    """
    Fit an image of `size` (height, width) into `target` (height, width) without stretching it.

    The scale is the largest with which the whole image lies inside the target. The padded size is
    the scaled size rounded up to `multiple`. Raise ValueError for a size or multiple below 1.
    """
    if min(*size, *target, multiple) < 1:
        raise ValueError(f'cannot fit an image of {size} into {target} in multiples of {multiple}:'
                         ' every one must be at least 1')
    scale = min(target[0] / size[0], target[1] / size[1])
    height, width = (max(1, math.floor(length * scale + _ROUNDING)) for length in size)
    return Fit(scale, height, width,
               math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple)


def scale_intrinsics(intrinsics: np.ndarray, scale: float) -> np.ndarray:
    """
    Return the (3, 3) camera matrix of an image resized by `scale`.

    Focal lengths, skew and principal point are multiplied, which is what image_proc's resize node
    does and what the consumers of its CameraInfo expect.
    """
    return np.asarray(intrinsics, np.float64) * np.array([[scale], [scale], [1.0]])


def correct_depth(depth: np.ndarray, focal_length: float,
                  learnt_focal_length: float) -> np.ndarray:
    """
    Return the depth for a camera of another focal length than the one that depth was learnt for.

    Twice the focal length makes the same thing look twice as large, as if it were half as far
    away. Both focal lengths are in pixels of the image that the network sees: the camera's at
    that size, and the checkpoint's `focal_length`. The type of `depth` is kept.
    """
    return depth * float(focal_length / learnt_focal_length)  # a NumPy scalar has a type


def pixel_rays(size: tuple[int, int], intrinsics: np.ndarray, dtype: DTypeLike,
               stride: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """
    Return x (W,) and y (H, 1) of the ray (x, y, 1) through each pixel of a (H, W) image.

    The centre of pixel (row v, column u) is at (u, v), as in depth_image_proc. The arrays are kept
    for the next call, and read-only.

    :param stride: the image is every `stride`-th row and column of the one that the intrinsics
        belong to.
    """
    return _pixel_rays(size, *(float(intrinsics[row][column]) for row, column in
                               ((0, 0), (1, 1), (0, 2), (1, 2))), np.dtype(dtype), stride)


@functools.lru_cache(maxsize=8)  # a camera's clouds, for each of its frames
def _pixel_rays(size: tuple[int, int], fx: float, fy: float, cx: float, cy: float,
                dtype: np.dtype, stride: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = size
    x, y = (((stride * np.arange(length) - centre) / focal_length).astype(dtype)
            for length, centre, focal_length in ((width, cx, fx), (height, cy, fy)))
    x.flags.writeable = y.flags.writeable = False
    return x, y[:, None]


def back_project(depth: np.ndarray, intrinsics: np.ndarray, stride: int = 1) -> np.ndarray:
    """
    Return the point of each pixel in metres, (3, H, W): all x, all y, all z.

    :param depth: (H, W) along z; an unknown one (NaN) gives a point of NaNs. Its type is kept.
    :param intrinsics, stride: see `pixel_rays`.
    """
    points = np.empty((3, *depth.shape), depth.dtype)
    right, down = pixel_rays(depth.shape, intrinsics, depth.dtype, stride)
    x, y, z = points
    z[:] = depth  # First: what follows is faster from contiguous memory.
    np.multiply(z, right, out=x)
    np.multiply(z, down, out=y)
    return points
