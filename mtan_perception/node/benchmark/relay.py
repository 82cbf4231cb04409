# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
What rclpy and DDS cost by themselves: a node that answers an image with given messages.

It stands in for mtan_node in ``mtan benchmark --node``: the same topics and types, as many bytes,
and no work.
"""

from pathlib import Path
import sys

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from mtan_perception.node.image_codec import append_bytes
from mtan_perception.node.outputs import CAMERA_INFO_TASKS, IMAGE_OUTPUTS
from mtan_perception.node.process import begin, leave, spin

RELAY = 'relay'
"""The node's name."""
OUTPUT_TYPES = {
    **{f'{task}/camera_info': CameraInfo for task in CAMERA_INFO_TASKS},
    **dict.fromkeys(IMAGE_OUTPUTS, Image), 'points': PointCloud2, 'obstacles': PointCloud2}
"""Of every topic on which mtan_node answers each frame, in its order."""


def save_answer(folder: Path, size: tuple[int, int], answer: dict) -> None:
    """Write the messages, by topic, that an image of `size` (height, width) was answered with."""
    for topic, message in answer.items():
        path = _answer_folder(folder, size) / topic
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(serialize_message(message))


def _load_answer(folder: Path, size: tuple[int, int]) -> dict:
    folder = _answer_folder(folder, size)
    return {topic: deserialize_message((folder / topic).read_bytes(), message_type)
            for topic, message_type in OUTPUT_TYPES.items() if (folder / topic).is_file()}


def _answer_folder(folder: Path, size: tuple[int, int]) -> Path:
    return folder / f'{size[0]}x{size[1]}'


class Relay(Node):
    """Answers each image, under its header, on those of the topics that somebody reads."""

    def __init__(self, folder: Path):
        """Subscribe; `folder` has an answer for each size of image that will come."""
        super().__init__(RELAY)
        self._folder = folder
        self._answers: dict[tuple[int, int], list] = {}
        self._topics = {
            topic: self.create_publisher(
                message_type, f'~/{topic}',
                QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
            for topic, message_type in OUTPUT_TYPES.items()}
        newest = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability)
        self.create_subscription(Image, 'image', self._on_image, newest)
        self.create_subscription(
            CameraInfo, 'camera_info', lambda message: None, qos_profile_sensor_data)

    def close(self) -> None:
        """Do nothing: there is no thread to end."""

    def _on_image(self, message: Image) -> None:
        size = message.height, message.width
        if size not in self._answers:
            self._answers[size] = [
                (self._topics[topic], _maker(template))
                for topic, template in _load_answer(self._folder, size).items()]
        for publisher, make in self._answers[size]:
            if publisher.get_subscription_count():
                publisher.publish(make(message.header))


def _maker(template):
    """Return a function (header) -> a message like `template`, its data filled anew."""
    fields = {name: getattr(template, name) for name in template.get_fields_and_field_types()}
    del fields['header']
    if 'data' not in fields:
        return lambda header: type(template)(header=header, **fields)
    view = memoryview(fields.pop('data'))

    def make(header):
        message = type(template)(header=header, **fields)
        append_bytes(message.data, view)
        return message
    return make


def main() -> None:
    """Run the relay on the folder that the last argument names, until SIGINT or SIGTERM."""
    begin(sys.argv)
    relay = Relay(Path(sys.argv[-1]))
    spin(relay)
    leave(relay)


if __name__ == '__main__':
    main()
