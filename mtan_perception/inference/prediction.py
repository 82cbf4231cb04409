# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the engine returns for one image."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Prediction:
    """
    Outputs of one image, all contiguous arrays of one height and width.

    An output whose task was not wanted is None. The size is the image's times `scale`, without
    the network's padding.
    """

    image: np.ndarray
    """(H, W, 3) uint8 RGB: the resized image that the network saw."""
    scale: float
    """Output pixels per input pixel, the same for both axes."""
    label: np.ndarray | None = None
    """(H, W) uint8: the most probable class, 255 where it is below the threshold."""
    confidence: np.ndarray | None = None
    """(H, W) uint8: 255 times the probability of the most probable class."""
    depth: np.ndarray | None = None
    """
    (H, W) float32: metres along z, NaN where unknown or outside the engine's range. Of weights
    whose depth is inverse (see ModelCard.depth_unit) a number without unit, larger for nearer.
    """
    normal: np.ndarray | None = None
    """(H, W, 3) float32: unit vectors in the optical frame, always finite."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds spent in 'preprocess', 'network' and 'postprocess'."""
