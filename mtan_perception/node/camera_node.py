# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
A ROS camera from what is at hand: a webcam, a video, images, or a synthetic room with its truth.

source -> producer thread prepares the next frame -> publisher thread keeps the pace.
"""

import queue
import sys
import threading
import time

import cv2
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from mtan_perception.node.camera_sources import (
    Calibration,
    Frame,
    intrinsics_from_fov,
    open_source,
    pinhole,
    read_calibration,
    Source,
    SourceError,
    SourceOptions,
    synthetic_threads,
    without_password,
)
from mtan_perception.node.image_codec import append_bytes, encode_image
from mtan_perception.node.process import leave, spin, start

STOP_TIMEOUT = 0.3
"""How long an ending node waits for the frame being prepared, in seconds."""
REPORT_PERIOD = 10.0
"""What is wrong with every frame is logged at most this often, in seconds."""


def _described(description: str, *, within: tuple | None = None, **fields) -> ParameterDescriptor:
    """Describe a parameter that is read once; `within` are its bounds, integers or floats."""
    if within is not None and isinstance(within[0], int):
        fields['integer_range'] = [IntegerRange(from_value=within[0], to_value=within[1], step=1)]
    elif within is not None:
        fields['floating_point_range'] = [
            FloatingPointRange(from_value=within[0], to_value=within[1])]
    return ParameterDescriptor(description=description, read_only=True, **fields)


PARAMETERS = {
    'source': ('synthetic', _described(
        "'synthetic' (a camera moving through random rooms), a camera index, /dev/videoN or "
        'stream URL, or the path of a video, an image or a folder of images',
        dynamic_typing=True)),  # a camera index arrives as an integer: `-p source:=0`
    'rate': (0.0, _described(
        "images a second; 0: the source's own of a video or a webcam, 10 of images, and of "
        'rendered rooms one for each core, at most 5',
        within=(0.0, 240.0))),
    'width': (0, _described(
        "image width in pixels; 0: the source's own (synthetic: 384)", within=(0, 8192))),
    'height': (0, _described(
        "image height in pixels; 0: the source's own (synthetic: 288)", within=(0, 8192))),
    'frame_id': ('camera_optical_frame', _described(
        'optical frame of the camera, in every header')),
    'loop': (True, _described('start again at the end of a video, an image or a folder')),
    'seed': (0, _described('synthetic: number of the first room', within=(0, 2**31 - 1))),
    'room_seconds': (20.0, _described(
        'synthetic: how long the camera stays in a room', within=(0.1, 86400.0))),
    'render_threads': (0, _described(
        'synthetic: processor threads that render; 0: half of the cores', within=(0, 256))),
    'hfov': (60.0, _described(
        'horizontal field of view in degrees, for camera_info without a calibration',
        within=(1.0, 170.0))),
    'camera_info_url': ('', _described(
        "calibration file of the camera, as camera_calibration writes it; '': none")),
    'jpeg_quality': (90, _described('quality of image_raw/compressed', within=(1, 100))),
}
"""Name -> (default, descriptor)."""


class CameraNode(Node):
    """Publishes image_raw, camera_info and, for the synthetic source, truth/*."""

    def __init__(self, **kwargs):
        """
        Declare the parameters, open the source and start to publish.

        :raises SourceError: for a source or a calibration that cannot be used.
        """
        super().__init__('camera', **kwargs)
        for name, (default, descriptor) in PARAMETERS.items():
            self.declare_parameter(name, default, descriptor)
        self.failed = False
        self.finished = threading.Event()
        self._stop = threading.Event()
        url = self._value('camera_info_url')
        self._calibration = read_calibration(url) if url else None
        self._source = self._open_source()
        self._create_publishers()
        # Room for one: while a frame waits for its time, the next one is being made.
        self._prepared: queue.Queue[Frame | None] = queue.Queue(maxsize=1)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (('producer', self._produce), ('publisher', self._publish_all))]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop to publish; a frame being prepared cannot be interrupted and may outlive this."""
        self._stop.set()
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _value(self, name: str):
        return self.get_parameter(name).value

    def _open_source(self) -> Source:
        name = str(self._value('source'))
        options = SourceOptions(**{
            name: self._value(name)
            for name in ('width', 'height', 'rate', 'loop', 'seed', 'room_seconds')})
        source = open_source(name, options, self._stop, self.get_logger().error)
        if name == 'synthetic':
            import torch  # the one source that computes
            torch.set_num_threads(self._value('render_threads') or synthetic_threads())
        pace = f'{source.rate:g} Hz' if source.rate else "the camera's own rate"
        self.get_logger().info(f"source '{without_password(name)}' at {pace}")
        return source

    def _create_publishers(self) -> None:
        def publisher(message_type: type, topic: str):
            return self.create_publisher(
                message_type, topic, QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE),
                qos_overriding_options=QoSOverridingOptions.with_default_policies())

        self._image = publisher(Image, 'image_raw')
        self._compressed = publisher(CompressedImage, 'image_raw/compressed')
        self._camera_info = publisher(CameraInfo, 'camera_info')
        self._truth = {}
        if self._value('source') == 'synthetic':
            self._truth = {
                name: (publisher(Image, f'truth/{name}'), encoding) for name, encoding in
                (('mask', 'mono8'), ('depth', '32FC1'), ('normal', '32FC3'))}

    # -- Threads -----------------------------------------------------------------------------

    def _produce(self) -> None:
        """Take frame after frame from the source, one ahead of what is published."""
        try:
            for frame in self._source.frames:
                if not self._put(frame):
                    return
        except SourceError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f'source: {type(error).__name__}: {error}')
        self._put(None)

    def _put(self, frame: Frame | None) -> bool:
        while not self._stop.is_set():
            try:
                self._prepared.put(frame, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def _publish_all(self) -> None:
        """Publish each prepared frame in its time, until the source or the node ends."""
        try:
            period = 0.0 if self._source.live or not self._source.rate else 1 / self._source.rate
            if not self._source.live and not self._value('loop'):
                self._wait_for_reader()
            pace = Pace(period)
            while (frame := self._get()) is not None:
                if self._stop.wait(pace.wait_time()):
                    return
                self._publish(frame)
                slow = pace.published()
                if slow is not None:
                    self.get_logger().warning(
                        f'the source reaches {slow:.1f} Hz of its {self._source.rate:g}; lower '
                        '`rate`, or `width` and `height`')
            if not self._stop.is_set() and not self.failed:
                self.get_logger().info('the source has ended')
        except Exception as error:
            if not self._stop.is_set():
                self._fail(f'cannot publish: {type(error).__name__}: {error}')
        finally:
            self.finished.set()

    def _wait_for_reader(self) -> None:
        """Wait until somebody reads what comes, none of which comes twice."""
        publishers = [self._image, self._compressed, self._camera_info,
                      *(publisher for publisher, _ in self._truth.values())]

        def is_read() -> bool:
            return any(publisher.get_subscription_count() for publisher in publishers)
        if not is_read():
            self.get_logger().info('waiting for a subscriber: without `loop` no image comes twice')
        while not (is_read() or self._stop.is_set()):
            self._stop.wait(0.05)

    def _get(self) -> Frame | None:
        while not self._stop.is_set():
            try:
                return self._prepared.get(timeout=0.1)
            except queue.Empty:
                pass
        return None

    def _fail(self, text: str) -> None:
        self.failed = True
        self.get_logger().fatal(text)

    # -- Messages ----------------------------------------------------------------------------

    def _publish(self, frame: Frame) -> None:
        header = Header(
            stamp=self.get_clock().now().to_msg(), frame_id=self._value('frame_id'))
        calibration = self._calibration_of(frame)
        if calibration is not None:
            self._camera_info.publish(_camera_info(calibration, header))
        if frame.truth is not None:
            for name, (publisher, encoding) in self._truth.items():
                if publisher.get_subscription_count():
                    publisher.publish(encode_image(getattr(frame.truth, name), encoding, header))
        if self._compressed.get_subscription_count():
            self._compressed.publish(_jpeg(frame, self._value('jpeg_quality'), header))
        if self._image.get_subscription_count():
            self._image.publish(encode_image(frame.image, frame.encoding, header))

    def _calibration_of(self, frame: Frame) -> Calibration | None:
        height, width = frame.image.shape[:2]
        calibration = self._calibration
        if calibration is None:
            intrinsics = frame.intrinsics
            if intrinsics is None:
                intrinsics = intrinsics_from_fov(width, height, self._value('hfov'))
            return pinhole(width, height, intrinsics)
        if (calibration.width, calibration.height) == (width, height):
            return calibration
        self.get_logger().error(
            f"camera_info_url '{self._value('camera_info_url')}' is for {calibration.width}×"
            f'{calibration.height} but the images are {width}×{height}, so camera_info is not '
            'published; set `width` and `height`, or calibrate at this size',
            throttle_duration_sec=REPORT_PERIOD)
        return None


class Pace:
    """
    Keeps a steady rate, and notices once that it cannot be kept.

    :param period: seconds between frames; 0 = as they come.
    """

    WINDOW = 5.0
    """Seconds over which the reached rate is measured."""

    def __init__(self, period: float):
        """Start with a first frame that is due at once."""
        self._period = period
        self._due = 0.0
        self._window_start: float | None = None
        self._count = 0
        self._told = period == 0.0

    def wait_time(self) -> float:
        """Return the seconds until the next frame is due."""
        now = time.monotonic()
        # A late frame moves the schedule: the time lost is not made up in a burst.
        self._due = max(self._due + self._period, now)
        return self._due - now

    def published(self) -> float | None:
        """Count a frame; return the rate in Hz, once, when it stays below 90 % of what is due."""
        now = time.monotonic()
        if self._window_start is None:
            self._window_start = now  # the first frame's making may include loading libraries
            return None
        self._count += 1
        elapsed = now - self._window_start
        if self._told or elapsed < max(self.WINDOW, 5 * self._period):
            return None
        rate = self._count / elapsed
        self._window_start, self._count = now, 0
        self._told = rate < 0.9 / self._period
        return rate if self._told else None


def _camera_info(calibration: Calibration, header: Header) -> CameraInfo:
    return CameraInfo(
        header=header, width=calibration.width, height=calibration.height,
        distortion_model=calibration.distortion_model, d=calibration.d, k=calibration.k,
        r=calibration.r, p=calibration.p)


def _jpeg(frame: Frame, quality: int, header: Header) -> CompressedImage:
    image = frame.image[..., ::-1] if frame.encoding == 'rgb8' else frame.image
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    message = CompressedImage(header=header, format=f'{frame.encoding}; jpeg compressed bgr8')
    append_bytes(message.data, data)
    return message


def main(args: list[str] | None = None) -> int:
    """
    Run the node until its source ends, or SIGINT or SIGTERM; then end the process.

    The exit code is 0, or 1 where the source cannot be used, with the reason in the log or on
    stderr.
    """
    node = start('camera_node', CameraNode, args, PARAMETERS)
    spin(node, node.finished.is_set)
    leave(node, int(node.failed))


if __name__ == '__main__':
    sys.exit(main())
