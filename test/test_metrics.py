# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics: every figure against a case computed by hand."""

import math

import numpy as np
import pytest
import torch

from mtan_perception.metrics import DepthMetrics, NormalMetrics, SegmentationMetrics


def _direction(degrees):
    """Return the unit vector that is `degrees` away from (0, 0, -1)."""
    return [math.sin(math.radians(degrees)), 0.0, -math.cos(math.radians(degrees))]


def test_segmentation_by_hand():
    """Five labelled pixels; class 2 is only predicted, class 3 is nowhere."""
    metrics = SegmentationMetrics(4)
    metrics.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 1]]))
    metrics.update(np.array([1, 0, 2], np.uint8), np.array([1, 255, 255], np.uint8))
    metrics.update(torch.tensor([3]), torch.tensor([-1]))
    result = metrics.result()
    assert list(result) == ['miou', 'pixel_accuracy', 'per_class']
    # Class 0: 1 of (1 true + 1 false alarm); class 1: 2 of 4; class 2: 0 of 1 false alarm.
    assert result['per_class'][:3] == [0.5, 0.5, 0.0] and math.isnan(result['per_class'][3])
    assert result['miou'] == pytest.approx(1 / 3)
    assert result['pixel_accuracy'] == pytest.approx(3 / 5)


@pytest.mark.parametrize('no_class', [255, -1])
def test_segmentation_counts_an_unlabelled_prediction_as_a_miss(no_class):
    """A class lost to the confidence threshold lowers accuracy and that class alone."""
    metrics = SegmentationMetrics(2)
    metrics.update(np.array([0, 0, no_class, 1]), np.array([0, 0, 1, 1]))
    assert metrics.result() == {'miou': 0.75, 'pixel_accuracy': 0.75, 'per_class': [1.0, 0.5]}


def test_segmentation_without_a_labelled_pixel_is_nan():
    """Nothing is divided by zero."""
    metrics = SegmentationMetrics(2)
    metrics.update(np.array([0, 1]), np.array([255, -1]))
    result = metrics.result()
    assert math.isnan(result['miou']) and math.isnan(result['pixel_accuracy'])


def test_segmentation_refuses_unknown_classes_and_shapes():
    """A label map of another set, or of another size, is not silently scored."""
    for wrong in (4, 7):
        with pytest.raises(ValueError, match=f'class {wrong}; there are 4'):
            SegmentationMetrics(4).update(np.array([0]), np.array([wrong]))
    with pytest.raises(ValueError, match=r'\(2,\).*\(3,\)'):
        SegmentationMetrics(4).update(np.array([0, 0]), np.array([0, 0, 0]))


def test_depth_by_hand():
    """Of seven pixels two are valid: errors 0.5 m of 2 m and 1 m of 4 m."""
    metrics = DepthMetrics()
    metrics.update(np.array([2.5, np.nan, 1.0], np.float32), np.array([2.0, 1.0, 0.0], np.float32))
    metrics.update(torch.tensor([3.0, 1.0, 1.0, 1.0]),
                   torch.tensor([4.0, -1.0, math.nan, math.inf]))
    assert metrics.result() == {'abs': pytest.approx(0.75), 'rel': pytest.approx(0.25)}


def test_depth_without_a_valid_pixel_is_nan():
    """All-invalid truth gives NaN, not zero."""
    metrics = DepthMetrics()
    metrics.update(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert math.isnan(metrics.result()['abs']) and math.isnan(metrics.result()['rel'])


def test_normal_angles_by_hand():
    """Angles 0, 10, 25 and 180 degrees, pooled over two updates of different length."""
    metrics = NormalMetrics()
    toward = _direction(0)
    metrics.update(np.array([[_direction(25), toward, toward]]),
                   np.array([[toward, toward, [0.0, 0.0, 0.0]]]))
    metrics.update(np.array([[[0, 0, 2.0], _direction(10)]]), np.array([[toward, toward]]))
    result = metrics.result()
    assert list(result) == ['mean', 'median', 'within_11.25', 'within_22.5', 'within_30']
    assert result['mean'] == pytest.approx(215 / 4)
    assert result['median'] == pytest.approx(17.5)
    assert result['within_11.25'] == result['within_22.5'] == 0.5
    assert result['within_30'] == 0.75


def test_normal_median_is_that_of_all_pixels():
    """The median of all pixels, not the mean of the batches' medians."""
    rng = np.random.default_rng(1)
    degrees = np.concatenate((rng.uniform(0, 20, 500), rng.uniform(0, 120, 1001)))
    metrics = NormalMetrics()
    truth = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    for part in np.split(degrees, [500]):
        vectors = torch.tensor([_direction(angle) for angle in part])
        metrics.update(vectors.T.reshape(1, 3, 1, -1), truth.expand(1, 3, 1, len(part)))
    result = metrics.result()
    assert result['median'] == pytest.approx(np.median(degrees), abs=2e-3)
    assert result['mean'] == pytest.approx(degrees.mean(), abs=1e-4)


def test_normal_layouts_agree():
    """(N, 3, H, W) tensors and (H, W, 3) arrays are read the same way, even with 3 columns."""
    rng = np.random.default_rng(2)
    prediction, truth = rng.normal(size=(2, 3, 3, 3))
    as_arrays, as_tensors = NormalMetrics(), NormalMetrics()
    as_arrays.update(prediction, truth)
    as_tensors.update(*(torch.tensor(value).permute(2, 0, 1)[None]
                        for value in (prediction, truth)))
    assert as_arrays.result() == pytest.approx(as_tensors.result())


def test_normal_without_direction():
    """A zero or NaN prediction is 90 degrees off; an all-invalid truth gives NaN."""
    metrics = NormalMetrics()
    metrics.update(np.array([[[0.0, 0, 0], [np.nan, 0, 0]]]), np.array([[[0, 0, -1.0]] * 2]))
    assert metrics.result()['median'] == 90 and metrics.result()['within_30'] == 0
    empty = NormalMetrics()
    empty.update(np.ones((2, 2, 3)), np.zeros((2, 2, 3)))
    assert all(math.isnan(value) for value in empty.result().values())
    with pytest.raises(ValueError, match='no axis of 3'):
        empty.update(np.ones((4, 4)), np.ones((4, 4)))
