# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Organised point clouds from predictions, as arrays; no ROS."""

import array
from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np

from mtan_perception.geometry import back_project, pixel_rays
from mtan_perception.inference import Prediction
from mtan_perception.labels import UNLABELLED

# PCL and RViz find a field by its name and type. In `rgb` they expect a float32 whose bytes are
# blue, green, red, 0.
_FLOATS = {'x': 0, 'y': 4, 'z': 8, 'rgb': 12, 'normal_x': 16, 'normal_y': 20, 'normal_z': 24}
_BYTES = {'label': 28, 'confidence': 29}
POINT = np.dtype({
    'names': [*_FLOATS, *_BYTES], 'formats': ['<f4'] * len(_FLOATS) + ['u1'] * len(_BYTES),
    'offsets': [*_FLOATS.values(), *_BYTES.values()], 'itemsize': 32})
# OpenCV's pairs (from, to) for the eight values of four bytes that a point is.
_IN_ORDER = np.repeat(np.arange(POINT.itemsize // 4), 2).tolist()
ALL_CLASSES = 'all'


@dataclass(frozen=True)
class CloudOptions:
    """
    What of a prediction becomes a point.

    Of rows and columns every `stride`-th is taken. A pixel has no point (x, y and z are NaN) where
    its class id is not set in `kept` ((256,) bool; None keeps all) or where the angle between its
    normal and the ray to the camera is above `max_edge_angle` degrees; 90 leaves every angle.
    """

    stride: int = 1
    kept: np.ndarray | None = None
    max_edge_angle: float = 90.0


def select_classes(entries: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """
    Return which class ids, (256,) bool, a list of class names asks for.

    `all` stands for every class and for unlabelled pixels, `-name` leaves a class out; a list of
    nothing but those leaves out of all. Raise ValueError for an unknown name, with the choices.
    """
    unknown = [entry for entry in entries
               if entry != ALL_CLASSES and entry.removeprefix('-') not in names]
    if unknown or not entries:
        raise ValueError(
            f"{', '.join(map(repr, unknown)) or 'nothing'} is no class of these weights; choose "
            f"from {ALL_CLASSES}, {', '.join(names)}, or leave one out with a - before its name")
    wanted = {entry for entry in entries if not entry.startswith('-')}
    all_wanted = ALL_CLASSES in wanted or not wanted
    chosen = np.full(256, all_wanted)
    chosen[:len(names)] = [(all_wanted or name in wanted) and f'-{name}' not in entries
                           for name in names]
    return chosen


def cloud_size(prediction: Prediction, options: CloudOptions) -> tuple[int, int]:
    """Return the height and width of a prediction's cloud, in points."""
    height, width = prediction.depth.shape
    return -(-height // options.stride), -(-width // options.stride)


def fill_cloud(prediction: Prediction, intrinsics: np.ndarray, options: CloudOptions,
               memory: array.array | None = None) -> np.ndarray:
    """
    Return the points of a prediction as an array (H, W) of POINT, row by row as the image.

    :param prediction: with depth; without segmentation the label is 255 and the confidence 0,
        without normals they are NaN.
    :param intrinsics: (3, 3) of the prediction's size.
    :param memory: writable bytes for the points, in place of an array's own.
    """
    image, depth, normal, label, confidence = every_nth(
        options.stride, prediction.image, prediction.depth, prediction.normal, prediction.label,
        prediction.confidence)
    size = depth.shape
    cloud = np.empty(size, POINT) if memory is None else np.frombuffer(memory, POINT).reshape(size)
    if label is None:
        label, confidence = np.full(size, UNLABELLED, np.uint8), np.zeros(size, np.uint8)
    if normal is None:
        normal = np.full((*size, 3), np.nan, np.float32)
    else:
        depth = leave_out_grazing(
            depth, normal, intrinsics, options.max_edge_angle, options.stride)
    if options.kept is not None:
        depth = np.where(look_up(options.kept, label), depth, np.float32(np.nan))
    x, y, z = back_project(depth, intrinsics, options.stride)
    rgb = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGRA)
    rgb[..., 3] = 0
    nothing = np.zeros(size, np.uint8)
    rest = cv2.merge([label, confidence, nothing, nothing])
    # Each four bytes go as one float32: OpenCV writes eight channels between one another twice as
    # fast as numpy does.
    channels = [x, y, z, rgb.view(np.float32), normal, rest.view(np.float32)]
    cv2.mixChannels(channels, [cloud.view(np.float32).reshape(*size, 8)], _IN_ORDER)
    return cloud


def every_nth(stride: int, *maps: np.ndarray | None) -> list[np.ndarray | None]:
    """View every `stride`-th row and column of each map (H, W, ...); of None, None."""
    step = (slice(None, None, stride),) * 2
    return [None if values is None else values[step] for values in maps]


def look_up(chosen: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return whether the class of each pixel, `label` (H, W) uint8, is `chosen`, (256,) bool."""
    # Twice as fast as chosen[label].
    return cv2.LUT(label, chosen.view(np.uint8)).view(bool)


def leave_out_grazing(depth: np.ndarray, normal: np.ndarray, intrinsics: np.ndarray,
                      max_angle: float, stride: int = 1) -> np.ndarray:
    """Return the depth (H, W), NaN where `faces_camera` says no; an angle of 90 leaves all in."""
    if max_angle >= 90:
        return depth
    seen = faces_camera(normal, intrinsics, max_angle, stride)
    return np.where(seen, depth, np.float32(np.nan))


def faces_camera(normal: np.ndarray, intrinsics: np.ndarray, max_angle: float,
                 stride: int = 1) -> np.ndarray:
    """
    Tell where a surface is seen at no more than `max_angle` degrees from its normal, (H, W).

    The depth of what is seen edge-on is a guess between two surfaces: a point flying in between.

    :param intrinsics, stride: see `pixel_rays`.
    """
    x, y = pixel_rays(normal.shape[:2], intrinsics, normal.dtype, stride)
    cosine = normal[..., 0] * x + normal[..., 1] * y + normal[..., 2]
    length = np.sqrt(x * x + y * y + 1)
    return -cosine >= math.cos(math.radians(max_angle)) * length
