# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch: on a CPU with Winograd convolutions, on CUDA in half precision as CUDA graphs."""

from collections.abc import Callable
import logging

import torch
from torch import Tensor

from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.convolution import Convolution, cpu_convolution
from mtan_perception.inference.mapped_weights import optimize_mapped
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import finish
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}

# A graph holds the memory of its activations: keep those of the last few sizes and sets of tasks.
_MAX_GRAPHS = 8


class TorchBackend:
    """
    Run the optimised network in PyTorch.

    :param compiled: let torch.compile fuse what it can; it needs a C++ compiler, and minutes.

    Weights that leave the range of the precision are run in fp32, with a warning.
    """

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str, compiled: bool = False) -> None:
        self.name = 'compile' if compiled else 'torch'
        self.precision, self._device, self._axes = precision, device, axes
        # Winograd's sums cancel, which half precision does not stand; torch.compile and tensor
        # cores do better with plain convolutions.
        if compiled or device.type != 'cpu' or precision != 'fp32':
            network = OptimizedMTAN(load(), Convolution)
            self.precision = _hold(network, precision)
        else:
            network = optimize_mapped(load(), cpu_convolution, torch.channels_last)
        self._dtype = DTYPES[self.precision]
        # Convolutions on CPUs and on tensor cores work on this layout and convert from others.
        self._network = network.to(device, self._dtype, memory_format=torch.channels_last)
        self._run = torch.compile(self._finished, dynamic=False) if compiled else self._finished
        self._captures = device.type == 'cuda'
        self._graphs: LatestUsed[Callable[[Tensor], dict[str, Tensor]]] = LatestUsed(_MAX_GRAPHS)

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks."""
        if not self._captures or x.shape[0] > 1:
            return self._run(x, tasks)
        try:
            graph = self._graphs.use((tuple(x.shape), tasks), lambda: self._capture(x, tasks))
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._captures = False
            _LOGGER.warning('no CUDA graph (%s); going on without, each kernel launched by itself',
                            str(error).splitlines()[0])
            return self._run(x, tasks)
        return graph(x)

    def _finished(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        size = tuple(x.shape[-2:])
        x = x.to(self._dtype, memory_format=torch.channels_last)
        return finish(self._network.logits(x, tasks), size, self._axes)

    def _capture(self, x: Tensor, tasks: tuple[str, ...]) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return a call that replays the kernels, without the time to launch each of them."""
        _LOGGER.info('capturing a CUDA graph of %s at %dx%d', ', '.join(tasks), *x.shape[-2:])
        inputs = x.clone()
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # cuDNN chooses its kernels, torch.compile compiles
                self._run(inputs, tasks)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            outputs = self._run(inputs, tasks)

        def replay(x: Tensor) -> dict[str, Tensor]:
            inputs.copy_(x)
            graph.replay()
            return outputs
        return replay


def _hold(network: OptimizedMTAN, precision: str) -> str:
    """Return the precision, or fp32 with a warning where it cannot hold the weights."""
    largest = max(tensor.abs().max().item() for tensor in network.state_dict().values())
    if largest <= torch.finfo(DTYPES[precision]).max:
        return precision
    _LOGGER.warning('precision: a weight of %.3g is out of the range of %s; going on with fp32',
                    largest, precision)
    return 'fp32'
