# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Post-processing: pixels computed by hand, and what a faulty network must not do."""

import math

import numpy as np
import pytest
import torch

from mtan_perception.inference.postprocess import (
    copy_to_host,
    finish_depth,
    finish_normal,
    finish_segmentation,
)


def test_segmentation_by_hand():
    """Probabilities 0.6, 0.25 and none at all, with a threshold of 0.3."""
    probabilities = torch.tensor([[[0.4, 0.25, math.nan]], [[0.6, 0.2, math.nan]]])
    label, confidence = finish_segmentation(probabilities.log(), 0.3)
    assert label.dtype == confidence.dtype == torch.uint8
    assert label.tolist() == [[1, 255, 255]] and confidence.tolist() == [[153, 64, 0]]
    label, _ = finish_segmentation(probabilities.log(), 0.0)
    assert label.tolist() == [[1, 0, 255]]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_depth_by_hand(dtype):
    """Ends of the range belong to it; zero and what is not finite are unknown."""
    values = [0.25, 0.5, 1.0, 8.0, 8.5, -1.0, 0.0, math.inf, -math.inf, math.nan]
    depth = finish_depth(torch.tensor([[values]], dtype=dtype), (0.5, 8.0))
    assert depth.dtype == torch.float32
    assert depth[0, 1:4].tolist() == [0.5, 1.0, 8.0]
    assert depth.isnan().sum() == 7
    unlimited = finish_depth(torch.tensor([[values]], dtype=dtype), (0.0, math.inf))
    assert unlimited.isfinite()[0].tolist() == [True] * 5 + [False] * 5


def test_normals_are_unit_and_finite():
    """NYU's z is turned; what has no direction points at the camera."""
    vectors = [[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0]]
    maps = torch.tensor(vectors).T.reshape(3, 1, 4)
    nyu, optical = finish_normal(maps, 'nyu'), finish_normal(maps, 'optical')
    assert nyu[0, 0].tolist() == pytest.approx([0.6, 0, -0.8])
    assert optical[0, 0].tolist() == pytest.approx([0.6, 0, 0.8])
    assert nyu[0, 1:].tolist() == optical[0, 1:].tolist() == [[0, 0, -1]] * 3


def test_host_copies_keep_type_shape_and_alignment():
    """Odd sizes and strided views come back as aligned contiguous arrays."""
    images = {'label': torch.arange(35, dtype=torch.uint8).reshape(5, 7),
              'normal': torch.randn(3, 5, 7).permute(1, 2, 0),
              'depth': torch.tensor([[math.nan, 1.5, 2.5]])}
    arrays = copy_to_host(images)
    assert set(arrays) == set(images)
    for name, tensor in images.items():
        assert np.array_equal(arrays[name], tensor.numpy(), equal_nan=name != 'label')
        assert arrays[name].dtype == tensor.numpy().dtype
        assert arrays[name].flags.c_contiguous and arrays[name].flags.aligned
        assert arrays[name].flags.writeable
