# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Where a training stands, and the learning rate there."""

import math


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """
    Return the factor on the peak learning rate: a linear rise, then half a cosine down to 0.

    :param progress: share of the training that is done, 0 to 1, by time or by steps.
    :param warm_up: share of the training that the rise takes.
    """
    if progress < warm_up:
        return max(progress / warm_up, 1e-3)
    done = min(1.0, (progress - warm_up) / (1 - warm_up))
    return 0.5 * (1 + math.cos(math.pi * done))


class Budget:
    """
    The length of a training: seconds of work, or a number of steps.

    Time is counted by the caller, who keeps it over interruptions: only time spent training
    counts, so that a resumed run goes on where it stopped.
    """

    def __init__(self, seconds: float | None, steps: int | None) -> None:
        if (seconds is None) == (steps is None):
            raise ValueError('budget: give either minutes or steps')
        if (seconds if steps is None else steps) <= 0:
            raise ValueError(f'budget: {seconds or steps} is not above 0')
        self.seconds, self.steps = seconds, steps

    def progress(self, elapsed: float, step: int) -> float:
        """Return the share that is done, 0 to 1, after `elapsed` seconds and `step` steps."""
        share = elapsed / self.seconds if self.steps is None else step / self.steps
        return min(1.0, share)
