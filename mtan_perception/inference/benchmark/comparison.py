# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the contenders side by side: interleaved, so that all see the same machine."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
from dataclasses import asdict, dataclass, field
import hashlib
import json
import math
import os
from pathlib import Path
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import torch

from mtan_perception import __version__
from mtan_perception.checkpoint import import_reference, save_checkpoint
from mtan_perception.inference.benchmark.contenders import ORIGINAL_WEIGHTS, OUR_WEIGHTS
from mtan_perception.inference.benchmark.original import randomise_batch_norm, ReferenceMTAN
from mtan_perception.inference.devices import describe_processor, uses_matrix_units
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.model_card import ModelCard
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.tasks import DEPTH, NYUV2_TASKS
from mtan_perception.threads import environment_before

BASELINE = 'original/eager'
_DEPTH_BIAS = 3.0
"""Metres: so random depth is from 0.4 to 14 at 288x384."""
_PAUSE = 0.1
"""Seconds: the threads of the contender before spin for a while on the cores of the next."""
_LEAST_ROUNDS = 3
_ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Measurement:
    """One contender at one size and set of tasks; `problem` says why there are no figures."""

    contender: str
    size: tuple[int, int]
    tasks: tuple[str, ...]
    seconds: list[float] = field(default_factory=list)
    prepared: float | None = None
    """Seconds from the weights to the first result."""
    memory: float | None = None
    """Peak MiB of its process (of the GPU, what it holds), where this was the first it did."""
    agreement: dict[str, float] = field(default_factory=dict)
    """With the original in eager fp32: see `compare`."""
    all_tasks: list[float] = field(default_factory=list)
    """Seconds that all tasks took in the same rounds, where these are some of them."""
    problem: str | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def share(self) -> float | None:
        """Part of the time of all tasks, the median over the rounds; None without them."""
        return statistics.median(some / every for some, every in zip(
            self.seconds, self.all_tasks, strict=True)) if self.all_tasks else None


class _Process:
    """A contender's process."""

    def __init__(self, name: str, folder: Path, device: str, precision: str) -> None:
        # The original as anyone would run it: its threads spin, which is 6 % faster where no other
        # process needs the cores, as none does here.
        environment = (environment_before() if name.startswith('original/') else
                       dict(os.environ)) | {
            'PYTHONPATH': os.pathsep.join(
                filter(None, [str(_ROOT), os.environ.get('PYTHONPATH')])),
            'MTAN_CACHE': str(folder / 'cache')}
        self._log = open(folder / f"{name.replace('/', '-')}.log", 'w')
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'mtan_perception.inference.benchmark.worker', name,
             str(folder), device, precision], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env=environment, start_new_session=True)
        self._end: str | None = None
        """Why it runs no more."""

    def ask(self, method: str, *arguments: Any, patience: float = 600) -> Any:
        """Return the method's result; RuntimeError with what went wrong, or for want of one."""
        if self._end is not None:
            raise RuntimeError(self._end)
        # Its whole session: a compiler runs in processes of its own.
        timer = threading.Timer(patience, os.killpg, (self._process.pid, signal.SIGKILL))
        timer.start()
        try:
            print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            code, late = self._process.wait(), not timer.is_alive()
            self._end = (f'not done after {patience:.0f} s' if late else
                         f'its process ended with exit code {code}')
            raise RuntimeError(self._end) from None
        except KeyboardInterrupt:  # which, in a session of its own, it has not got
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        if 'error' in answer:
            raise RuntimeError(answer['error'])
        return answer['result']

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a process that was killed has left its end
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def write_weights(folder: Path) -> None:
    """Write one set of random weights, as if trained, for the original and for ours."""
    torch.manual_seed(0)
    network = randomise_batch_norm(ReferenceMTAN(NYUV2_TASKS))
    # As trained depth is, it is in front of the camera: about 0 a relative error says nothing.
    head = network.decoders[list(NYUV2_TASKS).index(DEPTH)]
    torch.nn.init.constant_(head[-1].bias, _DEPTH_BIAS)
    torch.save(network.state_dict(), folder / ORIGINAL_WEIGHTS)
    del network
    state = import_reference(folder / ORIGINAL_WEIGHTS, NYUV2_TASKS)
    save_checkpoint(folder / OUR_WEIGHTS, state, ModelCard(NYUV2_TASKS))


