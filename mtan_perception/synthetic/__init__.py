# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural furnished rooms: images with exact labels, depth and surface normals."""

from mtan_perception.synthetic.frames import Frames, render

__all__ = ['Frames', 'render']
