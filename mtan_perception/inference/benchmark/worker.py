# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
A process that runs one contender, as it is told on its standard input.

One process for each makes peak memory its own, and keeps one runtime's threads from another's.
Each request is a line of JSON with the name of a method of Worker and its arguments, and so is
each answer: its result, or why there is none.
"""

import json
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np

from mtan_perception.inference.benchmark.contenders import prepare
from mtan_perception.inference.devices import is_gpu
from mtan_perception.inference.errors import BackendError

_GPU_RUNS = 20


class Worker:
    """Prepare a contender for an input, run it, and tell what it took."""

    def __init__(self, name: str, folder: str, device: str, precision: str) -> None:
        self._name, self._folder = name, Path(folder)
        self._device, self._precision = device, precision

    def prepare(self, image: str, tasks: list[str]) -> float:
        """Build the contender for a .npy of (1, 3, H, W); return the seconds up to its result."""
        self._run = None
        pixels = np.load(self._folder / image)
        start = time.perf_counter()
        self._run = prepare(self._name, self._folder, pixels, tuple(tasks), self._device,
                            self._precision)
        self.measure()
        seconds = time.perf_counter() - start
        self.measure()  # some runtimes tune themselves on a second run
        return seconds

    def measure(self) -> float:
        """Return the seconds of a run; on a GPU, which has to get up to speed, of several."""
        return statistics.median(
            self._time() for _ in range(_GPU_RUNS if is_gpu(self._device) else 1))

    def run_exactly(self) -> None:
        """Run it once more, a GPU's convolutions of float32 with all of its bits."""
        import torch
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            self._maps = self._run()
        finally:
            torch.backends.cudnn.allow_tf32 = before

    def _time(self) -> float:
        self._synchronize()
        start = time.perf_counter()
        self._maps = self._run()
        self._synchronize()
        return time.perf_counter() - start

    def memory(self) -> float | None:
        """Return the process's peak so far, in MiB; None outside Linux."""
        # Not by getrusage: its figure begins with that of the process which started this one.
        try:
            lines = Path('/proc/self/status').read_text().splitlines()
        except OSError:
            return None
        entries = dict(line.split(':', 1) for line in lines)
        return int(entries['VmHWM'].split()[0]) / 2 ** 10

    def given_back(self) -> float:
        """Return how many MiB of the GPU torch has had, at its peak, and holds no more."""
        import torch
        device = self._device
        return (torch.cuda.max_memory_reserved(device)
                - torch.cuda.memory_reserved(device)) / 2 ** 20

    def save(self, name: str) -> None:
        """Write the latest maps as label, depth and normal, whatever form they have."""
        maps = {name: np.asarray(part if isinstance(part, np.ndarray) else part.float().cpu())
                for name, part in self._maps.items()}
        images = {}
        if 'segmentation' in maps or 'label' in maps:
            images['label'] = (maps['label'] if 'label' in maps
                               else maps['segmentation'].argmax(1)).astype(np.uint8)
        if 'depth' in maps:
            images['depth'] = maps['depth'].reshape(1, *maps['depth'].shape[-2:])
        if 'normal' in maps:
            normal = maps['normal']
            images['normal'] = normal if normal.shape[-1] == 3 else normal.transpose(0, 2, 3, 1)
        np.savez(self._folder / name, **images)

    def _synchronize(self) -> None:
        if is_gpu(self._device):
            import torch
            torch.cuda.synchronize(self._device)


def main() -> None:
    """Answer requests until the input ends."""
    worker = Worker(*sys.argv[1:])
    # What runtimes and compilers print, in C++ and in other processes too, is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        method, arguments = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            answer['result'] = getattr(worker, method)(*arguments)
        except BackendError as error:
            answer['error'] = str(error).splitlines()[0]
        except Exception as error:  # whatever a runtime raises is the answer
            answer['error'] = f'{type(error).__name__}: {error}'.splitlines()[0]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
