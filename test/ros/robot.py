# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The rest of a robot around mtan_node: a camera, and the hands on the node's services."""

from contextlib import contextmanager
import re
import time

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mtan_perception.node.image_codec import encode_image

MODULE = 'mtan_perception.node.mtan_node'
TRANSITIONS = {'configure': 1, 'cleanup': 2, 'activate': 3, 'deactivate': 4, 'shutdown': 5}
# Half of a 160×120 camera: the node scales by exactly 0.5.
CAMERA_SIZE, OUTPUT_SIZE = (120, 160), (60, 80)


def small(**parameters) -> list[str]:
    """Give the arguments of a node on random weights at a size that a test can wait for."""
    values = {'weights': 'random', 'input_height': 60, 'input_width': 80, **parameters}
    return ['--ros-args', *(word for key, value in values.items()
                            for word in ('-p', f'{key}:={value}'))]


class Robot:
    """
    The rest of the robot: a camera, and the hands on the node's services.

    `camera` is the name before its topics. `image` (random without one), `camera_info` (none
    without one) and `frame_id` are what it sends.
    """

    def __init__(self, node, spin_until, start_process, camera=''):
        self.node, self.spin_until, self.start_process = node, spin_until, start_process
        prefix = f'{camera}/' if camera else ''
        self.status = f'mtan: {camera}: inference' if camera else 'mtan: inference'
        self.images = node.create_publisher(
            Image, f'{prefix}image', QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self.camera_infos = node.create_publisher(CameraInfo, f'{prefix}camera_info', 1)
        self.camera_info = self.image = None
        self.frame_id = 'front_optical'
        self.diagnostics = []
        node.create_subscription(
            DiagnosticArray, '/diagnostics', self.diagnostics.append, 10)
        self.count = 0

    def start(self, *arguments, module=MODULE, env=None, **parameters):
        """Start the node and wait until it is active."""
        child = self.start_process(module, *small(**parameters), *arguments, env=env)
        self.wait_until_active(child)
        return child

    def wait_until_active(self, child):
        publishers = self.images, self.camera_infos
        self.spin_until(
            lambda: all(publisher.get_subscription_count() for publisher in publishers)
            or child.exit_code is not None, 60)
        assert [publisher.get_subscription_count() for publisher in publishers] == [1, 1], (
            child.output)

    def header(self) -> Header:
        """Make a stamp that no clock gives, to recognise it."""
        self.count += 1
        header = Header(frame_id=self.frame_id)
        header.stamp.sec, header.stamp.nanosec = 1000 + self.count, 123456789
        return header

    def send(self, **fields) -> int:
        """
        Publish an image, and the camera_info before it where the robot has one.

        `fields` replace the image's. Returns the seconds of its stamp.
        """
        if self.camera_info is not None:
            self.camera_infos.publish(self.camera_info)
        image = self.image
        if image is None:
            image = np.random.default_rng(self.count).integers(
                0, 256, (*CAMERA_SIZE, 3), np.uint8)
        message = encode_image(image, 'rgb8', self.header())
        for name, value in fields.items():
            setattr(message, name, value)
        self.images.publish(message)
        return message.header.stamp.sec

    def pause(self, seconds: float):
        self.spin_until(lambda: False, seconds)

    def send_until(self, condition, timeout=30.0):
        """Send frames, each when the one before has had a second, until condition() holds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.send()
            if self.spin_until(condition, 1.0):
                return
        raise AssertionError('no answer to good frames')

    def exchange(self, messages: list):
        """Send frames until the answer to one is in `messages`; returns that answer."""
        first = self.count + 1001
        self.send_until(lambda: messages and stamp(messages[-1]) >= first)
        return messages[-1]

    @contextmanager
    def client(self, service_type, name):
        client = self.node.create_client(service_type, name)
        try:
            assert client.wait_for_service(20), f'{name} is not there'
            yield client
        finally:
            self.node.destroy_client(client)

    def call(self, service_type, name, request):
        """
        Return the answer to a request that may be repeated.

        On a busy machine rmw_fastrtps gives up the answer to a client that it has just met.
        """
        futures = []
        with self.client(service_type, name) as client:
            for _ in range(3):
                futures.append(client.call_async(request))
                if self.spin_until(lambda: any(future.done() for future in futures), 20):
                    break
        answers = [future.result() for future in futures if future.done()]
        assert answers, f'{name} does not answer'
        return answers[0]

    def set(self, **values):
        """Set the node's parameters as one; returns the result."""
        parameters = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        return self.call(
            SetParametersAtomically, '/mtan/set_parameters_atomically',
            SetParametersAtomically.Request(parameters=parameters)).result

    @contextmanager
    def request(self, transition: str):
        """
        Yield the future of a transition, which may not be repeated.

        A client's endpoints are announced in their order: the node that answers a later one
        knows this one, and does not give up its answer.
        """
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        with self.client(ChangeState, '/mtan/change_state') as client:
            self.state()
            yield client.call_async(request)

    def request_invalid_transition(self, transition: str):
        """Ask for it without waiting: before Kilted rclpy leaves such a request unanswered."""
        with self.request(transition):
            self.pause(0.5)

    def change(self, transition: str) -> bool:
        with self.request(transition) as future:
            assert self.spin_until(future.done, 60), f'{transition}: no answer'
        return future.result().success

    def state(self) -> str:
        return self.call(GetState, '/mtan/get_state', GetState.Request()).current_state.label

    def values(self) -> dict[str, str]:
        """Return the latest diagnostics of this camera."""
        statuses = self.diagnostics[-1].status if self.diagnostics else []
        return {pair.key: pair.value for status in statuses if status.name == self.status
                for pair in status.values}

    def says(self, key: str, text: str) -> bool:
        """Return whether the latest diagnostics hold, under `key`, what `text` describes."""
        return bool(re.search(text, self.values().get(key, '')))

    def wait_for_status(self, level: bytes, text: str):
        """Wait until the diagnostics of this camera have a level, and what `text` describes."""
        def found():
            return any(status.name == self.status and status.level == level
                       and re.search(text, status.message)
                       for array in self.diagnostics[-1:] for status in array.status)
        assert self.spin_until(found, 5), self.diagnostics[-1:]

    def counts(self, key: str, least: int) -> bool:
        return int(self.values().get(key, 0)) >= least


def camera_info(height=CAMERA_SIZE[0], width=CAMERA_SIZE[1], focal=100.0) -> CameraInfo:
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob')
    message.d = [0.0] * 5
    message.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0 * (focal > 0)]
    message.roi.width, message.roi.height = width, height
    return message


def stamp(message) -> int:
    return message.header.stamp.sec
