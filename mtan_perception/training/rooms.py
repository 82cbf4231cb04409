# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The endless data set: synthetic rooms, rendered ahead and drawn several times each.

On a GPU rooms are rendered between steps, on the same device. On a CPU a process beside the
trainer renders chunks into files, from which an interrupted run reads them again. In both cases
the frames that a step may draw from depend on the step's number alone, never on timing, so a run
can be repeated and resumed exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
import errno
import multiprocessing
from multiprocessing import resource_tracker
import os
from pathlib import Path
import shutil
import signal
import sys
import time

from safetensors import SafetensorError
from safetensors.torch import load_file, save
import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.files import written_whole
from mtan_perception.synthetic import render
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

# Seeds of rooms. The first 500 from 0 are for the published figures and nothing else, those of
# validation choose between weights, and training starts where neither can reach.
TEST_SEEDS = range(500)
VALIDATION_SEEDS = range(500_000, 501_000)
_FIRST_TRAINING_SEED = 1_000_000
_SEEDS_PER_RUN = 1_000_000_000

# Frames rendered at once. Few on a CPU, so that the first step comes soon; on a GPU enough of them
# that the work, not the calls, takes the time.
_CHUNK = {'cpu': 4, 'cuda': 128}
# Chunks rendered ahead of the step that needs them, and twice as many for each stage to come.
_AHEAD = 8
# More than any training has, so that those of two seeds never have rooms in common.
_STAGES_PER_RUN = 64
# Seconds between attempts to write to a disk that is full, or a quota.
_RETRY = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A frame is rendered this much larger than it is drawn, for crops to differ: pixels each way.
_MARGIN = 16


def training_seeds(run_seed: int, first: int, count: int) -> range:
    """Return the seeds of rooms number `first` to `first + count` of a run."""
    start = _FIRST_TRAINING_SEED + run_seed * _SEEDS_PER_RUN + first
    return range(start, start + count)


def render_packed(seeds: Sequence[int], size: tuple[int, int], focal_length: float,
                  device: torch.device | str = 'cpu') -> dict[str, Tensor]:
    """
    Render rooms in the compact form of the pool: 9 bytes a pixel.

    :param size: (height, width) to render.
    :param focal_length: pixels; depth is brought to a camera of this focal length, to which a
        room seen with a longer lens looks nearer: z * focal_length / focal.
    :returns: image uint8, segmentation uint8, depth float16, normal int8; all (N, C, H, W).
    """
    frames = render(seeds, *size, device=device)
    scale = focal_length / frames.intrinsics[:, 0, 0]
    return {
        'image': (255 * frames.rgb).round().byte(),
        SEGMENTATION: frames.label[:, None].byte(),
        DEPTH: (frames.depth * scale[:, None, None, None]).half(),
        NORMAL: (127 * frames.normal).round().char()}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a training batch (image, segmentation, depth, normal) from packed frames."""
    return {'image': packed['image'].float() / 255,
            SEGMENTATION: packed[SEGMENTATION][:, 0].long(),
            DEPTH: packed[DEPTH].float(),
            NORMAL: functional.normalize(packed[NORMAL].float(), dim=1)}


def mirror(batch: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Flip the chosen (N,) frames of a batch left to right; a normal's x changes its sign."""
    flipped = {name: value.flip(-1) for name, value in batch.items()}
    flipped[NORMAL] = flipped[NORMAL] * flipped[NORMAL].new_tensor([-1, 1, 1]).view(3, 1, 1)
    return {name: torch.where(chosen.view(-1, *[1] * (value.dim() - 1)), flipped[name], value)
            for name, value in batch.items()}


