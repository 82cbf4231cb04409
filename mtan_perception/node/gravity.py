# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Which way is up for a camera, by TF."""

import math
import time

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from mtan_perception.node.obstacles import Plane

try:
    import tf2_ros
except ImportError:  # It comes with a ROS installation, not with wheels.
    tf2_ros = None


class Gravity:
    """Looks up the robot's base in TF; it listens from the first look-up on."""

    def __init__(self, node: Node):
        """Remember the node; nothing is subscribed to yet."""
        self._node = node
        self._buffer = None

    def base_plane(self, base_frame: str, camera_frame: str,
                   stamp) -> tuple[Plane | None, str | None]:
        """
        Return the plane through the base's origin across its z axis, in the camera's frame.

        :param stamp: builtin_interfaces/Time of the image.
        :returns: the plane, None where TF does not know it, and what is wrong, None if nothing.
        """
        if not base_frame:
            return None, None
        if tf2_ros is None:
            self._node.get_logger().warning(
                'tf2_ros is not installed, so up is fitted to the floor in view; install it, or '
                "set parameter 'obstacles.base_frame' to an empty text", once=True)
            return None, None
        self._start_to_listen()
        link = f"from '{camera_frame}' to '{base_frame}'"
        plane, late = self._look_up(camera_frame, base_frame, Time.from_msg(stamp))
        if plane is not None:
            return plane, None
        plane, missing = self._look_up(camera_frame, base_frame, Time())
        if plane is not None:
            return plane, (f'the transform {link} is not there at the stamp of the image, so the '
                           f'latest is used ({late})')
        return None, (f'there is no transform {link}, so up is fitted to the floor in view '
                      f'({missing}); publish it, for example with tf2_ros '
                      "static_transform_publisher, or set 'obstacles.base_frame'")

    def listening_for(self) -> float:
        """Return for how many seconds it has listened; for ever where there is no TF."""
        return math.inf if self._buffer is None else time.monotonic() - self._start

    def _start_to_listen(self) -> None:
        if self._buffer is None:
            self._buffer, self._start = tf2_ros.Buffer(), time.monotonic()
            # By the executor: a subscription is not to be made while it waits on the others.
            self._node.executor.create_task(self._listen)

    def _look_up(self, camera_frame: str, base_frame: str,
                 when: Time) -> tuple[Plane | None, Exception | None]:
        try:
            found = self._buffer.lookup_transform(camera_frame, base_frame, when)
        except tf2_ros.TransformException as error:
            return None, error
        return plane_of(found.transform), None

    def _listen(self) -> None:
        self._listener = tf2_ros.TransformListener(self._buffer, self._node)


def plane_of(transform) -> Plane:
    """Return the base's plane from a geometry_msgs/Transform of the base in the camera's frame."""
    q, t = transform.rotation, transform.translation
    # The third column of the rotation matrix: where the base's z axis points.
    normal = np.array([2 * (q.x * q.z + q.w * q.y), 2 * (q.y * q.z - q.w * q.x),
                       1 - 2 * (q.x * q.x + q.y * q.y)])
    return Plane(normal, float(normal @ (t.x, t.y, t.z)))
