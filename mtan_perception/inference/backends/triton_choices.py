# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Which of several ways to compute a layer is the fastest: measured once for each shape."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mtan_perception.inference.artefacts import provide
from mtan_perception.inference.backends.cuda_graphs import CAPTURING
from mtan_perception.inference.errors import BackendError, in_one_line

_LOGGER = logging.getLogger(__name__)


class Tiling(NamedTuple):
    """How much of a convolution one program computes, and by how many warps."""

    pixels: int
    outputs: int
    inputs: int
    warps: int
    stages: int
    registers: int | None = None
    """Of a thread at most, so that a multiprocessor has room for two programs."""


TILINGS = (
    Tiling(64, 64, 64, 4, 4),
    Tiling(64, 64, 128, 4, 3),
    Tiling(64, 16, 64, 4, 4),
    Tiling(64, 128, 64, 4, 4),
    Tiling(64, 128, 64, 4, 3),
    Tiling(128, 64, 64, 4, 3),
    Tiling(128, 64, 32, 4, 4),
    Tiling(128, 128, 64, 8, 3, 128),
    # For maps of few channels.
    Tiling(64, 32, 16, 4, 3),
    Tiling(64, 16, 16, 4, 3),
)
# Another may be this much slower and have larger tiles, which leave more of the cache's bandwidth
# to the kernels that run beside it.
_TOLERANCE = 1.05
# Of a layer, to see how fast it is.
_RUNS, _REPLAYS = 20, 5

Candidates = Mapping[Tiling | str, Callable[[], Tensor]]
"""Ways to compute a layer: in our kernel's tiles, or by a library of that name."""

_chosen: dict[str, str] = {}
"""The fastest way, by the key of a layer; all engines of a process share it."""
_used: ContextVar[dict[str, str] | None] = ContextVar('used', default=None)
"""Those of `_chosen` that are used meanwhile."""
_measures: ContextVar[bool] = ContextVar('measures', default=True)


@contextmanager
def unmeasured() -> Iterator[None]:
    """Take the first way that there is, for what runs only once."""
    with _set(_measures, False):
        yield


def fastest(key: object, candidates: Candidates, device: torch.device) -> Tensor:
    """
    Return a layer's result by the way that was fastest, which is measured for each key once.

    :param key: all that the layer's time depends on.
    """
    ways = {str(name): run for name, run in candidates.items()}
    # Without a device, in Triton's interpreter, there is nothing to measure.
    if device.type != 'cuda' or not _measures.get():
        return next(iter(ways.values()))()
    name = f'{device} {key!r}'
    if _chosen.get(name) not in ways:  # a kept one may be of a library that now lacks it
        with CAPTURING:
            _chosen[name] = str(_choose(candidates, device))
    used = _used.get()
    if used is not None:
        used[name] = _chosen[name]
    return ways[_chosen[name]]()


def keep_choices(key: Mapping[str, str], run: Callable[[], object]) -> None:
    """
    Take the choices of an earlier start; without one, run, which chooses, and keep what it chose.

    :param key: all that they depend on, see mtan_perception.inference.artefacts.provide.
    """
    def build(path: Path) -> None:
        with _set(_used, {}) as used:
            run()
        path.write_text(json.dumps(used))
    try:
        kept = json.loads(provide('kernels.json', key, build).read_text())
        # What another engine of this process uses already stays as it is.
        _chosen.update({name: way for name, way in kept.items() if name not in _chosen})
    except OSError as error:
        _LOGGER.warning('cache: %s; the next start will have to choose its kernels again: give '
                        '$MTAN_CACHE a folder that can be written', error)


@contextmanager
def _set(variable: ContextVar, value: Any) -> Iterator[Any]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def _choose(candidates: Candidates, device: torch.device) -> Tiling | str:
    milliseconds = _measure(candidates, device)
    limit = _TOLERANCE * min(milliseconds.values())
    return max((name for name, value in milliseconds.items() if value <= limit),
               key=lambda name: (_tile(name), -milliseconds[name]))


def _tile(name: Tiling | str) -> int:
    return name.pixels * name.outputs if isinstance(name, Tiling) else 0


def _measure(candidates: Candidates, device: torch.device) -> dict[Tiling | str, float]:
    """Return the milliseconds of those that can run."""
    times = {}
    for name, run in candidates.items():
        try:
            times[name] = _milliseconds(run, device)
        except OutOfResources:
            continue  # more shared memory than this device has
        except RuntimeError as error:
            # For want of a fused kernel cuDNN says what it says for want of memory.
            if isinstance(name, Tiling) or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            _LOGGER.debug('%s cannot compute a layer: %s', name, in_one_line(error))
    if not times:
        raise BackendError('none of the kernels fits this device')
    return times


def _milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Return what a run takes in a CUDA graph, where launching it takes no time."""
    graph, stream, times = torch.cuda.CUDAGraph(), _measuring_stream(device), []
    with torch.cuda.stream(stream):
        run()  # compiled, and allowed what cannot be captured
        with torch.cuda.graph(graph, stream=stream, capture_error_mode='thread_local'):
            for _ in range(_RUNS):
                run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_REPLAYS):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / _RUNS)
    return min(times)


@cache
def _measuring_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one for all layers: cuBLAS keeps 32 MiB for each stream that it has ever seen."""
    return torch.cuda.Stream(device)