class FramePool:
    """The newest frames, up to a capacity, on one device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.count = 0  # frames ever put in
        self._store: dict[str, Tensor] = {}

    def put(self, packed: dict[str, Tensor]) -> None:
        """Add frames, which take the place of the oldest ones when the pool is full."""
        number = len(packed['image'])
        place = (torch.arange(number) + self.count) % self.capacity
        for name, value in packed.items():
            if name not in self._store:
                self._store[name] = torch.empty((self.capacity, *value.shape[1:]),
                                                dtype=value.dtype, device=self.device)
            self._store[name][place.to(self.device)] = value.to(self.device)
        self.count += number

    def clear(self) -> None:
        """Free the memory; what a stage begins with again is then put in anew."""
        self.count = 0
        self._store = {}

    def draw(self, number: int, size: tuple[int, int],
             generator: torch.Generator) -> dict[str, Tensor]:
        """Return a batch of random frames, each cropped to `size` and flipped at random."""
        # Random numbers come from the CPU on every device: a run repeats wherever it runs.
        available = min(self.count, self.capacity)
        chosen = torch.randint(available, (number,), generator=generator).tolist()
        height, width = self._store['image'].shape[-2:]
        tops = torch.randint(height - size[0] + 1, (number,), generator=generator).tolist()
        lefts = torch.randint(width - size[1] + 1, (number,), generator=generator).tolist()
        flips = torch.rand(number, generator=generator) < 0.5
        packed = {
            name: torch.stack([value[index, :, top:top + size[0], left:left + size[1]]
                               for index, top, left in zip(chosen, tops, lefts, strict=True)])
            for name, value in self._store.items()}
        return mirror(unpack(packed), flips.to(self.device))


class RoomStream:
    """
    Batches of rooms for the stages of a training.

    :param stages: objects with height, width, batch, and reuse: how many times a frame is drawn.
    :param focal_length: pixels, whatever the size of a stage's images: depth is brought to it. So
        a thing of so many pixels is as far away in each stage, as the engine takes it.
    :param folder: where chunks are kept on a CPU; removed by `close`.
    :param pool_bytes: memory for the frames of a stage.
    :param rank: and `world`: this process among those that train together.
    :param fresh: remove the files of an earlier run, which may be of other rooms.
    """

    def __init__(self, stages: Sequence, seed: int, focal_length: float, device: torch.device,
                 folder: Path, pool_bytes: float, rank: int = 0, world: int = 1,
                 fresh: bool = True) -> None:
        self._stages, self._seed = stages, seed
        self._rank, self._world = rank, world
        self._device, self._folder = device, folder
        self._chunk = _CHUNK[device.type]
        self._jobs = [
            _Job(folder / f'{index}-{stage.height}x{stage.width}-{rank}',
                 (stage.height + _MARGIN, stage.width + _MARGIN), self._chunk,
                 focal_length, seed * _STAGES_PER_RUN + index, rank, world)
            for index, stage in enumerate(stages)]
        self._pools = [
            FramePool(int(max(stage.batch, pool_bytes / (9 * job.size[0] * job.size[1])))
                      // self._chunk * self._chunk + self._chunk, device)
            for stage, job in zip(stages, self._jobs, strict=True)]
        if fresh:
            self._remove_files()
        self._renderer = None
        if device.type == 'cpu':
            self._renderer = _Renderer(self._jobs)

    def batch(self, stage: int, step: int) -> dict[str, Tensor]:
        """Return the batch of step number `step` of a stage, both counted from 0."""
        settings, pool = self._stages[stage], self._pools[stage]
        for other in self._pools:
            if other is not pool:
                other.clear()
        own = settings.batch // self._world
        needed = own + step * own / settings.reuse
        self._fill(stage, int(needed))
        generator = torch.Generator().manual_seed(
            hash((self._seed, stage, step, self._rank)) % 2 ** 63)
        return pool.draw(own, (settings.height, settings.width), generator)

    def ready(self, stage: int) -> bool:
        """Return whether the first batch of a stage can be had without waiting."""
        chunks = -(-self._stages[stage].batch // self._world // self._chunk)
        return self._renderer is None or all(
            self._jobs[stage].path(chunk).exists() for chunk in range(chunks))

    def close(self, keep: bool = False) -> None:
        """Stop rendering; remove the files unless the run is to be resumed."""
        if self._renderer is not None:
            self._renderer.close()
        if not keep:
            self._remove_files()

    def _remove_files(self) -> None:
        for job in self._jobs:
            shutil.rmtree(job.folder, ignore_errors=True)
        with suppress(OSError):  # missing on a GPU, not empty while another process is at work
            self._folder.rmdir()

    def _fill(self, stage: int, needed: int) -> None:
        """Put chunks into the pool until it has seen `needed` frames, the newest of them."""
        job, pool = self._jobs[stage], self._pools[stage]
        chunks = -(-needed // self._chunk)
        # After a resume, what would only be overwritten is not read again.
        first = max(pool.count // self._chunk, chunks - pool.capacity // self._chunk)
        pool.count = max(pool.count, first * self._chunk)
        for chunk in range(first, chunks):
            if self._renderer is None:
                pool.put(job.render(chunk, self._device))
            else:
                pool.put(self._renderer.wait(stage, chunk))


class _Job:
    """The numbered chunks of one stage."""

    def __init__(self, folder: Path, size: tuple[int, int], chunk: int, focal_length: float,
                 run_seed: int, rank: int, world: int) -> None:
        self.folder, self.size, self._chunk = folder, size, chunk
        self._focal_length, self._run_seed = focal_length, run_seed
        self._rank, self._world = rank, world

    def render(self, chunk: int, device: torch.device | str) -> dict[str, Tensor]:
        first = (chunk * self._world + self._rank) * self._chunk
        seeds = training_seeds(self._run_seed, first, self._chunk)
        return render_packed(seeds, self.size, self._focal_length, device)

    def path(self, chunk: int) -> Path:
        return self.folder / f'{chunk:06}.safetensors'


class _Renderer:
    """A process that renders chunks into files, a little ahead of those asked for."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        context = multiprocessing.get_context('spawn')
        self._jobs = jobs
        self._wanted = context.Array('q', len(jobs), lock=False)
        self._process = context.Process(
            target=_render_ahead, args=(jobs, self._wanted, os.getpid()), name='mtan-renderer',
            daemon=True)
        # A Ctrl-C is for the trainer, which ends this one. The tracker unblocks it when it starts.
        resource_tracker.ensure_running()
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)

    def wait(self, stage: int, chunk: int) -> dict[str, Tensor]:
        self._wanted[stage] = max(self._wanted[stage], chunk)
        path = self._jobs[stage].path(chunk)
        while (frames := _read(path)) is None:
            if not self._process.is_alive():
                raise OSError(f'{path}: the process that renders it has died (exit code '
                              f'{self._process.exitcode}); its message is above')
            time.sleep(0.02)
        return frames

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


