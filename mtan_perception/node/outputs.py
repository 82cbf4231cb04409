# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The output topics: one table, and publishers that do no work without a subscriber."""

from collections.abc import Callable
import time
from typing import NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.node import PublisherEventCallbacks  # The module it comes from has two names.
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from mtan_perception.inference import Prediction
from mtan_perception.node.image_codec import encode_image
from mtan_perception.node.parameters import Settings
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.visualization import color_depth, color_normal, overlay


class Output(NamedTuple):
    """An image topic: the task it needs, its encoding, and how it is filled."""

    task: str
    encoding: str
    fill: Callable[[Prediction, Settings, np.ndarray], np.ndarray]


IMAGE_OUTPUTS = {
    'segmentation/mask': Output(SEGMENTATION, 'mono8', lambda p, s, palette: p.label),
    'segmentation/confidence': Output(SEGMENTATION, 'mono8', lambda p, s, palette: p.confidence),
    'segmentation/color': Output(
        SEGMENTATION, 'rgb8',
        lambda p, s, palette: overlay(p.image, p.label, palette, s.overlay_alpha)),
    'depth/image_rect': Output(DEPTH, '32FC1', lambda p, s, palette: p.depth),
    'depth/color': Output(
        DEPTH, 'rgb8', lambda p, s, palette: color_depth(p.depth, s.min_depth, s.max_depth)),
    'normal/image': Output(NORMAL, '32FC3', lambda p, s, palette: p.normal),
    'normal/color': Output(NORMAL, 'rgb8', lambda p, s, palette: color_normal(p.normal)),
}
CAMERA_INFO_TASKS = (SEGMENTATION, DEPTH, NORMAL)
# A cloud has what every task gives; it needs depth, and goes without what is switched off.
CLOUD_TASKS = {SEGMENTATION, DEPTH, NORMAL}


class Outputs:
    """The publishers of one camera's output topics."""

    def __init__(self, node: LifecycleNode, camera: str = ''):
        """
        Create the publishers; reliable ones, which match every subscriber (REP 2003).

        :param camera: its name, which stands before its topics; empty for the only one.
        """
        def publisher(message_type: type, topic: str):
            return create_publisher(node, message_type, f'{camera}/{topic}' if camera else topic)

        self._images = {topic: publisher(Image, topic) for topic in IMAGE_OUTPUTS}
        self._camera_infos = [
            publisher(CameraInfo, f'{task}/camera_info') for task in CAMERA_INFO_TASKS]
        self.points = publisher(PointCloud2, 'points')
        self.obstacles = publisher(PointCloud2, 'obstacles')
        self._used: dict[str, Image] = {}
        """The messages of the frame before, by topic."""
        self._publishing = 0.0

    def publish(self, publisher, message) -> None:
        """Publish with one of these publishers; the time that it takes is added up."""
        start = time.monotonic()
        publisher.publish(message)
        self._publishing += time.monotonic() - start

    def take_publishing_time(self) -> float:
        """Return the seconds that `publish` has taken since the last call."""
        seconds, self._publishing = self._publishing, 0.0
        return seconds

    def wanted_tasks(self) -> set[str]:
        """Name the tasks of which somebody reads an image or a cloud."""
        return set(CLOUD_TASKS) if self.wants_clouds() else self.image_tasks()

    def image_tasks(self) -> set[str]:
        """Name the tasks of which somebody reads an image."""
        return {
            IMAGE_OUTPUTS[topic].task for topic, publisher in self._images.items()
            if publisher.get_subscription_count()}

    def wants_clouds(self) -> bool:
        """Tell whether somebody reads a cloud."""
        return any(p.get_subscription_count() for p in (self.points, self.obstacles))

    def wants_camera_info(self) -> bool:
        """Tell whether somebody reads a CameraInfo."""
        return any(p.get_subscription_count() for p in self._camera_infos)

    def publish_images(
        self, prediction: Prediction, tasks: set[str], header, settings: Settings,
        palette: np.ndarray,
    ) -> None:
        """
        Fill and publish the image topics that somebody reads.

        :param tasks: those that ran; a subscriber may have come to another one since.
        :param header: the input's, for every output.
        :param palette: class colours, uint8, 256×3.
        """
        for topic, publisher in self._images.items():
            task, encoding, fill = IMAGE_OUTPUTS[topic]
            if task in tasks and publisher.get_subscription_count():
                image = fill(prediction, settings, palette)
                message = encode_image(image, encoding, header, self._used.get(topic))
                self._used[topic] = message
                self.publish(publisher, message)

    def publish_camera_info(self, header, camera_info: CameraInfo) -> None:
        """Publish the intrinsics at the size of the outputs, under the input's header."""
        camera_info.header = header
        wanted = [p for p in self._camera_infos if p.get_subscription_count()]
        if wanted:
            message = serialize_message(camera_info)
            for publisher in wanted:
                self.publish(publisher, message)


def create_publisher(node: LifecycleNode, message_type: type, topic: str, latched: bool = False):
    """
    Create a reliable publisher of `~/topic` whose QoS can be overridden by parameters.

    :param latched: whether a late subscriber is given the last message (transient local).
    """
    durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
    return node.create_lifecycle_publisher(
        message_type, f'~/{topic}',
        QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=durability),
        qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        # What they tell, a subscriber that asks for another QoS, that subscriber is told as well;
        # and each time that rclpy waits, for each of them it takes as long as for a subscription.
        event_callbacks=PublisherEventCallbacks(use_default_callbacks=False))
