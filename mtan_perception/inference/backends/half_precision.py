# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a precision holds a network's weights and features."""

from collections.abc import Callable, Mapping
import logging

import torch
from torch import Tensor

from mtan_perception.inference.convolution import Convolution
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}

_PROBE = 128
"""Side in pixels of the noise that shows whether a precision holds a network's features."""


def fit_precision(load: Callable[[], MTANDeepLabv3], device: torch.device,
                  precision: str) -> tuple[str, OptimizedMTAN]:
    """
    Return the precision, or fp32 with a warning where it does not do, and the network in it.

    :param load: returns the network in float32 on the CPU; called anew for fp32.
    :param precision: 'fp32', 'fp16' or 'bf16'.
    """
    network, misfit = _in_precision(load, device, precision)
    if misfit is None or precision == 'fp32':
        return precision, network
    del network
    _LOGGER.warning('precision: %s out of the range of %s; going on with fp32', misfit, precision)
    return 'fp32', _in_precision(load, device, 'fp32')[0]


def _in_precision(load: Callable[[], MTANDeepLabv3], device: torch.device,
                  precision: str) -> tuple[OptimizedMTAN, str | None]:
    """Return the network, and what of it the precision cannot hold."""
    network = OptimizedMTAN(load(), Convolution)
    misfit = large_weight(network, precision)
    network.to(device, DTYPES[precision], memory_format=torch.channels_last)
    return network, misfit or large_features(network.logits, device, precision)


def large_weight(network: OptimizedMTAN, precision: str) -> str | None:
    """Return which weight of a network in float32 the precision cannot hold, None if it can."""
    largest = max(tensor.abs().max().item() for tensor in network.state_dict().values())
    fits = largest <= torch.finfo(DTYPES[precision]).max
    return None if fits else f'a weight of {largest:.3g} is'


@torch.inference_mode()
def large_features(logits: Callable[[Tensor], Mapping[str, Tensor]], device: torch.device,
                   precision: str) -> str | None:
    """
    Return which features the precision cannot hold, None if it seems to hold all.

    :param logits: the network in that precision, on the device.
    """
    if precision != 'fp16':  # the others reach as far as float32
        return None
    noise = torch.randn(1, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    found = logits(noise.to(device, torch.float16, memory_format=torch.channels_last))
    if all(part.isfinite().all() for part in found.values()):
        return None
    return 'features of noise are'
