# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a robot can run into: the points that are neither floor nor ceiling; no ROS."""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

import numpy as np

_FACING = math.cos(math.radians(45))
"""Cosine of the angle to the vertical up to which a surface counts as level."""
_CEILING_HEIGHT = 2.0
_MIN_FLOOR_POINTS = 50
_FIT_POINTS = 5000
_FIT_ROUNDS = 5
_MIN_SPREAD = 1e-4
_MAX_TABLE = 1 << 21
"""Entries of a table of voxels that still fits into the processor's caches."""


class Plane(NamedTuple):
    """The floor: points p, in metres, with normal · p = offset; the unit normal points up."""

    normal: np.ndarray
    offset: float

    def heights(self, points: np.ndarray) -> np.ndarray:
        """Return how far points (..., 3) are above the plane, in metres."""
        return points @ self.normal.astype(points.dtype) - points.dtype.type(self.offset)


def class_ids(wanted: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return which ids, (256,) bool, the wanted names have; those that no class has are passed."""
    wanted = set(wanted)
    return np.array([index < len(names) and names[index] in wanted for index in range(256)])


def select(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return those points (H, W, 3) that are set in `mask` (H, W), as (N, 3), row by row."""
    # Several times as fast as points[mask].
    return points.reshape(-1, 3).take(np.flatnonzero(mask), axis=0)


def find_floor(points: np.ndarray, is_floor: np.ndarray, may_be_floor: np.ndarray,
               normal: np.ndarray | None, up: np.ndarray | None = None) -> Plane | None:
    """
    Return the plane of the floor in view, None where too little of it is.

    :param points: (H, W, 3) in metres in the camera's frame, NaN where unknown.
    :param is_floor: (H, W) bool: what is floor by its class.
    :param may_be_floor: (H, W) bool: what is nothing else by its class. Where too little is floor
        by class, it is looked for here: a bed that fills the view is level, and no floor.
    :param normal: (H, W, 3), by which it is looked for; or None.
    :param up: the direction against gravity, where it is known; else it is fitted.
    """
    known = np.isfinite(points[..., 2])
    found = select(points, known & is_floor)
    if len(found) < _MIN_FLOOR_POINTS and normal is not None:
        known &= may_be_floor
        found = _lowest_level(points[known], normal[known], up)
    if len(found) < _MIN_FLOOR_POINTS:
        return None
    found = found[::len(found) // _FIT_POINTS + 1].astype(np.float64)
    return fit_plane(found) if up is None else Plane(up, float(np.median(found @ up)))


def _lowest_level(points: np.ndarray, normal: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    """Return those points (N, 3) that lie on the lowest of the level surfaces."""
    # Without a transform a camera is taken to be upright by and large: its y axis points down.
    level = normal @ (np.array([0.0, -1.0, 0.0]) if up is None else up) > _FACING
    points, normal = points[level], normal[level]
    if not len(points):
        return points
    heights = points @ normal.mean(axis=0)
    return points[heights < np.percentile(heights, 5) + 0.1]


def fit_plane(points: np.ndarray) -> Plane:
    """
    Fit the plane below the camera through most of the points (N, 3), leaving outliers aside.

    A depth's error grows with the depth, so near points count more.
    """
    weights = 1 / points[:, 2] ** 2
    kept = np.ones(len(points), bool)
    for _ in range(_FIT_ROUNDS):
        share = weights * kept / (weights * kept).sum()
        centre = share @ points
        offsets = points - centre
        normal = np.linalg.eigh((offsets * share[:, None]).T @ offsets)[1][:, 0]
        distances = np.abs(offsets @ normal)
        # 1.48 times the median deviation is the standard deviation of a normal distribution.
        spread = max(1.48 * np.median(distances[kept]), _MIN_SPREAD)
        before, kept = kept, distances <= 2.5 * spread
        if np.array_equal(before, kept):
            break
    if normal @ centre > 0:  # The camera, at the origin, is above the floor.
        normal = -normal
    return Plane(normal, float(normal @ centre))


def find_obstacles(points: np.ndarray, is_floor: np.ndarray, is_ceiling: np.ndarray,
                   normal: np.ndarray | None, floor: Plane | None,
                   min_height: float) -> np.ndarray:
    """
    Return which points, (H, W) bool, are known and neither floor nor ceiling.

    A class, a normal and a height can each be wrong. Two of the three must agree: a point is floor
    if two hold of being so by its class, facing up, and lying less than `min_height` metres above
    the plane. So a box keeps its top, and a wall that is called floor stays an obstacle. Without
    a plane only the class is left, and decides.

    :param points: (H, W, 3) in metres in the camera's frame, NaN where unknown.
    :param is_floor, is_ceiling: (H, W) bool, by class.
    :param normal: (H, W, 3) or None.
    """
    known = np.isfinite(points[..., 2])
    if floor is None:
        return known & ~is_floor & ~is_ceiling
    height = floor.heights(points)
    floor_votes, ceiling_votes = is_floor.astype(np.uint8), is_ceiling.astype(np.uint8)
    floor_votes += height < min_height
    ceiling_votes += height > _CEILING_HEIGHT
    if normal is not None:
        facing = normal @ floor.normal.astype(normal.dtype)
        floor_votes += facing > _FACING
        ceiling_votes += facing < -_FACING
    return known & (floor_votes < 2) & (ceiling_votes < 2)


def thin(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """Return the first of the points (N, 3) in each cube of a grid of `voxel_size` metres."""
    if not len(points):
        return points
    columns = [np.floor(axis / voxel_size) for axis in points.T]
    columns = [(axis - axis.min()).astype(np.int32) for axis in columns]
    shape = [int(axis.max()) + 1 for axis in columns]
    volume = math.prod(shape)
    if volume > _MAX_TABLE:
        columns = [axis.astype(np.int64) for axis in columns]
    keys = (columns[0] * shape[1] + columns[1]) * shape[2] + columns[2]
    # Neighbours mostly share their voxel.
    candidates = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    keys = keys[candidates]
    if volume > _MAX_TABLE:
        return points[candidates[np.sort(np.unique(keys, return_index=True)[1])]]
    # A table of the voxels, in which the first of their points are written last: no sorting.
    first = np.empty(volume, np.int32)
    first[keys[::-1]] = candidates[::-1]
    return points[candidates[first[keys] == candidates]]
