# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The plane of the robot's base, as TF gives it."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from mtan_perception.node.gravity import plane_of


def test_the_floor_lies_below_a_camera_that_looks_down():
    """The base's x axis is forward; the camera is 0.8 m above it, tilted down by 30 degrees."""
    level, half = np.array([0.5, -0.5, 0.5, 0.5]), np.radians(30) / 2
    # A level camera's axes seen from the base, then the tilt about the camera's x axis.
    (x, y, z, w), (s, c) = level, (np.sin(half), np.cos(half))
    q = c * x + s * w, c * y - s * z, c * z + s * y, c * w - s * x
    up = np.array([0, -np.cos(np.radians(30)), -np.sin(np.radians(30))])
    forward = np.array([0, up[2], -up[1]])
    base = -0.8 * up - 0.3 * forward + (0.1, 0, 0)
    plane = plane_of(SimpleNamespace(
        rotation=SimpleNamespace(**dict(zip('xyzw', q, strict=True))),
        translation=SimpleNamespace(**dict(zip('xyz', base, strict=True)))))
    np.testing.assert_allclose(plane.normal, up, atol=1e-12)
    points = np.array([2 * forward - 0.8 * up, 2 * forward - 0.3 * up]).T
    np.testing.assert_allclose(plane.heights(points), [0, 0.5], atol=1e-12)
