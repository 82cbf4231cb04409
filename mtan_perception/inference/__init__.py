# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Run the network on camera images: uint8 RGB in, masks, metric depth and normals out."""

import importlib.util
import sys

# Not imported: what runs the network may do without.
if importlib.util.find_spec('torch') is None:
    raise ImportError(
        'mtan_perception needs PyTorch, which no rosdep key installs on every platform; install '
        'it with: python3 -m pip install torch torchvision')

from mtan_perception.inference.engine import Engine
from mtan_perception.inference.errors import EngineError
from mtan_perception.inference.prediction import Prediction

# Else each import of OpenVINO would tell Google Analytics, by a process of its own.
sys.modules.setdefault('openvino_telemetry', None)

__all__ = ['Engine', 'EngineError', 'Prediction']
