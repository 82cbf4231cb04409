# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""CameraInfo: what makes two messages the same calibration, and what one says of the outputs."""

import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='the node needs the ROS message packages')

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from mtan_perception.geometry import fit_image
from mtan_perception.node.camera_info import Calibration, identity

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
