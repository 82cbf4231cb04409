# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of a network's weights, the one that is validated and shipped."""

import copy

import torch
from torch import nn


class WeightAverage:
    """
    Average over about the last `share` of all steps, weights and BatchNorm statistics alike.

    The window grows with the training, so a short run and a long one need the same setting.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._share = share

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`, counted from 1."""
        part = 1 / max(1.0, self._share * step)
        floats, sources = [], []
        for mean, value in zip(self.network.state_dict().values(),
                               network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                floats.append(mean)
                sources.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(floats, sources, part)
