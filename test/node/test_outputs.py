# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures among the outputs: painted by the parameters that are theirs."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from mtan_perception.inference import Prediction
from mtan_perception.labels import NYUV2_13
from mtan_perception.node.outputs import IMAGE_OUTPUTS
from mtan_perception.node.parameters import default_settings
from mtan_perception.visualization import color_depth, color_normal


def test_the_pictures_follow_their_parameters():
    settings = replace(default_settings(), overlay_alpha=0.25, min_depth=1.0, max_depth=3.0)
    depth, normal = np.float32([[1.0, 2.5]]), np.float32([[[0, 0, -1], [0, -1, 0]]])
    prediction = Prediction(np.full((1, 2, 3), 100, np.uint8), 1.0, label=np.uint8([[4, 255]]),
                            confidence=np.uint8([[200, 9]]), depth=depth, normal=normal)
    images = {topic: output.fill(prediction, settings, NYUV2_13.palette)
              for topic, output in IMAGE_OUTPUTS.items()}
    # A quarter of the floor's (222, 241, 24); unlabelled pixels show the image.
    assert images['segmentation/color'].tolist() == [[[130, 135, 81], [100, 100, 100]]]
    np.testing.assert_array_equal(images['depth/color'], color_depth(depth, 1.0, 3.0))
    np.testing.assert_array_equal(images['normal/color'], color_normal(normal))
    assert images['segmentation/mask'].tolist() == [[4, 255]]
    assert images['segmentation/confidence'].tolist() == [[200, 9]]
    assert images['depth/image_rect'] is depth and images['normal/image'] is normal
