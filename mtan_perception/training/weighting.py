# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How the losses of several tasks become one."""

from collections.abc import Mapping

import torch
from torch import nn, Tensor


class FixedWeighting(nn.Module):
    """The sum of the losses, each times its factor (1 where none is given)."""

    def __init__(self, tasks, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._weights = {name: float((weights or {}).get(name, 1.0)) for name in tasks}

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to minimise."""
        return torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum()
