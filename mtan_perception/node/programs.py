# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The installed programs. A Ctrl-C while they still import torch and ROS ends them quietly."""

import importlib


def mtan_node() -> int:
    """Run mtan_perception.node.mtan_node."""
    return _run('mtan_node')


def camera_node() -> int:
    """Run mtan_perception.node.camera_node."""
    return _run('camera_node')


def _run(name: str) -> int:
    try:
        module = importlib.import_module(f'mtan_perception.node.{name}')
    except KeyboardInterrupt:
        return 0
    return module.main()
