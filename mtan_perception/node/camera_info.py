# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node reads from a CameraInfo, and how it is scaled to the outputs."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from mtan_perception.geometry import Fit, scale_intrinsics

# No camera's focal length is so many times its image's side or so small a part of it.
_IMPLAUSIBLE = 1e4


class Calibration(NamedTuple):
    """What a CameraInfo says of the outputs' images."""

    camera_info: CameraInfo
    """At the size of the outputs."""
    intrinsics: np.ndarray
    """(3, 3), of the same size."""
    focal_length: float
    """In pixels of the camera's image."""

    @classmethod
    def of(cls, camera_info: CameraInfo, fit: Fit) -> 'Calibration':
        """Take it from a CameraInfo that serves; `fit` is that of the camera's image."""
        scaled = scale_camera_info(camera_info, fit)
        return cls(scaled, projection(scaled), float(projection(camera_info)[0, 0]))


def identity(camera_info: CameraInfo) -> Hashable:
    """Return what two messages have in common that differ by no more than their header."""
    roi = camera_info.roi
    return (
        camera_info.height, camera_info.width, camera_info.distortion_model,
        *(values.tobytes() for values in (
            camera_info.d, camera_info.k, camera_info.r, camera_info.p)),
        camera_info.binning_x, camera_info.binning_y,
        roi.x_offset, roi.y_offset, roi.height, roi.width, roi.do_rectify)


def projection(camera_info: CameraInfo) -> np.ndarray:
    """
    Return (3, 3) intrinsics of the rectified image: P, as depth_image_proc and RViz read it.

    A P that is all zeros, as drivers leave it, stands for K.
    """
    p = np.reshape(camera_info.p, (3, 4))
    return p[:, :3].copy() if p.any() else np.reshape(camera_info.k, (3, 3)).copy()


def of_image(camera_info: CameraInfo, size: tuple[int, int]) -> CameraInfo:
    """
    Return the CameraInfo of the image itself, where that is not the whole of the sensor's.

    A camera that sends a region of interest, or joins its pixels (binning), says so in a
    CameraInfo that else is of the full resolution: see sensor_msgs/CameraInfo, and
    image_geometry's PinholeCameraModel, which this follows.

    :param size: (height, width) of the image; one that neither explains leaves all as it is.
    """
    roi = camera_info.roi
    binning = max(camera_info.binning_x, 1), max(camera_info.binning_y, 1)
    width = (roi.width or camera_info.width) // binning[0]
    height = (roi.height or camera_info.height) // binning[1]
    if (height, width) != size or size == (camera_info.height, camera_info.width):
        return camera_info
    k, p = np.reshape(camera_info.k, (3, 3)).copy(), np.reshape(camera_info.p, (3, 4)).copy()
    for matrix in (k, p):
        if matrix.any():  # else P stands for K
            matrix[:2, 2] -= roi.x_offset, roi.y_offset
            matrix[:2] /= np.reshape(binning, (2, 1))
    return _with(camera_info, height=height, width=width, k=k.ravel(), p=p.ravel(),
                 binning_x=0, binning_y=0, roi=RegionOfInterest(do_rectify=roi.do_rectify))


def _with(camera_info: CameraInfo, **fields) -> CameraInfo:
    """Return a copy with other values for some fields."""
    # Field by field: copy.deepcopy would take twice as long.
    return CameraInfo(**{name: getattr(camera_info, name)
                         for name in camera_info.get_fields_and_field_types()} | fields)


def scale_camera_info(camera_info: CameraInfo, fit: Fit) -> CameraInfo:
    """
    Scale K, P, the region of interest and the size, as image_proc's resize node does.

    A P that is all zeros is filled from K, for those that read P. Distortion and rectification do
    not depend on the scale.

    :param fit: of the camera's image into the network's input.
    """
    k = scale_intrinsics(np.reshape(camera_info.k, (3, 3)), fit.scale)
    p = np.reshape(camera_info.p, (3, 4)).copy()
    if p.any():
        p[:2] *= fit.scale
    else:
        p[:, :3] = k
    roi = camera_info.roi
    return _with(camera_info, height=fit.height, width=fit.width, k=k.ravel(), p=p.ravel(),
                 roi=RegionOfInterest(do_rectify=roi.do_rectify, **{
                     name: min(round(getattr(roi, name) * fit.scale), limit)
                     for name, limit in (('x_offset', fit.width), ('y_offset', fit.height),
                                         ('width', fit.width), ('height', fit.height))}))


def camera_info_fault(camera_info: CameraInfo, image_size: tuple[int, int]) -> str | None:
    """
    Say why a CameraInfo does not serve for an image of `image_size` (height, width).

    :returns: what was found and the remedy, or None where it serves.
    """
    remedy = 'calibrate the camera, or have its driver publish the calibration'
    side = max(image_size)
    for name, matrix, columns in (('K', camera_info.k, 3), ('P', camera_info.p, 4)):
        if name == 'P' and not np.any(matrix):
            continue
        (fx, _, cx), (_, fy, cy) = (matrix[row * columns:][:3] for row in range(2))
        if not all(side / _IMPLAUSIBLE < f < side * _IMPLAUSIBLE for f in (fx, fy)):
            return f'focal lengths in {name} are {fx:g} and {fy:g}; {remedy}'
        if not all(abs(c) < side * _IMPLAUSIBLE for c in (cx, cy)):
            return f'the principal point in {name} is ({cx:g}, {cy:g}); {remedy}'
        if not np.isfinite(matrix).all():
            return f'{name} has values that are no numbers, {matrix.tolist()}; {remedy}'
    if (camera_info.height, camera_info.width) != image_size:
        return (
            f'size {camera_info.width}×{camera_info.height} differs from the image, '
            f'{image_size[1]}×{image_size[0]}; publish the CameraInfo of this image')
    return None


def is_distorted(camera_info: CameraInfo) -> bool:
    """Tell whether the camera's own image, before rectification, is distorted."""
    return any(camera_info.d)


def describe(camera_info: CameraInfo) -> str:
    """Name what the outputs depend on: size and focal length."""
    return (f'{camera_info.width}×{camera_info.height} with a focal length of '
            f'{projection(camera_info)[0, 0]:g}')
