# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers for tests that start the real executables and listen to them over DDS."""

import time

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from robot import Robot
from truth import camera_info_of, known_room

from mtan_perception.node.child_process import ChildProcess, free_domain_id, ros_environment


@pytest.fixture
def ros_domain(monkeypatch, tmp_path):
    """Give the test, and every process it starts, a ROS domain of its own; the value is its id."""
    domain_id = free_domain_id()
    for name, value in ros_environment(domain_id).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'ros_log'))
    return domain_id


@pytest.fixture
def start_process(ros_domain):
    """
    Give a function (module, *args, env=None) -> ChildProcess that runs `python -m module *args`.

    What still runs at the end of the test is ended; the output of all is printed, for pytest to
    show on a failure.
    """
    children = []

    def start(module, *args, env=None):
        children.append(ChildProcess(module, *(str(arg) for arg in args), env=env))
        return children[-1]

    yield start
    for child in children:
        if child.exit_code is None:
            child.stop()
        print(f'--- {child.name} (exit code {child.exit_code})\n{child.output}')


@pytest.fixture
def ros_node(ros_domain):
    """Make a node in the test process, in the test's domain; `spin_until` spins it."""
    context = Context()
    rclpy.init(context=context, domain_id=ros_domain,
               signal_handler_options=SignalHandlerOptions.NO)
    node = Node('test_listener', context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


@pytest.fixture
def spin_until(ros_node):
    """Give a function (condition, timeout=20.0) that spins `ros_node` until condition() holds."""
    executor = SingleThreadedExecutor(context=ros_node.context)
    executor.add_node(ros_node)

    def spin(condition, timeout=20.0):
        deadline = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.05)
        return value

    yield spin
    executor.shutdown()


@pytest.fixture
def collect(ros_node):
    """Give a function (type, topic, qos=10) -> list of messages that grows while spinning."""
    def subscribe(message_type, topic, qos=10):
        messages = []
        ros_node.create_subscription(message_type, topic, messages.append, qos)
        return messages

    return subscribe


@pytest.fixture
def robot(ros_node, spin_until, start_process):
    return Robot(ros_node, spin_until, start_process)


@pytest.fixture(scope='module')
def room():
    return known_room()


@pytest.fixture
def in_room(robot, room):
    """Put the robot's camera into the room."""
    robot.image, robot.camera_info = room.image, camera_info_of(room)
