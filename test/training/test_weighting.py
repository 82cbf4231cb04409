# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Weightings against cases computed by hand, and against their own definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from mtan_perception.training.weighting import (
    cagrad,
    combine_gradients,
    GRADIENT_WEIGHTINGS,
    make_weighting,
    nash,
    pcgrad,
)

TASKS = ['segmentation', 'depth', 'normal']


def losses(*values):
    tensors = (torch.tensor(value, requires_grad=True) for value in values)
    return dict(zip(TASKS, tensors, strict=False))


def products(seed, tasks=3, size=5, conflict=0.0):
    gradients = np.random.default_rng(seed).normal(size=(tasks, size))
    gradients[0] -= conflict * gradients[1]
    return gradients, gradients @ gradients.T


def test_equal_and_fixed():
    assert make_weighting('equal', TASKS, {}, 1)(losses(1.0, 2.0, 4.0)).item() == 7
    fixed = make_weighting('fixed', TASKS, {'depth': 0.5, 'normal': 3.0}, 1)
    assert fixed(losses(1.0, 2.0, 4.0)).item() == 1 + 1 + 12


def test_uncertainty_is_least_where_the_variance_is_the_loss():
    weighting = make_weighting('uncertainty', TASKS, {}, 1)
    assert weighting(losses(1.0, 2.0, 4.0)).item() == pytest.approx(3.5)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([1.0, 2.0, 4.0]).log())
    loss = weighting(losses(1.0, 2.0, 4.0))
    assert loss.item() == pytest.approx(1.5 + math.log(8) / 2)
    loss.backward()
    torch.testing.assert_close(weighting.log_variance.grad, torch.zeros(3), rtol=0, atol=1e-6)


def test_dwa_weighs_by_the_ratio_of_the_last_two_periods():
    weighting = make_weighting('dwa', TASKS[:2], {}, 2)
    for first, second in ((4.0, 1.0), (2.0, 1.0)):  # period one: means 3 and 1
        assert weighting(losses(first, second)).item() == first + second
    for _ in range(2):  # period two: 1.5 and 1
        assert weighting(losses(1.5, 1.0)).item() == 2.5
    ratios = np.exp(np.array([0.5, 1.0]) / 2)
    expected = 2 * ratios / ratios.sum()
    assert weighting(losses(1.0, 1.0)).item() == pytest.approx(2)
    assert weighting.weights.tolist() == pytest.approx(expected.tolist())
    # The step that ends a period has the gradient of the weights that it began with.
    given = losses(5.0, 1.0)
    before = weighting.weights.tolist()
    weighting(given).backward()
    assert [value.grad.item() for value in given.values()] == before
    # Of the third period alone: means 3 and 1, after 1.5 and 1.
    ratios = np.exp(np.array([2.0, 1.0]) / 2)
    assert weighting.weights.tolist() == pytest.approx((2 * ratios / ratios.sum()).tolist())
    resumed = make_weighting('dwa', TASKS[:2], {}, 2)
    resumed.load_state_dict(weighting.state_dict())
    for _ in range(3):
        assert resumed(losses(2.0, 1.0)).item() == weighting(losses(2.0, 1.0)).item()


def test_gls_is_the_geometric_mean_and_has_its_gradient():
    given = losses(1.0, 2.0, 4.0)
    loss = make_weighting('gls', TASKS, {}, 1)(given)
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert [value.grad.item() for value in given.values()] == pytest.approx(
        [2 / 3, 2 / 6, 2 / 12])


def test_gls_goes_on_without_a_task_that_has_no_truth():
    given = losses(1.0, 0.0, 4.0)
    loss = make_weighting('gls', TASKS, {}, 1)(given)
    loss.backward()
    assert loss.item() == pytest.approx(2)
    slopes = [value.grad.item() for value in given.values()]
    assert slopes[::2] == pytest.approx([2 / 2, 2 / 8])
    nothing = losses(0.0, 0.0, 0.0)
    assert make_weighting('gls', TASKS, {}, 1)(nothing).item() == 0


def test_pcgrad_does_what_projecting_vectors_does():
    gradients, matrix = products(3, conflict=2.0)
    order = torch.Generator().manual_seed(5)
    factors = pcgrad(matrix, order)
    order.manual_seed(5)
    total = np.zeros(5)
    for own in range(3):
        vector = gradients[own].copy()
        for other in torch.randperm(3, generator=order).tolist():
            product = vector @ gradients[other]
            if other != own and product < 0:
                vector -= product / (gradients[other] @ gradients[other]) * gradients[other]
        total += vector
    assert (matrix < 0).any()
    np.testing.assert_allclose(factors @ gradients, total, atol=1e-12)
    # Without a conflict it is the sum.
    assert pcgrad(np.ones((3, 3))).tolist() == [1, 1, 1]