def _render_ahead(jobs: Sequence[_Job], wanted: Sequence[int], trainer: int) -> None:
    torch.set_num_threads(1)
    for stage, chunk in _order(jobs, wanted, trainer):
        path = jobs[stage].path(chunk)
        if _read(path) is None:
            _write(path, jobs[stage].render(chunk, 'cpu'), trainer)


def _order(jobs: Sequence[_Job], wanted: Sequence[int],
           trainer: int) -> Iterator[tuple[int, int]]:
    """
    Yield (stage, chunk): the stage in progress first, then the next one, within bounds.

    :param trainer: the process that started this one; it is all over where it was killed.
    """
    done = [0] * len(jobs)
    while os.getppid() == trainer:
        now = max((stage for stage in range(len(jobs)) if wanted[stage]), default=0)
        for stage in range(now, len(jobs)):
            # Waiting for a step is no reason to be idle: later stages get a stock as well.
            limit = wanted[stage] + _AHEAD * (1 if stage == now else 2)
            if done[stage] <= limit:
                yield stage, done[stage]
                done[stage] += 1
                break
        else:
            time.sleep(0.05)


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return the frames in a file, None where there is none or it is damaged."""
    try:
        return load_file(path) if path.exists() else None
    except (OSError, SafetensorError):
        return None


def _write(path: Path, frames: dict[str, Tensor], trainer: int) -> None:
    """Write frames into a file; where the disk is full, once there is room."""
    content = save(frames)  # into the file itself safetensors would hide why that fails
    path.parent.mkdir(parents=True, exist_ok=True)
    while os.getppid() == trainer:
        try:
            with written_whole(path) as temporary:
                temporary.write_bytes(content)
            return
        except OSError as error:
            if error.errno not in _FULL:
                raise
            print(f'warning: {path}: cannot be written ({error.strerror}); make room: it is tried '
                  f'again every {_RETRY:g} s, and the training waits, while its time runs on',
                  file=sys.stderr, flush=True)
            time.sleep(_RETRY)