def measure(contenders: Iterable[str], folder: Path, image: np.ndarray, tasks: Sequence[str],
            processes: dict[str, Any], rounds: int, device: str, precision: str,
            say: Callable[[str], None], patience: float = 600, seconds: float = math.inf,
            all_tasks: Any = None) -> list[Measurement]:
    """
    Return a measurement of each contender, interleaved, round by round.

    :param folder: with the weights; files of the run are left in it.
    :param image: the network's input (1, 3, H, W) float32.
    :param processes: those of the contenders, by name; filled as needed, kept between calls.
    :param say: is told what is being prepared.
    :param patience: seconds that a contender may take up to its first result.
    :param seconds: where time is short: all are measured in three rounds, the baseline and the
        fastest of each owner in further ones, none of which is begun after so many seconds.
    :param all_tasks: a process that is prepared for all tasks, to be measured in each round too.
    """
    size = tuple(image.shape[2:])
    np.save(folder / 'image.npy', image)
    results, fresh = [], set(contenders) - set(processes)
    for name in contenders:
        result = Measurement(name, size, tuple(tasks))
        results.append(result)
        say(f"{name}: preparing {', '.join(tasks)} at {size[0]}x{size[1]} ...")
        held = _held_on(device)
        if name not in processes:
            processes[name] = _Process(name, folder, device, precision)
        with _noting(result, say):
            result.prepared = processes[name].ask(
                'prepare', 'image.npy', list(tasks), patience=patience)
            if name in fresh and device != 'cpu':
                # Where a graph is captured torch gives back what it has in reserve.
                result.memory = _held_on(device) - held + processes[name].ask('given_back')
            if name == BASELINE and device != 'cpu':
                processes[name].ask('run_exactly')
            processes[name].ask('save', f"{name.replace('/', '-')}.npz")
    start, measured = time.monotonic(), results
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and seconds < math.inf:
            if time.monotonic() - start > seconds:
                break
            measured = leading(results)
        say(f'round {number + 1} of {rounds}')
        for result in _sound(measured):
            with _noting(result, say):
                every = [] if all_tasks is None else [_measure(all_tasks)]
                result.seconds.append(_measure(processes[result.contender]))
                result.all_tasks += every
    for result in _sound(results):
        if result.contender in fresh and device == 'cpu':
            with _noting(result, say):
                result.memory = processes[result.contender].ask('memory')
    baseline = folder / f"{BASELINE.replace('/', '-')}.npz"
    for result in _sound(results):
        if baseline.exists() and result.contender != BASELINE:
            with np.load(baseline) as theirs, \
                    np.load(folder / f"{result.contender.replace('/', '-')}.npz") as ours:
                if theirs[next(iter(theirs))].shape[1:3] == size:
                    result.agreement = compare(ours, theirs)
    return results


def _measure(process: Any) -> float:
    time.sleep(_PAUSE)
    return process.ask('measure')


@contextlib.contextmanager
def _noting(result: Measurement, say: Callable[[str], None]) -> Iterator[None]:
    """Note why a contender fails; the others go on."""
    try:
        yield
    except RuntimeError as error:
        result.problem = str(error)
        say(f'{result.contender}: {error}')


def _sound(results: Iterable[Measurement]) -> list[Measurement]:
    return [result for result in results if result.problem is None]


def leading(results: Sequence[Measurement]) -> list[Measurement]:
    """Return the baseline and the fastest of the original and of ours, those that there are."""
    names = {BASELINE, fastest(results, 'original/'), fastest(results, 'ours/')}
    return [result for result in _sound(results) if result.contender in names]


def fastest(results: Sequence[Measurement], owner: str) -> str | None:
    """Return the name of the fastest contender whose name begins with `owner`."""
    able = [result for result in _sound(results) if result.contender.startswith(owner)]
    return min(able, key=lambda result: result.median).contender if able else None


def _held_on(device: str) -> float:
    """Return how many MiB of a GPU all processes hold together."""
    if device == 'cpu':
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2 ** 20


def compare(ours: Any, theirs: Any) -> dict[str, float]:
    """
    Return how far two results agree, for the tasks of ours.

    'label': share of equal classes; 'depth': mean relative error; 'normal': mean angle in
    degrees.
    """
    agreement = {}
    if 'label' in ours:
        agreement['label'] = float((ours['label'] == theirs['label']).mean())
    if 'depth' in ours:
        scale = np.maximum(np.abs(theirs['depth']), 1e-3)
        agreement['depth'] = float((np.abs(ours['depth'] - theirs['depth']) / scale).mean())
    if 'normal' in ours:
        # By the chord: near 1 the arc cosine of a float32 product is mostly rounding.
        chord = np.linalg.norm(ours['normal'] - theirs['normal'].astype(np.float64), axis=3)
        # The original's is NaN where it has no direction.
        agreement['normal'] = float(np.nanmean(
            np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))))
    return agreement


def close(processes: dict[str, Any]) -> None:
    """End the contenders' processes."""
    for process in processes.values():
        process.close()
    processes.clear()