@pytest.mark.parametrize('seed', range(4))
def test_cagrad_finds_the_least_point_of_the_simplex(seed):
    gradients, matrix = products(seed, conflict=1.5)
    mean = gradients.mean(0)
    radius = 0.4 * np.linalg.norm(mean)

    def value(w):
        combined = w @ gradients
        return combined @ mean + radius * np.linalg.norm(combined)

    grid = np.linspace(0, 1, 101)
    best = min(value(np.array([a, b, 1 - a - b]))
               for a, b in itertools.product(grid, grid) if a + b <= 1 + 1e-9)
    step = cagrad(matrix) @ gradients
    # The step is the mean gradient plus a vector of length radius along the best combination.
    extra = step - mean
    assert np.linalg.norm(extra) == pytest.approx(radius, rel=1e-6)
    worst = min(gradients @ step)
    assert worst >= min(gradients @ mean) - 1e-9
    # By duality the worst task's gain is the least value of the function.
    assert worst == pytest.approx(best, abs=2e-3 * np.abs(matrix).max())
    np.testing.assert_allclose(cagrad(100 * matrix), cagrad(matrix), rtol=1e-5)


@pytest.mark.parametrize('conflict', (0.0, 3.0))
def test_nash_solves_its_equation(conflict):
    _, matrix = products(1, conflict=conflict)
    factors = nash(matrix)
    assert (factors > 0).all()
    np.testing.assert_allclose(matrix @ factors, 1 / factors, rtol=1e-3)
    np.testing.assert_allclose(nash(np.diag([4.0, 1.0])), [0.5, 1.0], rtol=1e-5)
    opposite = nash(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert np.isfinite(opposite).all() and (opposite > 0).all()


@pytest.mark.parametrize('name', GRADIENT_WEIGHTINGS)
def test_gradients_that_vanish_or_are_alike_do_no_harm(name):
    method = GRADIENT_WEIGHTINGS[name]
    assert np.isfinite(method(np.zeros((3, 3)))).all()
    assert np.isfinite(method(np.ones((3, 3)))).all()


def test_only_shared_parameters_get_the_combined_gradient():
    shared = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    own = [torch.nn.Parameter(torch.tensor(3.0)), torch.nn.Parameter(torch.tensor(4.0))]
    given = [shared[0] * own[0], shared.sum() * own[1]]
    combine_gradients(given, [shared, *own], lambda matrix: np.array([10.0, 1.0]))
    # Gradients of the shared parameters: (3, 0) and (4, 4).
    assert shared.grad.tolist() == [34.0, 4.0]
    assert [p.grad.item() for p in own] == [1.0, 3.0]
    with pytest.raises(ValueError, match='share no parameters'):
        combine_gradients([own[0] * 2, own[1] * 2], own, pcgrad)


def test_gradients_lie_in_memory_as_their_parameters_do():
    """A fused optimiser goes through both in that order: Adam's first step is against each one."""
    torch.manual_seed(0)
    shared, own = (torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last).weight
                   for _ in range(2))
    before = shared.detach().clone(), own.detach().clone()
    targets = torch.randn(3, 8, 4, 3, 3)
    losses = [(shared * targets[0]).sum(), (shared * targets[1] + own * targets[2]).sum()]
    combine_gradients(losses, [shared, own], lambda matrix: np.ones(2))
    torch.optim.Adam([shared, own], 0.5, fused=True).step()
    for parameter, value, expected in zip((shared, own), before, (
            targets[0] + targets[1], targets[2]), strict=True):
        assert torch.allclose(parameter.grad, expected, atol=1e-5)
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal((parameter - value).sign(), -expected.sign())


def test_what_is_asked_wrongly_is_named():
    with pytest.raises(ValueError, match="'mgda'; choose one of equal"):
        make_weighting('mgda', TASKS, {}, 1)
    with pytest.raises(ValueError, match='for weighting fixed, not equal'):
        make_weighting('equal', TASKS, {'depth': 2.0}, 1)
    with pytest.raises(ValueError, match="unknown task 'deep'"):
        make_weighting('fixed', TASKS, {'deep': 2.0}, 1)
