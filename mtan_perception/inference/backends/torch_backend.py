# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch: on a CPU with Winograd convolutions, on CUDA in half precision as CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import logging

import torch
from torch import Tensor

from mtan_perception.inference.backends.half_precision import fit_precision
from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.convolution import cpu_convolution
from mtan_perception.inference.devices import DTYPES
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.mapped_weights import optimize_mapped
from mtan_perception.inference.postprocess import finish
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

# Graphs to keep: those used last, each for a number of images, a size and a set of tasks.
_MAX_GRAPHS = 8
# More images at once give the device enough to do for each kernel that is launched: no graph.
_MAX_BATCH = 4


class TorchBackend:
    """
    Run the optimised network in PyTorch.

    :param compiled: let torch.compile fuse what it can; it needs a C++ compiler, and minutes.

    Weights or features that leave the range of the precision are run in fp32, with a warning.
    """

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str, compiled: bool = False) -> None:
        self.name = 'compile' if compiled else 'torch'
        self._device = device
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
        self._run = _compile(run) if compiled else run
        self._captures = device.type == 'cuda'
        self._graphs: LatestUsed[Callable[[Tensor], dict[str, Tensor]]] = LatestUsed(_MAX_GRAPHS)
        self._pool: tuple[int, int] | None = None

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks, in memory that the next call may use."""
        self._network.merge(tasks)  # once, and not while it is compiled or captured
        if self._captures and x.shape[0] <= _MAX_BATCH:
            try:
                return self._graphs.use(
                    (tuple(x.shape), tasks), lambda: self._capture(x, tasks))(x)
            except BackendError:
                raise
            except RuntimeError as error:
                # That of the kernel that could not be captured; the end of capturing fails too.
                reason = str(error.__context__ or error).splitlines()[0]
            self._captures = False
            self._graphs.clear()
            torch.cuda.empty_cache()
            _LOGGER.warning('no CUDA graph (%s); going on without, each kernel launched by itself',
                            reason)
        return self._run(x, tasks)

    def _capture(self, x: Tensor, tasks: tuple[str, ...]) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return a call that replays the kernels, without the time to launch each of them."""
        _LOGGER.info('capturing a CUDA graph of %s at %dx%d', ', '.join(tasks), *x.shape[-2:])
        run, inputs = self._run, x.clone()
        if self._pool is None:
            # One for all graphs: they run one at a time, and what one gives is used before the
            # next one runs.
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with _measured_kernels():
            with torch.cuda.stream(stream):
                for _ in range(3):  # cuDNN chooses its kernels, torch.compile compiles
                    run(inputs, tasks)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            # Without a stream of this device it would be one of the first device that was used.
            # Where capturing fails, torch leaves it the current one: hence the outer statement.
            with torch.cuda.stream(stream), torch.cuda.graph(
                    graph, pool=self._pool, stream=stream):
                outputs = run(inputs, tasks)

        def replay(x: Tensor) -> dict[str, Tensor]:
            inputs.copy_(x)
            graph.replay()
            return outputs
        return replay


@contextmanager
def _measured_kernels() -> Iterator[None]:
    """Let cuDNN choose its kernels by their time; outside that is the program's own choice."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _compile(run: Callable) -> Callable:
    """Return it compiled; it raises BackendError where the compiler fails."""
    from torch._dynamo.exc import TorchDynamoException
    compiled = torch.compile(run, dynamic=False)

    def attempt(x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        try:
            return compiled(x, tasks)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
        raise BackendError(f'torch.compile: {reason}')
    return attempt
