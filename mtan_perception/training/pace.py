# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a training is, and what it loses, between two rows of its log."""

from collections.abc import Mapping
import time

import torch
from torch import Tensor

from mtan_perception.training import distributed


class Pace:
    """Mean losses and speed since the last row, without waiting for the device at each step."""

    def __init__(self, tasks: int, device: torch.device) -> None:
        self._total = torch.zeros(tasks, device=device)
        self._images, self.steps, self.rate = 0, 0, 0.0
        self.now = self._shown = self._since = time.perf_counter()

    @property
    def waited(self) -> float:
        """Seconds since the last row."""
        return self.now - self._since

    def lap(self, losses: Mapping[str, Tensor], images: int) -> float:
        """Count a step in; return its seconds."""
        self._total += torch.stack(list(losses.values())).to(self._total)
        self._images += images
        self.steps += 1
        before, self.now = self.now, time.perf_counter()
        self.rate = self._images / max(self.waited, 1e-9)
        return self.now - before

    def reset(self) -> float:
        """Start the clock anew after something that is no step."""
        pause = time.perf_counter() - self.now
        self.now += pause
        self._since += pause
        return self.now

    def due(self, seconds: float) -> bool:
        """Return whether so much time has passed since this last was true."""
        if self.now - self._shown < seconds:
            return False
        self._shown = self.now
        return True

    def mean(self) -> list[float]:
        """Return the mean losses over all processes since the last row."""
        return (self._total / max(1, self.steps)).tolist()

    def take(self) -> tuple[list[float], float]:
        """Return mean losses over all processes and images a second, and start a new row."""
        mean = distributed.mean_over_processes(self._total / max(1, self.steps)).tolist()
        self._total.zero_()
        self._images = self.steps = 0
        self._since = self.now
        return mean, self.rate
