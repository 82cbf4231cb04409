# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Triton: kernels of our own on CUDA, in half precision, as CUDA graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import hashlib

import torch
from torch import Tensor

from mtan_perception.inference.artefacts import code_hash
from mtan_perception.inference.backends.cuda_graphs import CudaGraphs
from mtan_perception.inference.backends.half_precision import DTYPES, large_features, large_weight
from mtan_perception.inference.backends.torch_images import TorchImages
from mtan_perception.inference.devices import is_out_of_memory
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.network import MTANDeepLabv3

# The first generation with the matrix units that the kernels are written for.
_MIN_CAPABILITY = 8, 0


class TritonBackend:
    """
    Run the optimised network by kernels that fuse what follows each convolution.

    :raises BackendError: without Triton, on a device that it does not do, in another precision,
        and for a network that the kernels or the precision do not hold.
    """

    name = 'triton'
    images = TorchImages

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str) -> None:
        if device.type != 'cuda' or precision == 'fp32':
            raise BackendError('it computes in fp16 and bf16 on CUDA')
        if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
            raise BackendError('it needs a GPU of compute capability '
                               f"{'.'.join(map(str, _MIN_CAPABILITY))} or later")
        try:
            import triton

            from mtan_perception.inference.backends import triton_choices, triton_layers
            from mtan_perception.inference.backends.triton_network import FusedMTAN
        except ImportError as error:
            raise BackendError(f'triton cannot be imported ({error}); install the one that '
                               'comes with torch') from error
        self.precision = precision
        optimized = OptimizedMTAN(load())
        misfit = large_weight(optimized, precision)
        if misfit is None:
            network = FusedMTAN(optimized, lambda buffer: buffer.to(device, DTYPES[precision]))
            with triton_choices.unmeasured(), _launching_on(device):
                misfit = large_features(network.logits, device, precision)
        if misfit is not None:
            raise BackendError(f'{misfit} out of the range of {precision}')
        key = {'network': _shapes(optimized), 'precision': precision,
               'code': code_hash('inference/backends/triton_*.py'),
               'torch': torch.__version__, 'triton': triton.__version__,
               'cudnn': str(torch.backends.cudnn.version()),
               'device': f'{torch.cuda.get_device_name(device)} as {device}'}

        def run(x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
            return triton_layers.finish(network.logits(x, tasks), tuple(x.shape[-2:]), axes)

        def prepare(x: Tensor, tasks: tuple[str, ...]) -> None:
            triton_choices.keep_choices(key | {
                'images': 'x'.join(map(str, x.shape)), 'tasks': '+'.join(tasks)},
                lambda: run(x, tasks))
        self._run, self._device = CudaGraphs(run, device, prepare), device

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks, in memory that the next call may use."""
        with _launching_on(self._device):
            return self._run(x, tasks)

    @torch.inference_mode()
    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Choose the kernels for a shape and tasks, and capture their graph."""
        with _launching_on(self._device):
            return self._run.prepare(shape, tasks)


def _shapes(network: OptimizedMTAN) -> str:
    """Return a hash of the layers without their weights."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
    return hashlib.blake2b(f'{network!r} {shapes}'.encode(), digest_size=16).hexdigest()


@contextmanager
def _launching_on(device: torch.device) -> Iterator[None]:
    """Launch Triton's kernels there; BackendError where one cannot be compiled or launched."""
    try:
        with torch.cuda.device(device):
            yield
    except BackendError:
        raise
    except Exception as error:  # of looking for the driver Triton asserts that it is found
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        raise BackendError(f'triton: {reason}') from error
