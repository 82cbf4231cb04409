# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a robot can run into: the points that are neither floor nor ceiling; no ROS."""

from collections.abc import Iterable, Sequence
import math
from typing import NamedTuple

import cv2
import numpy as np

_FACING = math.cos(math.radians(45))
"""Cosine of the angle to the vertical up to which a surface counts as level."""
_CEILING_HEIGHT = 2.0
_MIN_FLOOR_POINTS = 50
_FIT_POINTS = 1000
_FIT_ROUNDS = 2
_RANKED_POINTS = 250
_MIN_SPREAD = 2e-4
_TINY = 1e-12
_WALL_PENALTY = 3
# Where among the points the three of each plane that is tried are. The same for each frame: else
# the floor would tremble.
_SAMPLES = np.random.default_rng(0).random((3, 64))
_MAX_TABLE = 1 << 21
"""Entries of a table of voxels that still fits into the processor's caches."""


class Plane(NamedTuple):
    """The floor: points p, in metres, with normal · p = offset; the unit normal points up."""

    normal: np.ndarray
    offset: float

    def heights(self, points: np.ndarray) -> np.ndarray:
        """Return how far points (3, ...) are above the plane, in metres."""
        heights = self.normal.astype(points.dtype) @ points.reshape(3, -1)
        heights -= points.dtype.type(self.offset)
        return heights.reshape(points.shape[1:])


