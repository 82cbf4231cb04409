# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: all kernels of a network launched at once, not each by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import logging
import threading

import torch
from torch import Tensor

from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.devices import is_out_of_memory
from mtan_perception.inference.errors import BackendError

_LOGGER = logging.getLogger(__name__)

Run = Callable[[Tensor, tuple[str, ...]], dict[str, Tensor]]
_Key = tuple[tuple[int, ...], tuple[str, ...]]

CAPTURING = threading.RLock()
"""Held while a graph is captured: a process can capture one at a time."""
# Graphs to keep: those used last, each for a number of images, a size and a set of tasks.
_MAX_GRAPHS = 8
# More images at once give the device enough to do for each kernel that is launched: no graph.
_MAX_BATCH = 4


class CudaGraphs:
    """
    Replay what `run` does on a CUDA device; the results are valid until the next call.

    :param prepare: is called before the first run of a number of images, a size and set of tasks.

    Where no graph can be captured, a warning says why, and `run` is called as it is.
    """

    def __init__(self, run: Run, device: torch.device,
                 prepare: Callable[[Tensor, tuple[str, ...]], object] = lambda *_: None) -> None:
        self._run, self._device, self._prepare = run, device, prepare
        self.captures = True
        """False once a graph could not be captured."""
        self._graphs: LatestUsed[Callable[[Tensor], dict[str, Tensor]]] = LatestUsed(_MAX_GRAPHS)
        # What runs without a graph: too many images, or too little memory for one.
        self._without: set[_Key] = set()
        # One for all graphs: they run one at a time, and what one gives is used before the next
        # one runs.
        self._pool: tuple[int, int] | None = None
        # One for all, too: cuBLAS keeps 32 MiB for each stream that it has ever seen. Captures
        # begin on another, on which nothing runs: as a graph is dropped, torch lets go of what
        # cuBLAS keeps for the stream on which it began, though the other graphs use it.
        self._stream: torch.cuda.Stream | None = None
        self._beginning: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        """Return the number of graphs that are kept."""
        return len(self._graphs)

    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks, in memory that the next call may use."""
        key = tuple(x.shape), tasks
        if self.captures and x.shape[0] <= _MAX_BATCH and key not in self._without:
            try:
                return self._graphs.use(key, lambda: self._capture(x, tasks))(x)
            except BackendError:
                raise
            except RuntimeError as error:
                # That of the kernel that could not be captured; the end of capturing fails too.
                while isinstance(error.__context__, RuntimeError):
                    error = error.__context__
                reason = str(error).partition('\n')[0]
                self.captures = is_out_of_memory(error)  # which says nothing of fewer images
            self._graphs.clear()
            self._pool = None  # of one that is still in use torch refuses to make anything
            torch.cuda.empty_cache()
            _LOGGER.warning(
                'no CUDA graph%s (%s); going on without, each kernel launched by itself',
                ' of {} image(s) of {}x{}'.format(len(x), *x.shape[2:]) if self.captures else '',
                reason)
        if key not in self._without:
            self._prepare(x, tasks)
            self._without.add(key)
        return self._run(x, tasks)

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Capture the graph for a shape and tasks; return whether it was not there yet."""
        key = tuple(shape), tasks
        if key in self._graphs or key in self._without:
            return False
        self(torch.zeros(shape, device=self._device), tasks)
        return True

    def _capture(self, x: Tensor, tasks: tuple[str, ...]) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return a call that replays the kernels, without the time to launch each of them."""
        _LOGGER.info('capturing a CUDA graph of %s at %dx%d', ', '.join(tasks), *x.shape[-2:])
        run, inputs = self._run, x.clone()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if self._stream is None:
            self._stream, self._beginning = (
                torch.cuda.Stream(self._device) for _ in range(2))
        graph, stream, beginning = torch.cuda.CUDAGraph(), self._stream, self._beginning
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with _measured_kernels():
            with torch.cuda.stream(stream):
                self._prepare(inputs, tasks)
                for _ in range(3):  # kernels are compiled, and chosen by their time
                    run(inputs, tasks)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            # Without a stream of this device it would be one of the first device that was used.
            # Where capturing fails, torch leaves it the current one: hence the outer statement.
            with CAPTURING, torch.cuda.stream(beginning), torch.cuda.graph(
                    graph, pool=self._pool, stream=beginning, capture_error_mode='thread_local'):
                stream.wait_stream(beginning)
                try:
                    with torch.cuda.stream(stream):
                        outputs = run(inputs, tasks)
                finally:  # else the capture could not be ended, and torch would keep its memory
                    beginning.wait_stream(stream)

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
