# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Images to the network's input: the same by OpenVINO as by PyTorch."""

import numpy as np
import pytest

from mtan_perception.geometry import fit_image

pytest.importorskip('openvino')
from mtan_perception.inference.backends.openvino_images import OpenVINOImages
from mtan_perception.inference.backends.torch_images import TorchImages

SCALING = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def smooth(height, width):
    """Return a picture with edges and slopes, and something of its own in each channel."""
    rows, columns = np.mgrid[:height, :width]
    planes = [128 + 127 * np.sin(rows / 7 + columns / 11), 255 * (columns // 9 % 2), rows % 256]
    return np.stack(planes, axis=2).astype(np.uint8)


@pytest.mark.parametrize('size', [
    (64, 96), (120, 150), (480, 640), (61, 211), (31, 40), (300, 403), (64, 5), (40, 95), (1, 1)])
@pytest.mark.parametrize('is_reversed', [False, True], ids=['rgb', 'bgr'])
def test_openvino_resizes_as_torch_does(size, is_reversed):
    """Down, up and not at all, or along one axis; torch rounds between the axes otherwise."""
    image, fit = smooth(*size), fit_image(size, (64, 96))
    if is_reversed:
        image = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    (found,), x = OpenVINOImages('cpu', *SCALING).load([image], [fit])
    (wanted,), y = TorchImages('cpu', *SCALING).load([image], [fit])
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    difference = np.abs(found.astype(int) - wanted.numpy())
    assert difference.max() <= 1 and difference.mean() < 0.3
    assert x.dtype == np.float32 and x.shape == y.shape
    mean, std = (np.array(values, np.float32) for values in SCALING)
    padded = np.pad(found, [(0, after - before) for before, after in zip(
        found.shape, (fit.padded_height, fit.padded_width, 3), strict=True)], mode='edge')
    assert x[0].transpose(1, 2, 0) == pytest.approx((padded / 255 - mean) / std, abs=1e-5)


def test_images_of_one_size_are_loaded_together():
    """As each is alone."""
    images = OpenVINOImages('cpu', *SCALING)
    pictures = [smooth(64, 96), smooth(128, 192), smooth(62, 96)]
    fits = [fit_image(picture.shape[:2], (64, 96)) for picture in pictures]
    resized, x = images.load(pictures, fits)
    assert x.shape == (3, 3, 64, 96)
    for index, (picture, fit) in enumerate(zip(pictures, fits, strict=True)):
        (alone,), y = images.load([picture], [fit])
        assert np.array_equal(alone, resized[index]) and np.array_equal(y[0], x[index])


def test_what_a_size_needs_is_built_once():
    images, picture = OpenVINOImages('cpu', *SCALING), smooth(120, 150)
    fit = fit_image(picture.shape[:2], (64, 96))
    assert [images.prepare(picture, fit) for _ in range(2)] == [True, False]
    assert images.prepare(picture[..., ::-1], fit), 'BGR has one of its own'
