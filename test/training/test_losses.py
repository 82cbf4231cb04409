# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Losses against cases computed by hand."""

import math

import pytest
import torch

from mtan_perception.training.losses import choose_losses, LOSSES, valid_pixels

NAN = float('nan')


def test_cross_entropy_ignores_unlabelled_pixels_and_weighs_classes():
    # Three pixels: p(class 0) = 1/2, p(class 1) = 3/4, and one without truth.
    probabilities = torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]]).view(1, 2, 1, 3)
    truth = torch.tensor([[[0, 1, -1]]])
    valid = valid_pixels('classification', truth)
    loss = LOSSES['cross_entropy']
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert loss(probabilities.log(), truth, valid).item() == pytest.approx(expected)
    # Logits are as good as log-probabilities.
    assert loss(probabilities.log() + 5, truth, valid).item() == pytest.approx(expected)
    weighted = loss(probabilities.log(), truth, valid, torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * math.log(2) + math.log(4 / 3)) / 4)


def test_depth_errors_skip_pixels_without_truth():
    prediction = torch.tensor([1.5, 5.0, 7.0, 2.0]).view(1, 1, 2, 2)
    truth = torch.tensor([2.0, 4.0, 0.0, 2.0]).view(1, 1, 2, 2)
    valid = valid_pixels('depth', truth)
    assert LOSSES['l1'](prediction, truth, valid).item() == pytest.approx((0.5 + 1 + 0) / 3)
    assert LOSSES['mse'](prediction, truth, valid).item() == pytest.approx((0.25 + 1) / 3)
    assert LOSSES['relative'](prediction, truth, valid).item() == pytest.approx(
        (0.25 + 0.25) / 3)


@pytest.mark.parametrize('name', ['l1', 'mse', 'relative'])
def test_values_without_truth_are_nan_and_harm_no_gradient(name):
    prediction = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    truth = torch.tensor([NAN, 1.0]).view(1, 1, 1, 2)
    loss = LOSSES[name](prediction, truth, valid_pixels('regression', truth))
    loss.backward()
    assert loss.item() == 1.0
    assert prediction.grad.flatten().tolist() == [0.0, 2.0 if name == 'mse' else 1.0]


def test_values_of_zero_are_truth():
    prediction = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    truth = torch.tensor([NAN, 0.0]).view(1, 1, 1, 2)
    valid = valid_pixels('regression', truth)
    loss = LOSSES['l1'](prediction, truth, valid)
    loss.backward()
    assert loss.item() == 2.0  # 0 is a value like any other
    assert prediction.grad.flatten().tolist() == [0.0, 1.0]


def test_cosine_distance_takes_the_valid_mask_from_the_norm():
    # The sum of (1, -1, 0) is zero, yet it is a direction.
    half = math.sqrt(0.5)
    truth = torch.tensor([[half, -half, 0], [0, 0, -1], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    prediction = torch.tensor([[half, half, 0], [0, 0, -1], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    valid = valid_pixels('normal', truth)
    assert valid.flatten().tolist() == [True, True, False]
    assert LOSSES['cosine'](prediction, truth, valid).item() == pytest.approx((1 + 0) / 2)


def test_the_chord_is_twice_the_sine_of_half_the_angle():
    # 90 degrees, 0 degrees, and a pixel without truth.
    truth = torch.tensor([[0, 0, -1.0], [0, 0, -1], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    prediction = torch.tensor([[0, 1.0, 0], [0, 0, -1], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    prediction.requires_grad_()
    loss = LOSSES['chord'](prediction, truth, valid_pixels('normal', truth))
    assert loss.item() == pytest.approx((math.sqrt(2) + 0) / 2, abs=1e-3)
    loss.backward()
    assert prediction.grad[..., 0].norm().item() == pytest.approx(0.5, abs=1e-3)
    assert not prediction.grad[..., 1:].any()


@pytest.mark.parametrize('name', LOSSES)
def test_without_a_valid_pixel_the_loss_is_zero(name):
    prediction = torch.ones(1, 3, 2, 2, requires_grad=True)
    truth = torch.full((1, 2, 2), -1) if name == 'cross_entropy' else torch.zeros(1, 3, 2, 2)
    valid = torch.zeros(1, 2, 2, dtype=torch.bool)
    loss = LOSSES[name](prediction, truth, valid if name in ('cross_entropy', 'cosine', 'chord')
                        else valid[:, None].expand(1, 3, 2, 2))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_losses_of_bfloat16_outputs_are_computed_in_float32():
    prediction = torch.full((1, 1, 64, 64), 3.0, dtype=torch.bfloat16)
    truth = torch.full((1, 1, 64, 64), 2.999)
    loss = LOSSES['l1'](prediction, truth, truth > 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.001, rel=1e-2)


def test_a_loss_that_does_not_fit_is_refused_by_name():
    kinds, usual = {'depth': 'depth'}, {'depth': 'l1'}
    assert choose_losses(kinds, usual, {'depth': 'relative'})['depth'] is LOSSES['relative']
    with pytest.raises(ValueError, match=r"'cosine' does not fit depth.*l1, mse, relative"):
        choose_losses(kinds, usual, {'depth': 'cosine'})
    with pytest.raises(ValueError, match="unknown task 'normal'"):
        choose_losses(kinds, usual, {'normal': 'cosine'})
