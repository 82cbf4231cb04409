# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The point clouds as messages: every point of a frame, and the obstacles among them."""

import functools
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

from mtan_perception.geometry import back_project
from mtan_perception.inference import Prediction
from mtan_perception.labels import UNLABELLED
from mtan_perception.node.clouds import (
    cloud_size,
    CloudOptions,
    every_nth,
    fill_cloud,
    leave_out_grazing,
    look_up,
    POINT,
    select_classes,
)
from mtan_perception.node.image_codec import append_bytes, append_zeros
from mtan_perception.node.obstacles import (
    class_ids,
    find_floor,
    find_level_floor,
    find_obstacles,
    Plane,
    thin,
)
from mtan_perception.node.parameters import Settings

_DATATYPES = {'<f4': PointField.FLOAT32, '|u1': PointField.UINT8}
_XYZ = np.dtype([('x', '<f4'), ('y', '<f4'), ('z', '<f4')])


class _Classes(NamedTuple):
    """Which class ids, each (256,) bool, count as what; `kept` is None where all are."""

    kept: np.ndarray | None
    floor: np.ndarray
    ceiling: np.ndarray
    floor_or_none: np.ndarray


@functools.lru_cache(maxsize=1)
def _classes(settings: Settings, names: tuple[str, ...]) -> _Classes:
    """Look the classes of the clouds up by name, once for as long as the parameters stay."""
    kept = select_classes(settings.points_classes, names)
    kept[UNLABELLED] &= not settings.points_confident_only
    floor = class_ids(settings.obstacles_floor_classes, names)
    floor_or_none = floor.copy() if floor.any() else np.ones(256, bool)
    floor_or_none[UNLABELLED] = True
    ceiling = class_ids(settings.obstacles_ceiling_classes, names)
    return _Classes(None if kept.all() else kept, floor, ceiling, floor_or_none)


def points_message(prediction: Prediction, intrinsics: np.ndarray, settings: Settings,
                   names: tuple[str, ...], header, used: PointCloud2 | None = None) -> PointCloud2:
    """
    Fill `~/points`.

    :param prediction: with depth.
    :param intrinsics: (3, 3) of the prediction's size.
    :param names: of the classes, in the order of their ids.
    :param used: a message that has been published, to be filled anew.
    """
    options = CloudOptions(
        settings.points_stride, _classes(settings, names).kept, settings.points_max_edge_angle)
    message = cloud_message(cloud_size(prediction, options), POINT, header, used)
    size = message.height * message.row_step
    if len(message.data) != size:
        del message.data[:]
        append_zeros(message.data, size)
    # Filled in place: another pass over its megabytes would take half as long again.
    fill_cloud(prediction, intrinsics, options, message.data)
    return message


def obstacles_message(prediction: Prediction, intrinsics: np.ndarray, settings: Settings,
                      names: tuple[str, ...], header, base: Plane | None,
                      last_floor: Plane | None,
                      used: PointCloud2 | None = None) -> tuple[PointCloud2, Plane | None]:
    """
    Fill `~/obstacles`, as `points_message` does.

    :param base: the plane through the robot's base, of which TF knows the direction, or None.
    :param last_floor: the floor of an earlier frame, for one that shows too little floor.
    :returns: the message, and the floor that it was made with.
    """
    stride = settings.obstacles_stride
    depth, normal, label = every_nth(
        stride, prediction.depth, prediction.normal, prediction.label)
    if normal is not None:
        depth = leave_out_grazing(
            depth, normal, intrinsics, settings.points_max_edge_angle, stride)
    if label is None:
        label = np.full(depth.shape, UNLABELLED, np.uint8)
    points = back_project(depth, intrinsics, stride)
    classes = _classes(settings, names)
    is_floor, is_ceiling = look_up(classes.floor, label), look_up(classes.ceiling, label)
    up = None if base is None else base.normal
    floor = find_floor(points, is_floor, up)
    if floor is None and normal is not None:
        floor = find_level_floor(points, look_up(classes.floor_or_none, label), normal, up)
    floor = floor or base or last_floor
    found = find_obstacles(
        points, is_floor, is_ceiling, normal, floor, settings.obstacles_min_height)
    thinned = np.ascontiguousarray(thin(points, found, settings.obstacles_voxel_size))
    message = cloud_message((len(thinned),), _XYZ, header, used)
    del message.data[:]
    append_bytes(message.data, thinned)
    return message, floor


def cloud_message(shape: tuple[int, ...], point: np.dtype, header,
                  used: PointCloud2 | None = None) -> PointCloud2:
    """
    Return a sensor_msgs/PointCloud2 without padding between rows, its `data` yet to be filled.

    :param shape: (H, W), organised, where some points may be NaN, or (N,), all of them known.
    :param point: structured, of float32 and uint8 fields.
    :param used: an earlier message of such points, to be used again; it still has its data.
    """
    message = used
    if message is None:
        message = PointCloud2(is_bigendian=False, is_dense=len(shape) == 1,
                              point_step=point.itemsize, fields=_fields(point))
    message.header = header
    message.height, message.width = shape if len(shape) == 2 else (1, *shape)
    message.row_step = message.point_step * message.width
    return message


@functools.cache
def _fields(point: np.dtype) -> list[PointField]:
    return [PointField(name=name, offset=offset, datatype=_DATATYPES[kind.str], count=1)
            for name, (kind, offset, *_) in point.fields.items()]
