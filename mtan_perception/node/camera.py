# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""One camera of the node: its input topics, its output topics, and what is counted of it."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import time
from typing import NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.logging import LoggingSeverity
from rclpy.qos import qos_profile_sensor_data, QoSPolicyKind, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from mtan_perception.geometry import fit_image
from mtan_perception.inference import Prediction
from mtan_perception.labels import LabelSet
from mtan_perception.node import programs
from mtan_perception.node.camera_info import (
    Calibration,
    camera_info_fault,
    describe,
    identity,
    is_distorted,
    of_image,
)
from mtan_perception.node.cloud_outputs import obstacles_message, points_message
from mtan_perception.node.diagnostics import describe_stages, Statistics
from mtan_perception.node.gravity import Gravity
from mtan_perception.node.image_codec import decode_compressed, decode_image, ImageError
from mtan_perception.node.obstacles import Plane
from mtan_perception.node.outputs import CLOUD_TASKS, Outputs
from mtan_perception.node.parameters import Settings
from mtan_perception.tasks import DEPTH

SILENCE = 5.0
"""Seconds without an image after which somebody should know."""
_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
SETTLING = 1.0
"""For so many seconds after its start nothing that has yet to come is missed."""
# Its durability, too: some drivers publish it once, for whoever comes later.
_OVERRIDES_OF_CAMERA_INFO = QoSOverridingOptions(
    (*QoSOverridingOptions.with_default_policies().policy_kinds, QoSPolicyKind.DURABILITY))


class Frame(NamedTuple):
    """An image message of a camera, and when it came."""

    camera: 'Camera'
    message: Image | CompressedImage
    arrival: float
    """In seconds of the monotonic clock."""
    activation: int
    """The camera's at that time: a frame of an earlier one is not published."""


@dataclass(frozen=True)
class Shot:
    """A decoded frame and what its outputs are made from."""

    frame: Frame
    image: np.ndarray
    tasks: frozenset[str]
    """Those of which something is to be published."""
    has_clouds: bool
    """Whether clouds are among that: what they need has run then."""
    calibration: Calibration | None
    """None where no CameraInfo serves."""
    stages: dict[str, float]

    @property
    def camera(self) -> 'Camera':
        """Return whose it is."""
        return self.frame.camera

    @property
    def header(self):
        """Return the header for every output: the input's."""
        return self.frame.message.header

    @property
    def focal_length(self) -> float | None:
        """Return the camera's, in pixels of the image; None where it is not known."""
        return self.calibration.focal_length if self.calibration else None


