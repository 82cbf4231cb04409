# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Which floor the obstacles are found with: a level camera 0.8 m above it, before a wall."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from std_msgs.msg import Header

from mtan_perception.inference import Prediction
from mtan_perception.labels import NYUV2_13
from mtan_perception.node.cloud_outputs import obstacles_message
from mtan_perception.node.obstacles import Plane
from mtan_perception.node.parameters import default_settings

INTRINSICS = np.array([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]])
UP = np.array([0.0, -1.0, 0.0])
NAMES = NYUV2_13.names


def obstacles(wall: float, base=None, last_floor=None, **replaced):
    """Return y of the obstacles before a wall at so many metres, and the floor."""
    down = np.maximum(np.arange(60)[:, None] - 30, 1e-6) / 60
    depth = np.minimum(0.8 / down, wall).repeat(80, axis=1).astype(np.float32)
    is_floor = depth < wall
    normal = np.where(is_floor[..., None], UP, (0, 0, -1)).astype(np.float32)
    label = np.where(is_floor, NAMES.index('floor'), NAMES.index('wall')).astype(np.uint8)
    prediction = Prediction(**{
        'image': np.zeros((60, 80, 3), np.uint8), 'scale': 1.0, 'label': label,
        'confidence': label, 'depth': depth, 'normal': normal} | replaced)
    message, floor = obstacles_message(
        prediction, INTRINSICS, default_settings(), NAMES, Header(), base, last_floor)
    return np.frombuffer(message.data, np.float32).reshape(-1, 3)[:, 1], floor


@pytest.mark.parametrize('replaced', [{}, {'label': None}, {'normal': None}], ids=str)
def test_the_floor_in_view_is_found_whatever_task_is_off(replaced):
    y, floor = obstacles(4.1, **replaced)
    np.testing.assert_allclose(floor.normal, UP, atol=1e-3)
    assert floor.offset == pytest.approx(-0.8, abs=1e-3)
    assert y.max() < 0.8 - 0.04 and len(y) > 100


def test_without_a_floor_in_view_the_base_is_the_floor_and_then_the_last_one():
    """So that what is below it, as a step down is, counts as floor by its height."""
    base, last = Plane(UP, -0.7), Plane(UP, -0.6)
    nothing = {'label': np.full((60, 80), 255, np.uint8), 'normal': None}
    assert obstacles(1.2, base, last, **nothing)[1] is base
    assert obstacles(1.2, None, last, **nothing)[1] is last
    assert obstacles(1.2, **nothing)[1] is None
    assert obstacles(4.1, base, last)[1].offset == pytest.approx(-0.8, abs=1e-3)
