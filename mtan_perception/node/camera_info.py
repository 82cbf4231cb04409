# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node reads from a CameraInfo, and how it is scaled to the outputs."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from mtan_perception.geometry import Fit, scale_intrinsics


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


def scale_camera_info(camera_info: CameraInfo, fit: Fit) -> CameraInfo:
    """
    Scale K, P, the region of interest and the size, as image_proc's resize node does.

    A P that is all zeros is filled from K, for those that read P. Distortion and rectification do
    not depend on the scale.

    :param fit: of the camera's image into the network's input.
    """
    # One by one: copy.deepcopy would take twice as long.
    scaled = CameraInfo(**{name: getattr(camera_info, name)
                           for name in camera_info.get_fields_and_field_types()})
    scaled.height, scaled.width = fit.height, fit.width
    k = scale_intrinsics(np.reshape(camera_info.k, (3, 3)), fit.scale)
    p = np.reshape(camera_info.p, (3, 4)).copy()
    if p.any():
        p[:2] *= fit.scale
    else:
        p[:, :3] = k
    scaled.k, scaled.p = k.ravel(), p.ravel()
    roi = camera_info.roi
    scaled.roi = RegionOfInterest(do_rectify=roi.do_rectify, **{
        name: min(round(getattr(roi, name) * fit.scale), limit)
        for name, limit in (('x_offset', fit.width), ('y_offset', fit.height),
                            ('width', fit.width), ('height', fit.height))})
    return scaled


def camera_info_fault(camera_info: CameraInfo, image_size: tuple[int, int]) -> str | None:
    """
    Say why a CameraInfo does not serve for an image of `image_size` (height, width).

    :returns: what was found and the remedy, or None where it serves.
    """
    remedy = 'calibrate the camera, or have its driver publish the calibration'
    for name, matrix, columns in (('K', camera_info.k, 3), ('P', camera_info.p, 4)):
        if name == 'P' and not np.any(matrix):
            continue
        (fx, _, cx), (_, fy, cy) = (matrix[row * columns:][:3] for row in range(2))
        if not (0 < fx < np.inf and 0 < fy < np.inf):
            return f'focal lengths in {name} are {fx:g} and {fy:g}; {remedy}'
        if not np.isfinite((cx, cy)).all():
            return f'the principal point in {name} is ({cx:g}, {cy:g}); {remedy}'
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
