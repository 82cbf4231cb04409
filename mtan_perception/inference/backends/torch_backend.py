# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch: on a CPU with Winograd convolutions, on CUDA as CUDA graphs."""

from collections.abc import Callable
import logging
import time

import torch
from torch import Tensor

from mtan_perception.inference.backends.cuda_graphs import CudaGraphs
from mtan_perception.inference.backends.half_precision import DTYPES, fit_precision
from mtan_perception.inference.backends.torch_images import TorchImages
from mtan_perception.inference.convolution import cpu_convolution
from mtan_perception.inference.errors import BackendError, first_line
from mtan_perception.inference.mapped_weights import optimize_mapped
from mtan_perception.inference.postprocess import finish
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)


class TorchBackend:
    """
    Run the optimised network in PyTorch.

    :param compiled: let torch.compile fuse what it can; it needs a C++ compiler, and minutes.

    Weights or features that leave the range of the precision are run in fp32, with a warning.
    """

    images = TorchImages

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str, compiled: bool = False) -> None:
        self.name = 'compile' if compiled else 'torch'
        # Winograd's sums cancel, which half precision does not stand; torch.compile and tensor
        # cores do better with plain convolutions.
        if compiled or device.type != 'cpu' or precision != 'fp32':
            self.precision, network = fit_precision(load, device, precision)
        else:
            # Convolutions on CPUs and on tensor cores work on this layout, convert from others.
            self.precision, network = precision, optimize_mapped(
                load(), cpu_convolution, torch.channels_last).to(
                    memory_format=torch.channels_last)
        dtype = DTYPES[self.precision]

        # No method: as one it would keep the network alive until the next garbage collection.
        def run(x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
            size = tuple(x.shape[-2:])
            x = x.to(dtype, memory_format=torch.channels_last)
            return finish(network.logits(x, tasks), size, axes)
        self._network = network
        self._built: set[tuple[tuple[int, ...], tuple[str, ...]]] = set()
        self._run = _compile(run, self._built) if compiled else run
        if device.type == 'cuda':
            self._run = CudaGraphs(self._run, device)

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks, in memory that the next call may use."""
        self._network.merge(tasks)  # once, and not while it is compiled or captured
        return self._run(x, tasks)

    @torch.inference_mode()
    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Compile for a shape and tasks, or capture their graph, where that is what runs."""
        if isinstance(self._run, CudaGraphs):
            self._network.merge(tasks)
            return self._run.prepare(shape, tasks)
        if self.name == 'torch' or (shape, tasks) in self._built:
            return False
        self(torch.zeros(shape), tasks)
        return True


def _compile(run: Callable, built: set[tuple[tuple[int, ...], tuple[str, ...]]]) -> Callable:
    """
    Return it compiled; it raises BackendError where the compiler fails.

    :param built: for which shapes and tasks; filled by its calls.
    """
    from torch._dynamo.exc import TorchDynamoException
    compiled = torch.compile(run, dynamic=False)

    def attempt(x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        key = tuple(x.shape), tasks
        start = time.perf_counter()
        if key not in built:
            _LOGGER.info('compile: building %s at %dx%d, which may take minutes ...',
                         ', '.join(tasks), *x.shape[-2:])
        try:
            images = compiled(x, tasks)
        except TorchDynamoException as error:
            reason = first_line(error)
        else:
            if key not in built:
                built.add(key)
                _LOGGER.info('compile: built in %.1f s', time.perf_counter() - start)
            return images
        raise BackendError(f'torch.compile: {reason}')  # here, where what failed is let go
    return attempt
