# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
How the losses of several tasks become one step.

Weightings of losses return one scalar to minimise. Weightings of gradients look at how the tasks'
gradients of the shared parameters lie to each other. All they need for that is the matrix of the
gradients' dot products, from which they return one factor for each gradient.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn, Tensor

from mtan_perception.training.distributed import agree, mean_over_processes


class FixedWeighting(nn.Module):
    """The sum of the losses, each times a factor, 1 where none is given."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._weights = {name: float((weights or {}).get(name, 1.0)) for name in tasks}

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise."""
        return torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum()


class UncertaintyWeighting(nn.Module):
    """
    Learn each task's log-variance s and minimise the sum of L / (2 e^s) + s / 2.

    Kendall, Gal, Cipolla, 'Multi-Task Learning Using Uncertainty to Weigh Losses', CVPR 2018,
    in the form that the MTAN paper compares with.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise."""
        stacked = torch.stack(list(losses.values()))
        return (stacked / (2 * self.log_variance.exp()) + self.log_variance / 2).sum()


class DynamicWeightAverage(nn.Module):
    """
    Weigh a task by how slowly its loss fell: Liu et al., CVPR 2019, section 3.4.

    The weights are K softmax(r / temperature), where r is the ratio of the mean losses of the last
    two periods and K the number of tasks; 1 until there are two. An endless stream has no epochs,
    so a period is a number of steps.
    """

    def __init__(self, tasks: Sequence[str], period: int, temperature: float = 2.0) -> None:
        super().__init__()
        self._period, self._temperature = period, temperature
        count = len(tasks)
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))
        self.register_buffer('total', torch.zeros(count))
        self.register_buffer('previous', torch.zeros(count))
        self.register_buffer('weights', torch.ones(count))
        self._steps = 0

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise, and count the losses in."""
        stacked = torch.stack(list(losses.values()))
        # A copy, as the gradient needs them after they have changed.
        loss = (self.weights.to(stacked, copy=True) * stacked).sum()
        self._count(mean_over_processes(stacked.detach()))
        return loss

    def load_state_dict(self, *args, **kwargs):
        """Take up the period where it stopped."""
        result = super().load_state_dict(*args, **kwargs)
        self._steps = int(self.steps)
        return result

    def _count(self, losses: Tensor) -> None:
        self.total += losses
        self.steps += 1
        self._steps += 1  # on the host as well, because reading a tensor waits for the device
        if self._steps % self._period:
            return
        mean = self.total / self._period
        if self._steps > self._period:
            ratio = mean / self.previous.clamp(min=1e-12)
            self.weights.copy_(len(ratio) * torch.softmax(ratio / self._temperature, 0))
        self.previous.copy_(mean)
        self.total.zero_()


class GeometricLoss(nn.Module):
    """
    GLS: the geometric mean of the losses, in which their scales cancel.

    Chennupati et al., 'MultiNet++', CVPR Workshops 2019, section 3.2. A loss of 0, which a batch
    without truth for a task has, is left out: it would take the other tasks' gradients with it.
    """

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise."""
        stacked = torch.stack(list(losses.values()))
        mean = mean_over_processes(stacked.detach())
        known = mean > 0
        count, mean = known.sum().clamp(min=1), mean.clamp(min=1e-12).where(known, 1)
        product = (mean.log().sum() / count).exp()
        # Value and gradient of the geometric mean, yet linear in this process's losses, so that
        # gradients may be averaged over the processes.
        return (product * stacked / mean).sum() / count


