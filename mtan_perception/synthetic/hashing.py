# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Random numbers that depend on a scene's seed and a name, and on nothing else.

An integer hash in tensor operations: vectorised over seeds, bit for bit the same on every device,
and untouched by torch's own generator. Two draws with one name give the same numbers, so the order
of calls does not matter either.
"""

from functools import lru_cache
import math
import zlib

import torch

_MASK = 0xFFFFFFFF


def mix(value):
    """
    Scramble integers to 32 well mixed bits.

    :param value: int64 tensor of any shape; only its low 32 bits count.
    :return: int64 tensor of that shape in 0..2**32 - 1.

    Two multiply-and-xorshift rounds. Both multipliers are below 2**31, so no product leaves int64.
    """
    value = value & _MASK
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _MASK
    return value ^ (value >> 15)


@lru_cache(maxsize=1024)
def _stream(name, count, device):
    """Return `count` well mixed numbers that only the name decides."""
    counter = torch.arange(1, count + 1, device=device)
    return mix(mix(counter) + zlib.crc32(name.encode()))


class Dice:
    """Draws for a batch of scenes: the same name gives the same numbers for the same seed."""

    def __init__(self, seeds):
        """Take the seeds, an int64 tensor (N,); all 64 bits count."""
        self.seeds = seeds
        self._state = mix(mix(seeds) + 0x632BE59B * mix(seeds >> 32))[:, None]

    @property
    def device(self):
        """Return the device on which the numbers are made."""
        return self.seeds.device

    def bits(self, name, *shape):
        """Return int64 (N, *shape) in 0..2**32 - 1."""
        stream = _stream(name, math.prod(shape), self.device)
        return mix(self._state ^ stream).reshape(len(self.seeds), *shape)

    def uniform(self, name, *shape, low=0.0, high=1.0):
        """Return float32 (N, *shape) in [low, high)."""
        unit = (self.bits(name, *shape) >> 8).to(torch.float32) * 2.0 ** -24
        return low + (high - low) * unit

    def chance(self, name, *shape, p=0.5):
        """Return bool (N, *shape), true with probability p."""
        return self.uniform(name, *shape) < p
