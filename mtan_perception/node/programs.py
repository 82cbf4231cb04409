# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The installed programs.

Ctrl-C while they still import torch and ROS ends them at once. As a KeyboardInterrupt it would be
lost in some imports, end others in a long traceback, and abort the process in C++.
"""

import importlib
import os
import signal

_has_begun = False
"""Whether the node is there: its executor then ends by KeyboardInterrupt."""


def mtan_node() -> int:
    """Run mtan_perception.node.mtan_node."""
    return _run('mtan_node')


def camera_node() -> int:
    """Run mtan_perception.node.camera_node."""
    return _run('camera_node')


def begin() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again; rclpy has put a handler of its own before ours."""
    global _has_begun
    _has_begun = True


def _run(name: str) -> int:
    signal.signal(signal.SIGINT, _interrupt)
    return importlib.import_module(f'mtan_perception.node.{name}').main()


def _interrupt(number: int, frame) -> None:
    if not _has_begun:
        os._exit(0)
    signal.default_int_handler(number, frame)
