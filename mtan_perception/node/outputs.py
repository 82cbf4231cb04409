# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The output topics: one table, and publishers that do no work without a subscriber."""

from collections.abc import Callable
import copy
from typing import NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image

from mtan_perception.geometry import Fit, scale_intrinsics
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


class Outputs:
    """The publishers of every output topic."""

    def __init__(self, node: LifecycleNode):
        """Create the publishers; reliable ones, which match every subscriber (REP 2003)."""
        def publisher(message_type: type, topic: str):
            return node.create_lifecycle_publisher(
                message_type, f'~/{topic}',
                QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=QoSOverridingOptions.with_default_policies())

        self._images = {topic: publisher(Image, topic) for topic in IMAGE_OUTPUTS}
        self._camera_infos = [
            publisher(CameraInfo, f'{task}/camera_info') for task in CAMERA_INFO_TASKS]

    def wanted_tasks(self) -> set[str]:
        """Name the tasks of which somebody reads an image."""
        return {
            IMAGE_OUTPUTS[topic].task for topic, publisher in self._images.items()
            if publisher.get_subscription_count()}

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
                publisher.publish(encode_image(image, encoding, header))

    def publish_camera_info(self, header, camera_info: CameraInfo, fit: Fit) -> None:
        """Publish the camera's intrinsics at the size of the outputs, under the input's header."""
        readers = [p for p in self._camera_infos if p.get_subscription_count()]
        if readers:
            message = scale_camera_info(camera_info, fit)
            message.header = header
            for publisher in readers:
                publisher.publish(message)


def scale_camera_info(camera_info: CameraInfo, fit: Fit) -> CameraInfo:
    """
    Scale K, P, the region of interest and the size, as image_proc's resize node does.

    A P that is all zeros, as drivers leave it, is filled from K: depth_image_proc and RViz read P.
    Distortion and rectification do not depend on the scale.

    :param fit: of the camera's image into the network's input.
    """
    scaled = copy.deepcopy(camera_info)
    scaled.height, scaled.width = fit.height, fit.width
    k = scale_intrinsics(np.reshape(camera_info.k, (3, 3)), fit.scale)
    p = np.reshape(camera_info.p, (3, 4)).copy()
    if p.any():
        p[:2] *= fit.scale
    else:
        p[:, :3] = k
    scaled.k, scaled.p = k.ravel(), p.ravel()
    roi = scaled.roi
    for name in ('x_offset', 'y_offset', 'height', 'width'):
        setattr(roi, name, round(getattr(roi, name) * fit.scale))
    return scaled


def camera_info_fault(camera_info: CameraInfo, image_size: tuple[int, int]) -> str | None:
    """
    Say why a CameraInfo does not serve for an image of `image_size` (height, width).

    :returns: what was found and the remedy, or None where it serves.
    """
    if not (camera_info.k[0] > 0 and camera_info.k[4] > 0):
        return (
            f'focal lengths in K are {camera_info.k[0]:g} and {camera_info.k[4]:g}; '
            'calibrate the camera, or have its driver publish the calibration')
    if (camera_info.height, camera_info.width) != image_size:
        return (
            f'size {camera_info.width}×{camera_info.height} differs from the image, '
            f'{image_size[1]}×{image_size[0]}; publish the CameraInfo of this image')
    return None
