# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Which way is up for a camera, by TF."""

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from mtan_perception.node.obstacles import Plane

try:
    import tf2_ros
except ModuleNotFoundError:  # It comes with a ROS installation, not with wheels.
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
            return None, ('tf2_ros is not installed, so up is fitted to the floor in view; '
                          "install it, or set 'obstacles.base_frame' to ''")
        if self._buffer is None:
            self._buffer = tf2_ros.Buffer()
            # By the executor: a subscription is not to be made while it waits on the others.
            self._node.executor.create_task(self._listen)
        try:
            transform, late = self._buffer.lookup_transform(
                camera_frame, base_frame, Time.from_msg(stamp)), None
        except tf2_ros.TransformException as error:
            late = error
        if late is not None:
            try:
                transform = self._buffer.lookup_transform(camera_frame, base_frame, Time())
            except tf2_ros.TransformException as error:
                return None, (
                    f"there is no transform from '{camera_frame}' to '{base_frame}', so up is "
                    f'fitted to the floor in view ({error}); publish it, for example with '
                    "tf2_ros static_transform_publisher, or set 'obstacles.base_frame'")
        plane = _plane(transform.transform)
        if late is None:
            return plane, None
        return plane, (f"the transform from '{camera_frame}' to '{base_frame}' is not there at "
                       f'the stamp of the image, so the latest is used ({late})')

    def _listen(self) -> None:
        self._listener = tf2_ros.TransformListener(self._buffer, self._node)


def _plane(transform) -> Plane:
    """Return the base's plane from a geometry_msgs/Transform of the base in the camera's frame."""
    q, t = transform.rotation, transform.translation
    # The third column of the rotation matrix: where the base's z axis points.
    normal = np.array([2 * (q.x * q.z + q.w * q.y), 2 * (q.y * q.z - q.w * q.x),
                       1 - 2 * (q.x * q.x + q.y * q.y)])
    return Plane(normal, float(normal @ (t.x, t.y, t.z)))
