# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The meaning of the class ids in the mask, as latched topics."""

import json

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import String

from mtan_perception.labels import LabelSet
from mtan_perception.node.outputs import create_publisher

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # It comes with a ROS installation, not with wheels.
    LabelInfo = None


class LabelTopics:
    """Publishers of `label_info`, where vision_msgs is installed, and of `labels`, its JSON."""

    def __init__(self, node: LifecycleNode, prefix: str):
        """Create them under `prefix`, the namespace of the mask."""
        self._node = node
        self._labels = create_publisher(node, String, f'{prefix}/labels', latched=True)
        self._label_info = None
        if LabelInfo is None:
            node.get_logger().info(
                f"vision_msgs is not installed: no '{prefix}/label_info', which Nav2's semantic "
                f"layer needs; '{prefix}/labels' has the same content")
        else:
            self._label_info = create_publisher(
                node, LabelInfo, f'{prefix}/label_info', latched=True)

    def publish(self, labels: LabelSet, threshold: float) -> None:
        """
        Publish the classes; whoever subscribes later is given them, too.

        Id 255, unlabelled, is no class: Nav2 passes over ids that it was not told.

        :param threshold: probability below which a pixel is unlabelled.
        """
        stamp = self._node.get_clock().now().to_msg()
        classes = [{'class_id': index, 'class_name': name, 'color': list(color)}
                   for index, (name, color) in enumerate(zip(labels.names, labels.colors,
                                                             strict=True))]
        self._labels.publish(String(data=json.dumps(
            {'name': labels.name, 'class_map': classes, 'threshold': threshold})))
        if self._label_info is not None:
            message = LabelInfo(threshold=threshold, class_map=[
                VisionClass(class_id=entry['class_id'], class_name=entry['class_name'])
                for entry in classes])
            message.header.stamp = stamp
            self._label_info.publish(message)
