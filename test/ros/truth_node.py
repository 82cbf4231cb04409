# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Run mtan_node with the truth of the known room in the place of the network.

Whatever `weights` says; everything around the network is the node's own.
"""

import sys

import numpy as np
from truth import known_room

from mtan_perception import inference
from mtan_perception.geometry import correct_depth, fit_image
from mtan_perception.inference import Prediction
from mtan_perception.model_card import COMPACT
from mtan_perception.node.mtan_node import main


class TruthEngine:
    """An Engine as far as the node uses it; images must shrink by a whole number."""

    def __init__(self, weights, device, precision, **_):
        self.card, self.device, self.precision = COMPACT, device, precision
        self.available_tasks, self.backend = tuple(COMPACT.tasks), 'none'
        self._rooms = {}

    def warm_up(self):
        pass

    def prepare(self, images, tasks):
        return False

    def infer_batch(self, images, tasks, focal_lengths):
        return [self._infer(image, tasks, focal_length, len(images))
                for image, focal_length in zip(images, focal_lengths, strict=True)]

    def _infer(self, image, tasks, focal_length, batch):
        size, fit = image.shape[:2], fit_image(image.shape[:2], self.input_size)
        if size not in self._rooms:
            self._rooms[size] = known_room(size)
        room, step = self._rooms[size], (slice(None, None, round(1 / fit.scale)),) * 2
        prediction = Prediction(image[step].copy(), fit.scale, timings={'batch': batch / 1000})
        if 'segmentation' in tasks:
            label = room.label[step]
            row, column = np.indices(label.shape)
            prediction.confidence = (17 * label + 5 * row + column).astype(np.uint8)
            doubtful = prediction.confidence < 255 * self.confidence_threshold
            prediction.label = np.where(doubtful, 255, label).astype(np.uint8)
        if 'depth' in tasks:
            depth = room.depth[step]
            if focal_length is not None:
                depth = correct_depth(depth, focal_length, room.intrinsics[0, 0])
            nearest, farthest = self.depth_range
            known = (depth >= nearest) & (depth <= farthest)
            prediction.depth = np.where(known, depth, np.nan).astype(np.float32)
        if 'normal' in tasks:
            prediction.normal = np.ascontiguousarray(room.normal[step])
        return prediction


if __name__ == '__main__':
    inference.Engine = TruthEngine
    sys.exit(main())
