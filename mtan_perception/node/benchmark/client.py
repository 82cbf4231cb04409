# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A camera and a reader in one: sends images one at a time, and times what answers them."""

from collections.abc import Iterable, Sequence
import time
from typing import NoReturn

from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mtan_perception.node.benchmark.relay import OUTPUT_TYPES
from mtan_perception.node.child_process import ChildProcess
from mtan_perception.node.diagnostics import read_stages

START_TIMEOUT = 120.0
"""How long a process may take to subscribe, in seconds: torch loads slowly at first."""
ANSWER_TIMEOUT = 20.0
"""How long an answer may take, in seconds, before another image is sent."""
FIRST_TIMEOUT = 5.0
"""The same for the first images: outputs are lost until the processes know of each other."""
ATTEMPTS = 4
_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class NodeBenchmarkError(ValueError):
    """A process did not start or did not answer; the message has the last lines of its log."""


class Client:
    """Sends images to mtan_node or to the relay, one at a time, and waits for what it answers."""

    def __init__(self, server: str, child: ChildProcess, context: Context) -> None:
        """
        Wait until the process has subscribed to the images.

        :param server: the node's name, which stands before its topics.
        :raises NodeBenchmarkError: if it ends, fails or takes too long.
        """
        self.answer: dict = {}
        """The messages of the latest answer, by topic."""
        self.stamp = ''
        """The stamp of the latest image, as the log has it."""
        self._server, self._child = server, child
        self._node = Node(f'client_of_{server}', context=context, enable_rosout=False,
                          start_parameter_services=False)
        self._images = self._node.create_publisher(Image, f'/{server}/image', _QOS)
        self._camera_infos = self._node.create_publisher(
            CameraInfo, f'/{server}/camera_info', _QOS)
        self._topics: list[str] = []
        self._is_known = False
        """Whether all topics have answered once."""
        self._waiting: set[str] = set()
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self._wait_for_subscription()

    def close(self) -> None:
        """Unsubscribe from everything."""
        self._executor.shutdown()
        self._node.destroy_node()

    def listen(self, topics: Iterable[str]) -> None:
        """Subscribe to those of the topics that are not subscribed to yet."""
        for topic in topics:
            if topic not in self._topics:
                self._topics.append(topic)
                self._node.create_subscription(
                    OUTPUT_TYPES[topic], f'/{self._server}/{topic}',
                    lambda message, topic=topic: self._on_output(topic, message), _QOS)
                self._is_known = False

    def warm_up(self, image: Image, camera_info: CameraInfo, answers: int,
                seconds: float = 0.0) -> None:
        """Ask at least so many times and for at least so many seconds."""
        end = time.monotonic() + seconds
        while answers > 0 or time.monotonic() < end:
            self.ask(image, camera_info)
            answers -= 1

    def ask(self, image: Image, camera_info: CameraInfo) -> float:
        """
        Return the seconds from publishing an image to the arrival of the last output.

        :raises NodeBenchmarkError: if the process ends, or leaves `ATTEMPTS` images unanswered.
        """
        for _ in range(ATTEMPTS):
            seconds = self._exchange(image, camera_info)
            if seconds is not None:
                self._is_known = True
                return seconds
        topics = ', '.join(f'/{self._server}/{topic}' for topic in sorted(self._waiting))
        self._fail(f'answered none of {ATTEMPTS} images on {topics}')

    def stages(self, stamps: Sequence[str]) -> list[dict[str, float]]:
        """
        Return the seconds by stage that mtan_node has logged for the images of these stamps.

        :raises NodeBenchmarkError: if its log does not tell.
        """
        self._child.wait_for_line(stamps[-1], 5.0)
        logged = dict(filter(None, map(read_stages, list(self._child.lines))))
        if not logged.keys() >= set(stamps):
            self._fail('has not logged what its stages took')
        return [logged[stamp] for stamp in stamps]

    def _exchange(self, image: Image, camera_info: CameraInfo) -> float | None:
        """Return the seconds to the answer, None where none came in time."""
        # What has come late belongs to another stamp.
        header = Header(frame_id='camera', stamp=self._node.get_clock().now().to_msg())
        self.stamp = f'{header.stamp.sec}.{header.stamp.nanosec:09d}'
        image.header = camera_info.header = self._header = header
        self._camera_infos.publish(camera_info)
        self._waiting = set(self._topics)
        timeout = ANSWER_TIMEOUT if self._is_known else FIRST_TIMEOUT
        start = time.perf_counter()
        self._images.publish(image)
        while self._waiting:
            self._executor.spin_once(timeout_sec=0.5)
            if time.perf_counter() - start > 1.0:
                self._check_child()
            if self._waiting and time.perf_counter() - start > timeout:
                return None
        return self._last - start

    def _on_output(self, topic: str, message) -> None:
        if topic in self._waiting and message.header.stamp == self._header.stamp:
            self._last = time.perf_counter()
            self._waiting.discard(topic)
            self.answer[topic] = message

    def _wait_for_subscription(self) -> None:
        end = time.monotonic() + START_TIMEOUT
        while not self._images.get_subscription_count():
            self._check_child()
            if time.monotonic() > end:
                self._fail(f'has not subscribed to /{self._server}/image in {START_TIMEOUT:g} s')
            self._executor.spin_once(timeout_sec=0.05)

    def _check_child(self) -> None:
        failure = self._child.failure()
        if failure is not None:
            raise NodeBenchmarkError(failure)

    def _fail(self, what: str) -> NoReturn:
        raise NodeBenchmarkError(
            f'{self._child.name} {what}; its last lines:\n{self._child.last_lines()}')