def pcgrad(products: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
    """
    Project each gradient off those that it conflicts with, in random order, and add them up.

    Yu et al., 'Gradient Surgery for Multi-Task Learning', NeurIPS 2020, algorithm 1. A projected
    gradient stays a combination of the given ones, so its coefficients are all that is kept.

    :param products: (T, T) dot products of the tasks' gradients.
    :returns: (T,) factor of each gradient in the step.
    """
    tasks = len(products)
    coefficients = np.eye(tasks)
    for own in coefficients:
        index = int(own.argmax())
        for other in torch.randperm(tasks, generator=generator).tolist():
            product = own @ products[:, other]
            if other != index and product < 0:
                own[other] -= product / products[other, other]
    return coefficients.sum(0)


def cagrad(products: np.ndarray, c: float = 0.4) -> np.ndarray:
    """
    Step where the worst-off task gains most, within c |g0| of the mean gradient g0.

    Liu et al., 'Conflict-Averse Gradient Descent', NeurIPS 2021, equation 4: with the w of the
    simplex that minimises g_w . g0 + c |g0| |g_w|, g_w = sum of w_i g_i, the step is
    g0 + c |g0| / |g_w| g_w. The function is convex, and is minimised by projected gradients.
    """
    tasks = len(products)
    scale = np.trace(products) / tasks
    if scale <= 0:
        return np.full(tasks, 1 / tasks)
    products = products / scale
    mean = np.full(tasks, 1 / tasks)
    radius = c * np.sqrt(max(mean @ products @ mean, 0.0))
    along = products @ mean

    def value(w):
        return w @ along + radius * np.sqrt(max(w @ products @ w, 1e-16))

    w, step = mean, 1.0
    for _ in range(300):
        gradient = along + radius * (products @ w) / np.sqrt(max(w @ products @ w, 1e-16))
        candidate = _onto_simplex(w - step * gradient)
        # Armijo's rule on the projected step keeps it from overshooting.
        if value(candidate) <= value(w) + 0.3 * gradient @ (candidate - w):
            if np.abs(candidate - w).max() < 1e-10:
                break
            w, step = candidate, min(2 * step, 1e3)
        else:
            step /= 2
    return mean + radius / np.sqrt(max(w @ products @ w, 1e-16)) * w


def nash(products: np.ndarray) -> np.ndarray:
    """
    Return the bargaining solution of Nash-MTL: the factors a > 0 with G a = 1 / a.

    Navon et al., 'Multi-Task Learning as a Bargaining Game', ICML 2022, claim 3.1. They are where
    the convex a' G a / 2 - sum log a is least, which Newton's method finds in a few steps. A
    little is added to the diagonal, because for opposite gradients G a = 1 / a has no solution.
    """
    tasks = len(products)
    scale = np.trace(products) / tasks
    if scale <= 0:
        return np.ones(tasks)
    matrix = products / scale + 1e-6 * np.eye(tasks)

    def value(a):
        return 0.5 * a @ matrix @ a - np.log(a).sum()

    a = 1 / np.sqrt(np.diag(matrix) + 1e-12)
    for _ in range(100):
        gradient = matrix @ a - 1 / a
        if np.abs(gradient * a).max() < 1e-10:
            break
        move = np.linalg.solve(matrix + np.diag(1 / a ** 2), -gradient)
        shrinking = move < 0
        # Stay among the positive ones, then as far as the value falls.
        step = min(1.0, 0.9 * np.min(-a[shrinking] / move[shrinking], initial=np.inf))
        while step > 1e-12 and value(a + step * move) > value(a) + 0.1 * step * gradient @ move:
            step /= 2
        a = a + step * move
    return a / np.sqrt(scale)


GRADIENT_WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'pcgrad': pcgrad,
    'cagrad': cagrad,
    'nash': nash,
}

WEIGHTINGS = ('equal', 'fixed', 'uncertainty', 'dwa', 'gls', *GRADIENT_WEIGHTINGS)


def make_weighting(name: str, tasks: Sequence[str], loss_weights: Mapping[str, float],
                   period: int) -> nn.Module:
    """
    Return the weighting of losses; for one of gradients, the plain sum that is shown.

    :param loss_weights: task -> factor, for ``fixed``.
    :param period: steps of a period of dynamic weight averaging.
    :raises ValueError: for an unknown name, or factors that no weighting would use.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f'weighting: {name!r}; choose one of {", ".join(WEIGHTINGS)}')
    if loss_weights and name != 'fixed':
        raise ValueError(f'loss_weights: are for weighting fixed, not {name}; leave them out')
    for task in loss_weights:
        if task not in tasks:
            raise ValueError(f'loss_weights: unknown task {task!r}; tasks are {", ".join(tasks)}')
    if name == 'uncertainty':
        return UncertaintyWeighting(tasks)
    if name == 'dwa':
        return DynamicWeightAverage(tasks, period)
    if name == 'gls':
        return GeometricLoss()
    return FixedWeighting(tasks, loss_weights)


def combine_gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter],
                      method: Callable[[np.ndarray], np.ndarray]) -> None:
    """
    Set the gradient of every parameter from the tasks' own gradients.

    Shared parameters, which more than one loss depends on, get the combination that `method`
    chooses; the others keep the gradient of their task.

    :raises ValueError: if the tasks share nothing.
    """
    rows = []
    for index, loss in enumerate(losses):
        last = index == len(losses) - 1
        rows.append(torch.autograd.grad(loss, parameters, retain_graph=not last,
                                        allow_unused=True))
    users = [sum(gradient is not None for gradient in column)
             for column in zip(*rows, strict=True)]
    shared = [index for index, count in enumerate(users) if count > 1]
    if not shared:
        raise ValueError('weighting: the tasks share no parameters, so their gradients cannot '
                         'conflict; choose a weighting of losses, for example equal')
    matrix = torch.stack([
        torch.cat([_dense(row[index], parameters[index]).flatten() for index in shared])
        for row in rows])
    matrix = mean_over_processes(matrix)
    # Those of the first process: pcgrad draws an order, and each process has its own numbers.
    factors = agree(method((matrix @ matrix.T).double().cpu().numpy()))
    combined = torch.tensor(factors).to(matrix) @ matrix
    sizes = [parameters[index].numel() for index in shared]
    for index, part in zip(shared, combined.split(sizes), strict=True):
        _set_gradient(parameters[index], part)
    for index, count in enumerate(users):
        if count == 1:
            own = next(row[index] for row in rows if row[index] is not None)
            _set_gradient(parameters[index], mean_over_processes(own))


def _set_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Set it in the parameter's layout: a fused optimiser pairs them as they lie in memory."""
    parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))


def _dense(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def _onto_simplex(x: np.ndarray) -> np.ndarray:
    """Return the nearest point whose coordinates are at least 0 and add up to 1."""
    falling = np.sort(x)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(x) + 1)
    return np.maximum(x - excess[np.nonzero(falling > excess)[0][-1]], 0)
