# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
A stand-in for tf2_ros, which no wheel has, with the calls that mtan_node makes.

The file that TRANSFORM names holds what TF knows, as JSON: `transform`, a quaternion and a
translation of the base in the camera's frame (absent: none), and `late`, whether it is there only
as the latest.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace


class TransformException(Exception):
    """What a look-up raises."""


class Buffer:
    """Answers with the file's transform once a listener is there."""

    listening = False

    def lookup_transform(self, target_frame, source_frame, time):
        content = json.loads(Path(os.environ['TRANSFORM']).read_text())
        if not self.listening or 'transform' not in content:
            raise TransformException(f'"{source_frame}" does not exist')
        if content['late'] and time.nanoseconds:
            raise TransformException('extrapolation into the future')
        x, y, z, w, *translation = content['transform']
        return SimpleNamespace(transform=SimpleNamespace(
            rotation=SimpleNamespace(x=x, y=y, z=z, w=w),
            translation=SimpleNamespace(**dict(zip('xyz', translation, strict=True)))))


class TransformListener:
    """Notes that the node listens."""

    def __init__(self, buffer, node):
        buffer.listening = True
