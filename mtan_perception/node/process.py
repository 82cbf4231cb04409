# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How a node's process ends."""

import os
import sys
from typing import NoReturn

from rclpy.node import Node
from rclpy.utilities import try_shutdown


def leave(node: Node, exit_code: int = 0) -> NoReturn:
    """
    Say goodbye to the other nodes and end the process at once.

    Nothing is left to save by then. The interpreter's own way out takes a second where torch is
    loaded, and may abort where a thread is still in a forward pass, which nothing can interrupt.
    """
    node.destroy_node()
    try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
