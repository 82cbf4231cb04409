# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""CameraInfo: what makes two messages the same calibration, and what one says of the outputs."""

import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='the node needs the ROS message packages')

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from mtan_perception.geometry import fit_image
from mtan_perception.node.camera_info import (
    Calibration,
    camera_info_fault,
    identity,
    of_image,
)

K = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]


def camera_info(**fields) -> CameraInfo:
    return CameraInfo(**{'height': 480, 'width': 640, 'k': K, 'd': [0.1, 0.0, 0.0, 0.0, 0.0],
                         'distortion_model': 'plumb_bob', **fields})


def test_the_header_makes_no_other_calibration():
    assert identity(camera_info()) == identity(camera_info(header=Header(frame_id='other')))


@pytest.mark.parametrize('fields', [
    {'height': 481}, {'width': 641}, {'k': [501.0, *K[1:]]}, {'d': [0.2, 0.0, 0.0, 0.0, 0.0]},
    {'r': [1.0] * 9}, {'p': [1.0] * 12}, {'distortion_model': 'equidistant'}, {'binning_x': 2},
    {'binning_y': 2}, {'roi': RegionOfInterest(width=10)}, {'roi': RegionOfInterest(height=10)},
    {'roi': RegionOfInterest(x_offset=1)}, {'roi': RegionOfInterest(y_offset=1)},
    {'roi': RegionOfInterest(do_rectify=True)}], ids=str)
def test_whatever_else_differs_does(fields):
    assert identity(camera_info()) != identity(camera_info(**fields))


def test_every_field_was_thought_of():
    """A field that a later distribution adds must be looked at in `identity`."""
    assert set(CameraInfo.get_fields_and_field_types()) == {
        'header', 'height', 'width', 'distortion_model', 'd', 'k', 'r', 'p', 'binning_x',
        'binning_y', 'roi'}


def test_the_calibration_of_the_outputs():
    """The camera's focal length stays in its own pixels; all else is at the outputs' size."""
    calibration = Calibration.of(camera_info(), fit_image((480, 640), (288, 384)))
    assert calibration.focal_length == 500
    assert (calibration.camera_info.height, calibration.camera_info.width) == (288, 384)
    np.testing.assert_allclose(
        calibration.intrinsics, [[300, 0, 192], [0, 306, 144], [0, 0, 1]])
    np.testing.assert_allclose(np.reshape(calibration.camera_info.p, (3, 4))[:, :3],
                               calibration.intrinsics)


@pytest.mark.parametrize(('fields', 'size', 'k'), [
    ({'binning_x': 2, 'binning_y': 2}, (240, 320), [250, 0, 160, 0, 255, 120, 0, 0, 1]),
    ({'binning_x': 4, 'binning_y': 2}, (240, 160), [125, 0, 80, 0, 255, 120, 0, 0, 1]),
    ({'roi': RegionOfInterest(x_offset=40, y_offset=30, width=200, height=100)}, (100, 200),
     [500, 0, 280, 0, 510, 210, 0, 0, 1]),
    ({'roi': RegionOfInterest(x_offset=40, y_offset=30, width=200, height=100),
      'binning_x': 2, 'binning_y': 2}, (50, 100), [250, 0, 140, 0, 255, 105, 0, 0, 1]),
], ids=['binning', 'unequal binning', 'region', 'region and binning'])
def test_a_part_of_the_sensor(fields, size, k):
    """K, and P with its offset for a stereo camera, as image_geometry gives them."""
    p = np.insert(np.reshape(K, (3, 3)), 3, [-50.0, 0.0, 0.0], axis=1)
    info = of_image(camera_info(p=p.ravel(), **fields), size)
    assert (info.height, info.width) == size
    np.testing.assert_allclose(info.k, k)
    np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], np.reshape(k, (3, 3)))
    assert info.p[3] == -50.0 / (fields.get('binning_x') or 1)
    assert (info.binning_x, info.binning_y, info.roi) == (0, 0, RegionOfInterest())
    assert list(info.d) == [0.1, 0.0, 0.0, 0.0, 0.0]
    # A P of zeros stays one, and what is not calibrated stays so.
    assert not np.any(of_image(camera_info(**fields), size).p)
    assert not np.any(of_image(camera_info(k=np.zeros(9), **fields), size).k)


def test_what_is_of_the_image_or_does_not_explain_its_size_is_left_alone():
    """A region on an image of the full size is a remark; the node reports another size."""
    roi = RegionOfInterest(x_offset=40, y_offset=30, width=200, height=100)
    for fields, size in (({}, (480, 640)), ({'roi': roi}, (480, 640)), ({'roi': roi}, (240, 320)),
                         ({'binning_x': 2, 'binning_y': 2}, (480, 640)), ({}, (240, 320))):
        info = camera_info(**fields)
        assert of_image(info, size) is info


def test_p_goes_before_k_and_is_scaled_with_its_baseline():
    """As of a rectified stereo camera; a region of interest is cut to the outputs' size."""
    p = [490.0, 0.0, 310.0, -49.0, 0.0, 495.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    roi = RegionOfInterest(x_offset=600, y_offset=30, width=40, height=450, do_rectify=True)
    calibration = Calibration.of(camera_info(p=p, roi=roi), fit_image((480, 640), (288, 384)))
    assert calibration.focal_length == 490
    np.testing.assert_allclose(
        calibration.intrinsics, [[294, 0, 186], [0, 297, 138], [0, 0, 1]])
    np.testing.assert_allclose(calibration.camera_info.p[3], -29.4)
    assert calibration.camera_info.roi == RegionOfInterest(
        x_offset=360, y_offset=18, width=24, height=270, do_rectify=True)


@pytest.mark.parametrize(('fields', 'text'), [
    ({}, None), ({'p': [*K[:3], -50.0, *K[3:6], 0.0, *K[6:], 0.0]}, None),
    ({'k': [500.0, 0.0, -900.0, *K[3:]]}, None),  # of a part of the sensor it may lie outside
    ({'k': [500.0, 0.0, 320.0, 0.0, 0.0, *K[5:]]}, 'focal lengths in K are 500 and 0'),
    ({'height': 640, 'width': 480}, 'size 480×640 differs from the image, 640×480')])
def test_what_is_wrong_with_a_calibration(fields, text):
    fault = camera_info_fault(camera_info(**fields), (480, 640))
    assert fault is None if text is None else fault.startswith(text)
