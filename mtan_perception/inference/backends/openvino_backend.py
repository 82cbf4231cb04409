# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the fastest on a CPU (Intel's and AMD's x86, and Arm); an optional extra."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import functools
import logging
import time
from typing import Any

import torch
from torch import Tensor

from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.convolution import (
    Convolution,
    cpu_convolution,
    Factory,
    split_convolution,
)
from mtan_perception.inference.devices import uses_matrix_units
from mtan_perception.inference.errors import BackendError, in_one_line
from mtan_perception.inference.mapped_weights import optimize_mapped, reading_once
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import finish, IMAGES
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

_HINTS = {'fp32': 'f32', 'bf16': 'bf16'}

# Each compiled model holds weights of its own: keep those of the last few sizes and sets of tasks.
_MAX_MODELS = 3
# Another is built in the place of one only that was not used for so many calls: four that come in
# turn would push each other out, and be built for ever.
_UNUSED_CALLS = 30


class OpenVINOBackend:
    """
    Run the optimised network and its post-processing as one OpenVINO model for a size and tasks.

    The first size and tasks are built at once, and what `prepare` is called for. Others are built
    aside when they come a second time; meanwhile a model of that size with more tasks runs them,
    or else torch: no frame waits for a model, and none is built for a photograph that is the only
    one of its size. So it stays where more sizes and tasks are in use than models are kept.

    :raises BackendError: without OpenVINO, on another device than the CPU, and in fp16.
    """

    name = 'openvino'

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str) -> None:
        if device.type != 'cpu' or precision not in _HINTS:
            raise BackendError(f'here it runs on the CPU in {" or ".join(_HINTS)}, '
                               f'not on {device} in {precision}')
        try:
            import openvino  # noqa: F401

            # An old one lacks some of what is needed of it.
            import mtan_perception.inference.backends.openvino_graph  # noqa: F401
        except ImportError as error:
            raise BackendError(f'{error}; install it with: python3 -m pip install --upgrade '
                               'openvino') from error
        self.precision, self._axes, self._load = precision, axes, load
        self._networks: list[OptimizedMTAN] = []
        self._optimize(_fastest(precision))
        self._requests: LatestUsed[Any] = LatestUsed(_MAX_MODELS)
        self._seen: set[tuple] = set()
        self._calls = 0
        self._last_calls: dict[tuple, int] = {}
        """By size and tasks, the call that last used the model."""
        self._building: tuple[tuple, Future] | None = None
        self._builder = ThreadPoolExecutor(1, 'openvino-builder')
        self._threads = torch.get_num_threads()

    def _optimize(self, factory: Factory) -> None:
        """Make the network that models are built from; earlier ones use their network's memory."""
        self._networks.append(optimize_mapped(self._load(), factory, torch.contiguous_format))
        self._splits = factory is split_convolution

    @property
    def _network(self) -> OptimizedMTAN:
        return self._networks[-1]

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks."""
        size = tuple(x.shape[-2:])
        request = self._find(size, tasks)
        if request is None:
            x = x.contiguous(memory_format=torch.channels_last)
            return finish(self._network.logits(x, tasks), size, self._axes)
        parts = []
        for image in x.numpy():
            try:
                results = request.infer({0: image[None]}, share_inputs=True)
            except RuntimeError as error:
                raise BackendError(f'openvino failed: {in_one_line(error)}') from error
            parts.append({name: torch.from_numpy(results[name])
                          for task in tasks for name in IMAGES[task]})
        if len(parts) == 1:  # torch.cat would copy
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Build for a shape, unless a model runs it already or would lose its place to it."""
        key = tuple(shape[-2:]), tasks
        if self._able(*key) or not self._has_room():
            return False
        if self._building is not None and self._building[0] == key:
            self._take_over_building()
        else:  # by the thread that may be building another
            self._take_over(key, self._builder.submit(self._compile, *key))
        return True

    def _able(self, size: tuple[int, int], tasks: tuple[str, ...]) -> list[tuple]:
        """Return the keys of the models that run a size and at least these tasks."""
        return [other for other in self._requests
                if other[0] == size and set(tasks) <= set(other[1])]

    def _find(self, size: tuple[int, int], tasks: tuple[str, ...]) -> Any | None:
        """Return the request for a size and at least these tasks, None while there is none."""
        self._calls += 1
        key = size, tasks
        if self._requests and key not in self._requests:
            self._build_aside(key)
            able = self._able(*key)
            if not able:
                return None
            key = min(able, key=lambda other: len(other[1]))  # its own, once that is there
        self._last_calls[key] = self._calls
        return self._requests.use(key, lambda: self._compile(*key))

    def _build_aside(self, key: tuple) -> None:
        """Begin to build what comes a second time, and take over what was built meanwhile."""
        if self._building is not None and self._building[1].done():
            self._take_over_building()
        elif key not in self._seen:
            self._seen.add(key)
        elif self._building is None and self._has_room():
            self._building = key, self._builder.submit(self._compile, *key)

    def _take_over_building(self) -> None:
        """Keep the model that is built aside, of which there is one."""
        built, self._building = self._building, None
        self._take_over(*built)

    def _take_over(self, key: tuple, model: Future) -> None:
        """Keep a model, once it is built, as one that is in use."""
        self._last_calls[key] = self._calls
        self._requests.use(key, model.result)

    def _has_room(self) -> bool:
        """Tell whether one more model would take the place of none that is in use."""
        if len(self._requests) < _MAX_MODELS:
            return True
        oldest = next(iter(self._requests))
        return self._calls - self._last_calls[oldest] > _UNUSED_CALLS

    def _compile(self, size: tuple[int, int], tasks: tuple[str, ...]) -> Any:
        import openvino

        from mtan_perception.inference.backends.openvino_graph import build_model, rounds_products
        _LOGGER.info('openvino: building %s at %dx%d ...', ', '.join(tasks), *size)
        start = time.perf_counter()
        try:
            # The default precision would be whatever the processor is fastest in.
            with reading_once():
                compiled = openvino_core().compile_model(build_model(
                    self._network, size, tasks, self._axes, self.precision == 'fp32'), 'CPU', {
                    'PERFORMANCE_HINT': 'LATENCY',
                    'INFERENCE_PRECISION_HINT': _HINTS[self.precision],
                    'INFERENCE_NUM_THREADS': self._threads})
                rounds = self._splits and rounds_products(compiled)
            request = None if rounds else compiled.create_infer_request()
        except RuntimeError as error:
            raise BackendError(
                f'openvino cannot build the network: {in_one_line(error)}') from error
        if request is None:
            del compiled
            _LOGGER.warning(
                'openvino %s rounds the sums of bfloat16 products; going on with those of '
                'float32, which are slower: try another version', openvino.__version__)
            self._optimize(cpu_convolution)
            return self._compile(size, tasks)
        _LOGGER.info('openvino: built in %.1f s', time.perf_counter() - start)
        return request


@functools.cache
def openvino_core() -> Any:
    """
    Return the process's only openvino.Core, which is never deleted.

    Each Core sets a signal stack for its thread (processors with AMX need a larger one). One that
    is deleted before a later one leaves the thread with a stack in freed memory, and the next
    signal, Ctrl-C or the end of a child, ends the process.
    """
    import openvino
    return openvino.Core()


def _fastest(precision: str) -> Factory:
    """Return what makes the convolutions that are fastest here in a precision."""
    if precision != 'fp32':
        return Convolution
    return split_convolution if uses_matrix_units() else cpu_convolution
