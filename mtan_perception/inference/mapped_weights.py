# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The optimised network's weights in a file that is mapped into memory.

Folding takes seconds, and as much memory again; the next start is spared both.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn, Tensor

from mtan_perception import __version__
from mtan_perception.inference.artefacts import code_hash, provide
from mtan_perception.inference.convolution import Factory
from mtan_perception.inference.mapped_files import map_file, trim
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

_SOURCES = ('network/*.py', *(f'inference/{name}.py' for name in (
    'convolution', 'mapped_weights', 'optimize')))
"""What the file depends on."""
_ALIGNMENT = 64  # bytes: a cache line, and the widest register
_LARGE = 1 << 20  # bytes: after as many, what malloc keeps of intermediates is given back


class MappedWeights:
    """
    Buffers in a file, one after the other as they were placed.

    :param path: what `write` wrote.
    :param memory_format: as given to `write`.
    """

    def __init__(self, path: Path, memory_format: torch.memory_format) -> None:
        with open(path, 'rb') as file:
            self._bytes = torch.from_numpy(map_file(file, np.uint8))
        self._memory_format = memory_format
        self._end = 0

    def place(self, buffer: Tensor) -> Tensor:
        """Return the next buffer of the file, which has the shape and the type of this one."""
        start, self._end = self._end, self._end + _padded(buffer.nbytes)
        stride = torch.empty(buffer.shape, device='meta',
                             memory_format=_layout(buffer, self._memory_format)).stride()
        content = self._bytes[start:start + buffer.nbytes].view(buffer.dtype)
        return content.as_strided(buffer.shape, stride)


def fingerprint(network: nn.Module) -> str:
    """Return a hash of the tensors, their names, and what the modules say of themselves."""
    digest = hashlib.blake2b(digest_size=16)
    # No tensor tells a convolution's stride and dilation.
    digest.update(repr(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def optimize_mapped(network: MTANDeepLabv3, factory: Factory,
                    memory_format: torch.memory_format) -> OptimizedMTAN:
    """
    Return the optimised network with its weights in a file that is kept between starts.

    :param network: in float32 on the CPU; it is used up.
    :param factory: makes the convolutions.
    :param memory_format: of their weights.

    Where the file cannot be had, a warning says why and the weights are in memory.
    """
    key = {'weights': fingerprint(network), 'mtan_perception': __version__,
           'code': code_hash(*_SOURCES), 'torch': torch.__version__,
           'convolutions': factory.__name__, 'memory_format': str(memory_format)}
    try:
        weights = MappedWeights(provide(
            'weights.bin', key, lambda path: write(path, network, factory, memory_format)),
            memory_format)
    except OSError as error:
        _LOGGER.warning('cache: %s; the next start will have to fold the weights again, and more '
                        'memory is used: give $MTAN_CACHE a folder with enough space', error)
        return OptimizedMTAN(network, factory)
    return OptimizedMTAN(network.to('meta'), factory, weights.place)


def write(path: Path, network: MTANDeepLabv3, factory: Factory,
          memory_format: torch.memory_format) -> None:
    """Write the optimised network's weights, of which few are in memory at a time."""
    with open(path, 'wb') as file:
        def place(buffer: Tensor) -> Tensor:
            content = buffer.contiguous(memory_format=_layout(buffer, memory_format))
            flat = content.as_strided((content.numel(),), (1,))
            file.write(flat.view(torch.uint8).numpy())
            file.write(bytes(_padded(flat.nbytes) - flat.nbytes))
            if flat.nbytes >= _LARGE:
                trim()
            return buffer.to('meta')
        OptimizedMTAN(network, factory, place)
    trim()


def _layout(buffer: Tensor, memory_format: torch.memory_format) -> torch.memory_format:
    return memory_format if buffer.dim() == 4 else torch.contiguous_format


def _padded(count: int) -> int:
    """Return the bytes that `count` of them take with the gap up to the next buffer."""
    return -(-count // _ALIGNMENT) * _ALIGNMENT