def arithmetic(size: tuple[int, int], tasks: Sequence[str]) -> tuple[float, float]:
    """Return FLOPs of the optimised network, and bytes of its weights in fp16."""
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device('meta'):
        network = OptimizedMTAN(MTANDeepLabv3(NYUV2_TASKS).eval())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.logits(torch.zeros(1, 3, *size), tasks)
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    return float(counter.get_total_flops()), 2.0 * count


def floors(device: str, size: tuple[int, int], tasks: Sequence[str]) -> dict[str, float]:
    """Return the least seconds a GPU needs, by its measured fp16 matrix and copy rates."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.float16)
    big = torch.empty(2 ** 28, device=device, dtype=torch.uint8)
    products = _fastest(lambda: a @ a, device)
    copies = _fastest(lambda: big.clone(), device)
    flops, weights = arithmetic(size, tasks)
    return {'matmul_flops_per_second': 2 * 8192 ** 3 / products,
            'copy_bytes_per_second': 2 * big.numel() / copies,
            'arithmetic_seconds': flops * products / (2 * 8192 ** 3),
            'copy_seconds': weights * copies / (2 * big.numel())}


def _fastest(run: Callable[[], Any], device: str) -> float:
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def table(results: Sequence[Measurement]) -> str:
    """Return the results as text, in groups of one size and set of tasks."""
    lines, group = [], None
    for result in results:
        if (result.size, result.tasks) != group:
            group = result.size, result.tasks
            baseline = next((other.median for other in _sound(results)
                             if other.contender == BASELINE and other.size == result.size), None)
            lines += ['', f"{result.size[0]}x{result.size[1]}, {', '.join(result.tasks)}",
                      f"{'':24} {'median':>9} {'min..max':>17} {'original/':>9} {'this/':>7} "
                      f"{'first':>7} {'memory':>8} {'equal':>9} {'depth':>8} {'normal':>8}",
                      f"{'':24} {'ms':>9} {'ms':>17} {'this':>9} {'all':>7} "
                      f"{'s':>7} {'MiB':>8} {'classes %':>9} {'rel.':>8} {'deg':>8}"]
        lines.append(_row(result, baseline))
    return '\n'.join(lines).lstrip('\n')


def _row(result: Measurement, baseline: float | None) -> str:
    if result.problem is not None:
        return f'{result.contender:24} {result.problem}'
    spread = f'{1000 * min(result.seconds):.1f}..{1000 * max(result.seconds):.1f}'
    ratio = f'{baseline / result.median:.2f}' if baseline else '-'
    share = '-' if result.share is None else f'{result.share:.3f}'
    text = (f'{result.contender:24} {1000 * result.median:9.1f} {spread:>17} {ratio:>9} '
            f'{share:>7} {result.prepared:7.1f} '
            + (f"{'-':>8} " if result.memory is None else f'{result.memory:8.0f} '))
    forms = (('label', lambda share: f'{100 * share:9.3f}'), ('depth', lambda x: f'{x:8.1e}'),
             ('normal', lambda angle: f'{angle:8.4f}'))
    return text + ' '.join(form(result.agreement[name]) if name in result.agreement
                           else f"{'-':>{9 if name == 'label' else 8}}" for name, form in forms)


def report(results: Sequence[Measurement], images: Iterable[np.ndarray], device: str,
           precision: str) -> dict[str, Any]:
    """Return the run as a dictionary for JSON: host, versions, inputs and measurements."""
    return {
        'host': describe_host(device),
        'versions': versions(),
        'precision': precision,
        'input_sha256': {f'{image.shape[2]}x{image.shape[3]}': hashlib.sha256(
            np.ascontiguousarray(image)).hexdigest() for image in images},
        'measurements': [
            {**asdict(result), 'median': result.median if result.seconds else None}
            for result in results],
    }


def describe_host(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    host = {'machine': platform.machine(),
            'cpu': describe_processor('model name') or platform.processor(),
            # Generations of a processor may share a name.
            'cpu_family': describe_processor('cpu family'),
            'cpu_model': describe_processor('model'), 'amx': uses_matrix_units(),
            'threads': torch.get_num_threads(), 'load': os.getloadavg()[0]}
    if torch.device(device).type == 'cuda':
        host |= {'gpu': torch.cuda.get_device_name(device), 'cuda': torch.version.cuda,
                 'cudnn': torch.backends.cudnn.version()}
    return host


def versions() -> dict[str, str]:
    """Return those of the package, of Python and of what may run the network."""
    from importlib import metadata
    versions = {'mtan_perception': __version__, 'python': platform.python_version()}
    for package in ('torch', 'torchvision', 'openvino', 'onnx', 'onnxruntime',
                    'onnxruntime-gpu'):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
