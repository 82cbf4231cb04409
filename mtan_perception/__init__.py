# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation, metric depth and surface normals from one camera, as ROS 2 topics."""

__version__ = '0.1.0'
