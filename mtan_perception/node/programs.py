# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The installed programs, and what SIGINT and SIGTERM do to them.

While they still import torch and ROS, a signal ends them at once. As a KeyboardInterrupt it would
be lost in some imports, end others in a long traceback, and abort the process in C++. From then on
it asks the node to end: rclpy's own handlers would take ROS from under what still runs.
"""

from collections.abc import Callable
import importlib
import os
import signal

_must_end = False


def mtan_node() -> int:
    """Run mtan_perception.node.mtan_node."""
    return _run('mtan_node')


def camera_node() -> int:
    """Run mtan_perception.node.camera_node."""
    return _run('camera_node')


def end_at_once() -> None:
    """Let a signal end the process at once."""
    _handle(lambda number, frame: os._exit(0))


def begin() -> None:
    """Let a signal ask the node to end, in place of ending the process at once."""
    _handle(_ask)


def must_end() -> bool:
    """Return whether a signal has asked the node to end."""
    return _must_end


def _run(name: str) -> int:
    end_at_once()
    return importlib.import_module(f'mtan_perception.node.{name}').main()


def _handle(handler: Callable) -> None:
    """Take SIGINT and SIGTERM, also where SIGINT is ignored, as in the background of a script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _ask(number: int, frame) -> None:
    global _must_end
    _must_end = True  # and so it does at another, such as launch sends after a Ctrl-C
