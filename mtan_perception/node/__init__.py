# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes; nothing outside this folder imports rclpy."""

from mtan_perception.threads import share_cores

share_cores()  # Here, since the nodes' modules import torch.
