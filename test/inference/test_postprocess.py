# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Post-processing: pixels computed by hand, and what a faulty network must not do."""

import math

import numpy as np
import pytest
import torch

from mtan_perception.inference.backends.torch_images import copy_to_host, pack, unpack
from mtan_perception.inference.images import limit_confidence, limit_depth
from mtan_perception.inference.postprocess import classify, finish, point_normals


def test_classes_and_probabilities_by_hand():
    """Logits are logarithms up to a constant, of 0.6 and 0.4, 0.25 and 0.75, or no number."""
    odds = torch.tensor([[[[0.4, 0.75, math.nan]], [[0.6, 0.25, math.nan]]]])
    label, probability = classify(odds.log() + 3)
    assert label.dtype == torch.uint8 and label[0, 0, :2].tolist() == [1, 0]
    assert probability[0, 0, :2].tolist() == pytest.approx([0.6, 0.75])
    assert probability[0, 0, 2].isnan()


@pytest.mark.parametrize('library', [torch, np], ids=['torch', 'numpy'])
def test_unsure_pixels_are_unlabelled(library):
    """A threshold of 0.3; no number is unsure at any threshold."""
    label = library.asarray([[1, 0, 2]], dtype=library.uint8)
    probability = library.asarray([[0.6, 0.25, math.nan]], dtype=library.float32)
    label_, confidence = limit_confidence(label, probability, 0.3)
    assert label_.dtype == confidence.dtype == library.uint8
    assert label_.tolist() == [[1, 255, 255]] and confidence.tolist() == [[153, 64, 0]]
    label_, _ = limit_confidence(label, probability, 0.25)
    assert label_.tolist() == [[1, 0, 255]], 'the threshold itself is enough'
    label_, _ = limit_confidence(label, probability, 0.0)
    assert label_.tolist() == [[1, 0, 255]]


@pytest.mark.parametrize('library', [torch, np], ids=['torch', 'numpy'])
def test_depth_by_hand(library):
    """Ends of the range belong to it; zero and what is not finite are unknown."""
    values = [0.25, 0.5, 1.0, 8.0, 8.5, -1.0, 0.0, math.inf, -math.inf, math.nan]
    values = library.asarray([values], dtype=library.float32)
    depth = limit_depth(values, (0.5, 8.0))
    assert depth.dtype == library.float32
    assert depth[0, 1:4].tolist() == [0.5, 1.0, 8.0]
    assert library.isnan(depth).sum() == 7
    unlimited = limit_depth(values, (0.0, math.inf))
    assert library.isnan(unlimited)[0].tolist() == [False] * 5 + [True] * 5


def test_normals_are_unit_and_finite():
    """NYU's z is turned; what has no direction points at the camera."""
    vectors = [[3.0, 0.0, 4.0], [3e-4, 0.0, 4e-4], [3e-5, 0.0, 4e-5], [0.0, 0.0, 0.0],
               [math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0]]
    maps = torch.tensor(vectors).T.reshape(1, 3, 1, 6)
    nyu, optical = point_normals(maps, 'nyu'), point_normals(maps, 'optical')
    for index in (0, 1):
        assert nyu[0, 0, index].tolist() == pytest.approx([0.6, 0, -0.8])
        assert optical[0, 0, index].tolist() == pytest.approx([0.6, 0, 0.8])
    assert nyu[0, 0, 2:].tolist() == optical[0, 0, 2:].tolist() == [[0, 0, -1]] * 4


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_the_wanted_images_are_finished_in_float32(dtype):
    """Upsampling keeps the corners; each task gives the images of its name."""
    logits = {'segmentation': torch.randn(2, 5, 3, 4, dtype=dtype),
              'depth': torch.rand(2, 1, 3, 4, dtype=dtype)}
    images = finish(logits, (9, 13), 'optical')
    assert {name: (image.dtype, tuple(image.shape)) for name, image in images.items()} == {
        'label': (torch.uint8, (2, 9, 13)), 'probability': (torch.float32, (2, 9, 13)),
        'depth': (torch.float32, (2, 9, 13))}
    assert torch.equal(images['depth'][:, ::8, ::12], logits['depth'][:, 0, ::2, ::3].float())
    normal = finish({'normal': torch.randn(2, 3, 3, 4, dtype=dtype)}, (9, 13), 'nyu')['normal']
    assert normal.dtype == torch.float32 and normal.shape == (2, 9, 13, 3)


@pytest.mark.parametrize('fetch', [
    copy_to_host, lambda images: unpack(pack(images).numpy(), images)])
def test_host_copies_keep_type_shape_and_alignment(fetch):
    """Odd sizes and strided views come back as aligned contiguous arrays, packed or not."""
    images = {'label': torch.arange(35, dtype=torch.uint8).reshape(5, 7),
              'normal': torch.randn(3, 5, 7).permute(1, 2, 0),
              'depth': torch.tensor([[math.nan, 1.5, 2.5]])}
    arrays = fetch(images)
    assert set(arrays) == set(images)
    for name, tensor in images.items():
        assert np.array_equal(arrays[name], tensor.numpy(), equal_nan=name != 'label')
        assert arrays[name].dtype == tensor.numpy().dtype
        assert arrays[name].flags.c_contiguous and arrays[name].flags.aligned
        assert arrays[name].flags.writeable