class Camera:
    """The topics of one camera."""

    def __init__(self, node: LifecycleNode, name: str, offer: Callable[[Frame, str], None],
                 gravity: Gravity):
        """
        Create the publishers.

        :param name: what stands before the topics; empty for the only camera.
        :param offer: is given each frame that comes, and the name.
        """
        self.name = name
        self.statistics = Statistics()
        self.outputs = Outputs(node, name)
        self.image_topic = ''
        """The topic of the images; empty before the first activation."""
        self._node, self._offer, self._gravity = node, offer, gravity
        self._subscriptions: list = []
        self._activation = 0
        self._forget()

    def _forget(self) -> None:
        """Start anew: nothing of an earlier activation counts."""
        self._camera_info: CameraInfo | None = None
        self._used_camera_info: CameraInfo | None = None
        self._calibration: tuple[Hashable, Calibration] | None = None
        self._frame_id: str | None = None
        self._floor: Plane | None = None
        self._points: PointCloud2 | None = None
        self._obstacles: PointCloud2 | None = None

    # -- Inputs ------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """Tell whether it is subscribed to."""
        return bool(self._subscriptions)

    def subscribe(self, image_transport: str) -> None:
        """Subscribe to the image, 'raw' or 'compressed', and to its CameraInfo."""
        prefix = f'{self.name}/' if self.name else ''
        # Resolved first, so that remapping `image` carries over to its compressed transport.
        topic = self._node.resolve_topic_name(f'{prefix}image')
        message_type = Image
        self._is_compressed = image_transport == 'compressed'
        if self._is_compressed:
            topic, message_type = f'{topic}/compressed', CompressedImage
        qos = QoSProfile(
            depth=1, reliability=qos_profile_sensor_data.reliability,
            durability=qos_profile_sensor_data.durability)
        # In this order: of what has come together, rclpy takes the first subscription's first. One
        # by one: what the second raises leaves the first to `unsubscribe`.
        for arguments, overrides in (
                ((CameraInfo, f'{prefix}camera_info', self._on_camera_info,
                  qos_profile_sensor_data), _OVERRIDES_OF_CAMERA_INFO),
                ((message_type, topic, self._on_image, qos),
                 QoSOverridingOptions.with_default_policies())):
            self._subscriptions.append(self._node.create_subscription(
                *arguments, qos_overriding_options=overrides))
        self._camera_info_topic, self.image_topic = (
            subscription.topic_name for subscription in self._subscriptions)
        self._subscribed = self._last_image = time.monotonic()
        self._is_silent = False

    def unsubscribe(self) -> None:
        """Unsubscribe from both."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        self._activation += 1
        self.statistics.count_unread()
        self._forget()

    def serves(self, frame: Frame) -> bool:
        """Tell whether a frame is of the present activation."""
        return self.is_active and frame.activation == self._activation

    def _on_image(self, message: Image | CompressedImage) -> None:
        self.statistics.count_received()
        frame = Frame(self, message, time.monotonic(), self._activation)
        self._last_image, self._is_silent = frame.arrival, False
        self._offer(frame, self.name)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    # -- One frame, on the worker ------------------------------------------------------------

    def read(self, frame: Frame, settings: Settings) -> Shot | None:
        """
        Decode a frame, and scale its CameraInfo, which is published where nothing else is read.

        :returns: None where there is nothing to be inferred.
        :raises ImageError: for an image that cannot be decoded.
        """
        if not self.serves(frame):
            return None
        # Asked once: a reader that comes while the network runs gets the next frame.
        tasks, has_clouds = self.outputs.image_tasks(), self.outputs.wants_clouds()
        if not (tasks or has_clouds or self.outputs.wants_camera_info()):
            self.statistics.count_unread()
            return None
        header, start = frame.message.header, time.monotonic()
        compressed = isinstance(frame.message, CompressedImage)
        image = decode_compressed(frame.message) if compressed else decode_image(frame.message)
        stages = {'wait': start - frame.arrival, 'decode': time.monotonic() - start}
        self._check_frame_id(header.frame_id)
        with self._stage('camera_info', stages):
            calibration = self._calibrate(image.shape[:2], settings.input_size)
            has_clouds = has_clouds and self._has_what_clouds_need(calibration, settings.tasks)
            tasks = frozenset(tasks | (CLOUD_TASKS if has_clouds else set())) & set(settings.tasks)
            if not tasks:
                self._publish_camera_info(header, calibration)
                self.statistics.count_unread()
                return None
        return Shot(frame, image, tasks, has_clouds, calibration, stages)

    def publish(self, shot: Shot, prediction: Prediction, settings: Settings,
                labels: LabelSet) -> None:
        """Fill and publish what somebody reads, unless it has been deactivated meanwhile."""
        if not self.serves(shot.frame):
            return
        stages = shot.stages | prediction.timings
        with self._stage('fill', stages):
            # Just before the images: what publishing needs is fetched into the caches once then.
            self._publish_camera_info(shot.header, shot.calibration)
            if prediction.depth is not None and settings.depth_scale != 1:
                prediction.depth *= np.float32(settings.depth_scale)
            self.outputs.publish_images(
                prediction, shot.tasks, shot.header, settings, labels.palette)
        if shot.has_clouds:
            with self._stage('clouds', stages):
                self._publish_clouds(shot, prediction, settings, labels.names)
        latency = time.monotonic() - shot.frame.arrival
        self.statistics.count_published(latency, stages)
        logger = self._node.get_logger()
        if logger.is_enabled_for(LoggingSeverity.DEBUG):
            logger.debug(describe_stages(shot.header.stamp, latency, stages))

    def _publish_camera_info(self, header, calibration: Calibration | None) -> None:
        if calibration is not None:
            self.outputs.publish_camera_info(header, calibration.camera_info)

    @contextmanager
    def _stage(self, name: str, stages: dict[str, float]) -> Iterator[None]:
        """Time what is done inside; what of it is publishing counts as that."""
        start = time.monotonic()
        yield
        publishing = self.outputs.take_publishing_time()
        stages[name] = time.monotonic() - start - publishing
        stages['publish'] = stages.get('publish', 0.0) + publishing

    def _has_what_clouds_need(self, calibration: Calibration | None,
                              tasks: tuple[str, ...]) -> bool:
        """Tell whether clouds can be made; report what is amiss."""
        if DEPTH not in tasks:
            self._report_warning(
                'clouds', "points and obstacles need depth, which parameter 'tasks' leaves out: "
                f'[{", ".join(tasks)}]')
            return False
        if calibration is not None:
            return True
        # One that does not serve has been reported already.
        if self._camera_info is None and time.monotonic() > self._subscribed + SETTLING:
            self._report_warning(
                'clouds', 'points and obstacles need a CameraInfo, and none has come on topic '
                f"'{self._camera_info_topic}'; have the camera's driver publish it, or remap "
                'camera_info')
        return False

    def _publish_clouds(self, shot: Shot, prediction: Prediction, settings: Settings,
                        names: tuple[str, ...]) -> None:
        intrinsics = shot.calibration.intrinsics
        if self.outputs.points.get_subscription_count():
            self._points = points_message(
                prediction, intrinsics, settings, names, shot.header, self._points)
            self.outputs.publish(self.outputs.points, self._points)
        if self.outputs.obstacles.get_subscription_count():
            base = self._base_plane(shot.header, settings)
            self._obstacles, self._floor = obstacles_message(
                prediction, intrinsics, settings, names, shot.header, base, self._floor,
                self._obstacles)
            if self._floor is None:
                self._report_warning(
                    'obstacles', 'no floor is in view and TF does not say where up is, so '
                    'obstacles are told by class alone; show the camera some floor')
            self.outputs.publish(self.outputs.obstacles, self._obstacles)

    def _base_plane(self, header, settings: Settings) -> Plane | None:
        plane, problem = self._gravity.base_plane(
            settings.obstacles_base_frame, header.frame_id, header.stamp)
        if problem and self._gravity.listening_for() > SETTLING:
            self._report_warning('tf', problem)
        return plane

    def _check_frame_id(self, frame_id: str) -> None:
        if not frame_id:
            self._report_warning(
                'frame_id', f"topic '{self.image_topic}': the frame_id is empty, so TF and RViz "
                "cannot place the outputs; set it in the camera's driver")
        elif self._frame_id not in (None, frame_id):
            self._floor = None
            self._report_warning(
                'frame_id', f"topic '{self.image_topic}': the frame_id changed from "
                f"'{self._frame_id}' to '{frame_id}', and the outputs' with it; check that only "
                'one camera publishes there')
        self._frame_id = frame_id or self._frame_id

    def _calibrate(self, image_size: tuple[int, int],
                   input_size: tuple[int, int]) -> Calibration | None:
        """Take over the newest CameraInfo, once for as long as it stays the same."""
        # Once: the executor's thread may replace or forget it meanwhile.
        camera_info = self._camera_info
        if camera_info is None:
            return None
        key = identity(camera_info), image_size, input_size
        known = self._calibration
        if known is not None and known[0] == key:
            return known[1]
        camera_info = of_image(camera_info, image_size)
        if not self._serves(camera_info, image_size):
            return None
        calibration = Calibration.of(camera_info, fit_image(image_size, input_size))
        self._calibration = key, calibration
        return calibration

    def _serves(self, camera_info: CameraInfo, image_size: tuple[int, int]) -> bool:
        """Tell whether a new CameraInfo belongs to images of this size; report what is amiss."""
        topic = f"topic '{self._camera_info_topic}'"
        fault = camera_info_fault(camera_info, image_size)
        if fault:
            self.report_error('camera_info', f'{topic}: {fault}')
            return False
        used, self._used_camera_info = self._used_camera_info, camera_info
        if used is None or not is_distorted(used):
            self._check_rectified(camera_info, topic)
        if used is not None and describe(used) != describe(camera_info):
            self._report_warning(
                'camera_info', f'{topic} changed from {describe(used)} to '
                f'{describe(camera_info)}; the outputs follow')
        return True

    def _check_rectified(self, camera_info: CameraInfo, topic: str) -> None:
        """Say so, once, if the image seems to be the camera's own."""
        # A rectified image comes with the CameraInfo of the distorted one; only its name tells.
        if is_distorted(camera_info) and '_rect' not in self.image_topic:
            self._node.get_logger().warning(
                f"{topic} describes a lens with distortion, and '{self.image_topic}' does not "
                'seem to be rectified: depth, normals and clouds will be bent; run image_proc and '
                'subscribe to its image_rect')

    # -- What goes wrong ---------------------------------------------------------------------

    def report_silence(self) -> None:
        """Warn, once until the next image, where none has come for a while."""
        if not self.is_active or self._is_silent:
            return
        self._is_silent = time.monotonic() > self._last_image + SILENCE
        if self._is_silent:
            types = [publisher.topic_type for publisher in
                     self._node.get_publishers_info_by_topic(self.image_topic)]
            self._report_warning(
                'no image', f"no image has come on topic '{self.image_topic}' for {SILENCE:g} s, "
                f'which has {len(types)} publisher(s); {self._remedy_of_silence(types)}')

    def _remedy_of_silence(self, types: list[str]) -> str:
        """Say what to do; `types` are those of the topic's publishers."""
        name = f'{self.name}/image' if self.name else 'image'
        base = self.image_topic.removesuffix('/compressed')
        if not types and base.endswith('/compressed'):
            return (f"remap {name} to '{base.removesuffix('/compressed')}': image_transport "
                    "'compressed' adds /compressed to it")
        if not types:
            return f'start the camera, or remap {name}'
        if _COMPRESSED in types and not self._is_compressed and base != self.image_topic:
            return (f"they publish {_COMPRESSED}: set parameter 'image_transport' to 'compressed' "
                    f"and remap {name} to '{base}'")
        wanted = _COMPRESSED if self._is_compressed else _IMAGE
        if wanted not in types:
            return f'they publish {", ".join(sorted(set(types)))}, and {wanted} is needed'
        return ('see whether they publish, and whether large images get through: Fast DDS needs '
                'config/fastdds.xml for that, where they come from (docs/topics.md)')

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Count and log what is raised inside; the node goes on."""
        try:
            yield
        except Exception as error:
            self.report_exception(error)

    def report_exception(self, error: Exception) -> None:
        """Count what a frame raised, and log it if that is due."""
        if isinstance(error, ImageError):
            self.report_error('image', f"topic '{self.image_topic}': {error}")
        # Its publishers may be gone while the node ends; that is not worth a word.
        elif not programs.must_end():
            self.report_error('inference', f'{type(error).__name__}: {error}')

    def report_error(self, kind: str, text: str) -> None:
        """Count an error under its kind, and log it if that is due."""
        if self.statistics.count_error(kind, text):
            self._node.get_logger().error(text)

    def _report_warning(self, kind: str, text: str) -> None:
        if self.statistics.count_warning(kind, text):
            self._node.get_logger().warning(text)