def class_ids(wanted: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return which ids, (256,) bool, the wanted names have; those that no class has are passed."""
    wanted, chosen = set(wanted), np.zeros(256, bool)
    chosen[:len(names)] = [name in wanted for name in names]
    return chosen


def find_floor(points: np.ndarray, is_floor: np.ndarray,
               up: np.ndarray | None = None) -> Plane | None:
    """
    Return the plane of what is floor by its class, None where that is too little.

    :param points: (3, H, W) in metres in the camera's frame, NaN where unknown.
    :param is_floor: (H, W) bool.
    :param up: the direction against gravity, where it is known; else it is fitted.
    """
    return _floor_through(points, np.flatnonzero(np.isfinite(points[2]) & is_floor), up)


def find_level_floor(points: np.ndarray, may_be_floor: np.ndarray, normal: np.ndarray,
                     up: np.ndarray | None = None) -> Plane | None:
    """
    Return the plane of the lowest level surface, None where there is none.

    :param points, up: see `find_floor`.
    :param may_be_floor: (H, W) bool: what is nothing else by its class. A bed that fills the view
        is level, and no floor.
    :param normal: (H, W, 3).
    """
    # Without a transform a camera is taken to be upright by and large: its y axis points down.
    facing = normal @ (np.array([0.0, -1.0, 0.0]) if up is None else up)
    level = np.isfinite(points[2]) & may_be_floor & (facing > _FACING)
    found = np.flatnonzero(level)
    if not len(found):
        return None
    heights = normal[level].mean(axis=0) @ _take(points, found)
    return _floor_through(points, found[heights < np.percentile(heights, 5) + 0.1], up)


def _floor_through(points: np.ndarray, found: np.ndarray, up: np.ndarray | None) -> Plane | None:
    """Return the plane through the points of the flat indices `found` (N,), None of too few."""
    if len(found) < _MIN_FLOOR_POINTS:
        return None
    found = _take(points, found[::len(found) // _FIT_POINTS + 1]).astype(np.float64)
    return fit_plane(found) if up is None else Plane(up, float(np.median(up @ found)))


def _take(points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return, of points (3, H, W), those of the flat indices `found` (N,), as (3, N)."""
    return points.reshape(3, -1).take(found, axis=1)


def fit_plane(points: np.ndarray) -> Plane:
    """
    Fit the plane below the camera through a quarter of the points (3, N) or more.

    Much of what is called floor may be a wall or a box. By the least quantile of residuals
    (Rousseeuw, 'Least Median of Squares Regression', Journal of the American Statistical
    Association, 1984): of planes through three points the one that has the nearest quarter of the
    points nearest; then least squares through what is near it. A depth's error grows with the
    depth, so distances count by their share of it.
    """
    chosen = points.take((_SAMPLES * points.shape[1]).astype(np.intp), axis=1)
    normals, offsets = _planes_through(chosen[:, 0], chosen[:, 1], chosen[:, 2])
    some = points[:, ::points.shape[1] // _RANKED_POINTS + 1]
    distances = np.abs(normals.T @ some - offsets[:, None]) / some[2]
    quarter = some.shape[1] // 4
    spreads = np.maximum(np.partition(distances, quarter, axis=1)[:, quarter], _MIN_SPREAD)
    spreads[~normals.any(axis=0)] = np.inf
    # A camera is taken to be upright by and large. What then does not face up is rather a wall.
    best = np.where(normals[1] < -_FACING, spreads, _WALL_PENALTY * spreads).argmin()
    normal, offset, near = normals[:, best], offsets[best], 5 * spreads[best]
    weights = 1 / (points[2] * points[2])
    for _ in range(_FIT_ROUNDS):
        share = weights * (np.abs(normal @ points - offset) <= near * points[2])
        share /= share.sum()
        centre = points @ share
        around = points - centre[:, None]
        # Of the least eigenvalue; numpy's eigh takes 0.1 ms when the caches are cold.
        normal = cv2.eigen((around * share) @ around.T)[2][2]
        offset = normal @ centre
    return Plane(normal, float(offset)) if offset < 0 else Plane(-normal, float(-offset))


def _planes_through(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the planes through points (3, M): normals that point to the origin (3, M), offsets (M,).

    The normal is 0 where the three are one, or in line.
    """
    u, v = b - a, c - a
    normals = np.array([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2],
                        u[0] * v[1] - u[1] * v[0]])
    offsets = (normals * a).sum(axis=0)
    scale = -1 / np.copysign(np.sqrt((normals * normals).sum(axis=0)) + _TINY, offsets)
    return normals * scale, offsets * scale


def find_obstacles(points: np.ndarray, is_floor: np.ndarray, is_ceiling: np.ndarray,
                   normal: np.ndarray | None, floor: Plane | None,
                   min_height: float) -> np.ndarray:
    """
    Return which points, (H, W) bool, are known and neither floor nor ceiling.

    A class, a normal and a height can each be wrong. Two of the three must agree: a point is floor
    if two hold of being so by its class, facing up, and lying less than `min_height` metres above
    the plane. So a box keeps its top, and a wall that is called floor stays an obstacle. Without
    a plane only the class is left, and decides.

    :param points: (3, H, W) in metres in the camera's frame, NaN where unknown.
    :param is_floor, is_ceiling: (H, W) bool, by class.
    :param normal: (H, W, 3) or None.
    """
    known = np.isfinite(points[2])
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


def thin(points: np.ndarray, wanted: np.ndarray, voxel_size: float) -> np.ndarray:
    """
    Return the first of the wanted points in each cube of a grid, row by row, as (N, 3).

    :param points: (3, H, W) in metres, finite where they are wanted.
    :param wanted: (H, W) bool.
    :param voxel_size: edge of a cube in metres.
    """
    points = _take(points, np.flatnonzero(wanted))
    if not points.size:
        return points.T
    cells = np.floor(points / points.dtype.type(voxel_size))
    cells -= cells.min(axis=1, keepdims=True)
    shape = [int(highest) + 1 for highest in cells.max(axis=1)]
    volume = math.prod(shape)
    if volume > _MAX_TABLE:  # Of more cells a float32 cannot tell the numbers apart.
        cells = cells.astype(np.int64)
    x, y, z = cells
    # In this order neighbours in a row of the image are neighbours in the table too.
    keys = (z * shape[1] + y) * shape[0] + x
    # Neighbours mostly share their voxel; what is not the first in it need not be looked up.
    is_first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    candidates = np.flatnonzero(is_first)
    return points.take(
        candidates[_first_of_each(keys.take(candidates), volume)], axis=1).T


def _first_of_each(keys: np.ndarray, volume: int) -> np.ndarray:
    """Return where each of the keys (N,), whole numbers below `volume`, is for the first time."""
    if volume > _MAX_TABLE:
        return np.sort(np.unique(keys, return_index=True)[1])
    # A table of the voxels, in which the first of their points are written last: no sorting.
    keys = keys.astype(np.intp)
    places = np.arange(len(keys), dtype=np.min_scalar_type(len(keys)))
    table = np.empty(volume, places.dtype)
    table[keys[::-1]] = places[::-1]
    return np.flatnonzero(table.take(keys) == places)
