# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: the fastest on a CPU (Intel's and AMD's x86, and Arm); an optional extra."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
import functools
import logging
import os
from pathlib import Path
import time
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np

import mtan_perception
from mtan_perception.inference.artefacts import code_hash, NETWORK_SOURCES, provided
from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.backends.openvino_builder import write_model
from mtan_perception.inference.devices import uses_matrix_units
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.images import IMAGES
from mtan_perception.inference.mapped_files import reading_once
from mtan_perception.inference.weights_file import WeightsFile

if TYPE_CHECKING:
    from mtan_perception.inference.backends.torch_backend import TorchBackend

_LOGGER = logging.getLogger(__name__)

_SOURCES = (*NETWORK_SOURCES, 'inference/backends/openvino_*.py')
"""What a model depends on, but for the weights."""

# Each compiled model holds weights of its own: keep those of the last few sizes and sets of tasks.
_MAX_MODELS = 3
# Another is built in the place of one only that was not used for so many calls: four that come in
# turn would push each other out, and be built for ever.
_UNUSED_CALLS = 30


class _Model(NamedTuple):
    """A model that can be run."""

    request: Any
    weights: np.ndarray
    """Memory of the file that it was read from, of which it uses some."""


class OpenVINOBackend:
    """
    Run the optimised network and its post-processing as one OpenVINO model for a size and tasks.

    Models are kept on disk, written by processes of their own, so that PyTorch need not be loaded
    into this one. The first size and tasks are built at once, and what `prepare` is called for.
    Others are built aside when they come a second time; meanwhile a model of that size with more
    tasks runs them, or else torch: no frame waits for a model, and none is built for a photograph
    that is the only one of its size, but that the first of such a size may have to wait until
    torch is loaded. So it stays where more sizes and tasks are in use than models are kept, and
    for what cannot be built aside.

    :param weights: see mtan_perception.checkpoint.load_network; they are read when a model is
        written, which raises its errors, and EngineError if the file is another by then.
    :raises BackendError: without OpenVINO, on another device than the CPU, and in fp16.
    """

    name = 'openvino'

    def __init__(self, weights: str | os.PathLike, device: str, precision: str,
                 axes: str) -> None:
        try:
            import openvino  # noqa: F401

            # An old one lacks some of what is needed of it.
            from mtan_perception.inference.backends.openvino_images import OpenVINOImages
            from mtan_perception.inference.backends.openvino_runtime import PRECISIONS
        except ImportError as error:
            raise BackendError(f'{error}; install it with: python3 -m pip install --upgrade '
                               'openvino') from error
        if device != 'cpu' or precision not in PRECISIONS:
            raise BackendError(f'here it runs on the CPU in {" or ".join(PRECISIONS)}, '
                               f'not on {device} in {precision}')
        self.images = OpenVINOImages
        self.precision, self._axes = precision, axes
        self._weights = WeightsFile(weights)
        self._factory = _fastest(precision)
        self._torch: TorchBackend | None = None
        self._models: LatestUsed[_Model] = LatestUsed(_MAX_MODELS)
        self._seen: set[tuple] = set()
        self._refused: set[tuple] = set()
        """What could not be built beside others."""
        self._calls = 0
        self._last_calls: dict[tuple, int] = {}
        """By size and tasks, the call that last used the model."""
        self._building: tuple[tuple, Future] | None = None
        self._builder = ThreadPoolExecutor(1, 'openvino-builder')

    def __call__(self, x: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Return the finished images of the tasks."""
        from mtan_perception.inference.backends.openvino_runtime import infer
        model = self._find(tuple(x.shape[-2:]), tasks)
        if model is None:
            return self._run_in_torch(x, tasks)
        parts = []
        for image in x:
            results = infer(model.request, image[None])
            parts.append({name: results[name] for task in tasks for name in IMAGES[task]})
        if len(parts) == 1:  # of one it would be a copy
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_in_torch(self, x: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        import torch

        from mtan_perception.checkpoint import load_network
        from mtan_perception.inference.backends.torch_backend import TorchBackend
        if self._torch is None:
            self._weights.check()
            self._torch = TorchBackend(lambda: load_network(self._weights.name)[0],
                                       torch.device('cpu'), self.precision, self._axes)
        return {name: image.numpy() for name, image in self._torch(
            torch.from_numpy(x), tasks).items()}

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Build for a shape, unless a model runs it already or would lose its place to it."""
        key = tuple(shape[-2:]), tasks
        if self._able(*key) or key in self._refused or not self._has_room():
            return False
        if self._building is not None and self._building[0] == key:
            self._take_over_building()
        else:  # by the thread that may be building another
            self._take_over(key, self._builder.submit(self._compile, *key))
        return True

    def _able(self, size: tuple[int, int], tasks: tuple[str, ...]) -> list[tuple]:
        """Return the keys of the models that run a size and at least these tasks."""
        return [other for other in self._models
                if other[0] == size and set(tasks) <= set(other[1])]

    def _find(self, size: tuple[int, int], tasks: tuple[str, ...]) -> _Model | None:
        """Return the model for a size and at least these tasks, None while there is none."""
        self._calls += 1
        key = size, tasks
        if self._models and key not in self._models:
            self._build_aside(key)
            able = self._able(*key)
            if not able:
                return None
            key = min(able, key=lambda other: len(other[1]))  # its own, once that is there
        self._last_calls[key] = self._calls
        return self._models.use(key, lambda: self._compile(*key))

    def _build_aside(self, key: tuple) -> None:
        """Begin to build what comes a second time, and take over what was built meanwhile."""
        if self._building is not None and self._building[1].done():
            self._take_over_building()
        elif key not in self._seen:
            self._seen.add(key)
        elif self._building is None and key not in self._refused and self._has_room():
            self._building = key, self._builder.submit(self._compile, *key)

    def _take_over_building(self) -> None:
        """Keep the model that is built aside, of which there is one."""
        built, self._building = self._building, None
        self._take_over(*built)

    def _take_over(self, key: tuple, model: Future) -> None:
        """Keep a model, once it is built, as one that is in use; without it others go on."""
        try:
            built = model.result()
        except BackendError as error:
            if not self._models:
                raise
            _LOGGER.warning('%s; going on without a model of its own', error)
            self._refused.add(key)
            return
        self._last_calls[key] = self._calls
        self._models.use(key, lambda: built)
        self._torch = None  # as large again, and this may be what it ran

    def _has_room(self) -> bool:
        """Tell whether one more model would take the place of none that is in use."""
        if len(self._models) < _MAX_MODELS:
            return True
        oldest = next(iter(self._models))
        return self._calls - self._last_calls[oldest] > _UNUSED_CALLS

    def _compile(self, size: tuple[int, int], tasks: tuple[str, ...]) -> _Model:
        import openvino

        from mtan_perception.inference.backends.openvino_runtime import (
            compile_model,
            read_model,
            rounds_products,
        )
        self._weights.check()
        _LOGGER.info('openvino: building %s at %dx%d ...', ', '.join(tasks), *size)
        start = time.perf_counter()
        try:
            with provided('mtan.xml', self._key(size, tasks),
                          functools.partial(self._write, size, tasks)) as path, reading_once():
                model, weights = read_model(path)
                compiled = compile_model(model, self.precision)
                del model
        except OSError as error:
            raise BackendError(f'openvino cannot build the network: {error}') from error
        if self._factory == 'split_convolution' and rounds_products(compiled):
            _LOGGER.warning(
                'openvino %s rounds the sums of bfloat16 products; going on with those of '
                'float32, which are slower: try another version', openvino.__version__)
            self._factory = 'tiled_convolution'
            return self._compile(size, tasks)
        _LOGGER.info('openvino: built in %.1f s', time.perf_counter() - start)
        return _Model(compiled.create_infer_request(), weights)

    def _write(self, size: tuple[int, int], tasks: tuple[str, ...], path: Path) -> None:
        write_model(path, self._weights, self._factory, size, tasks, self._axes,
                    self.precision == 'fp32')

    def _key(self, size: tuple[int, int], tasks: tuple[str, ...]) -> Mapping[str, str]:
        import openvino
        return {'weights': self._weights.digest, 'mtan_perception': mtan_perception.__version__,
                'code': code_hash(*_SOURCES),
                'openvino': openvino.__version__, 'convolutions': self._factory,
                'precision': self.precision, 'axes': self._axes,
                'size': f'{size[0]}x{size[1]}', 'tasks': '+'.join(tasks)}


def _fastest(precision: str) -> str:
    """Return the name of what makes the convolutions that are fastest here in a precision."""
    if precision != 'fp32':
        return 'Convolution'
    return 'split_convolution' if uses_matrix_units() else 'tiled_convolution'
