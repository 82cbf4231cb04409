# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Where the samples come from: what a data set offers to the trainer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mtan_perception.labels import LabelSet, NYUV2_13
from mtan_perception.model_card import ModelCard
from mtan_perception.tasks import NYUV2_TASKS, parse_tasks, SEGMENTATION, select_tasks
from mtan_perception.training.augmentation import Augmentation
from mtan_perception.training.config import Stage, TrainConfig
from mtan_perception.training.datasets import check_dataset, open_dataset
from mtan_perception.training.layouts import DEFAULT_KINDS, LOSSES
from mtan_perception.training.rooms import (
    render_packed,
    RoomStream,
    unpack,
    VALIDATION_SEEDS,
)

Batch = dict[str, Tensor]


class Stream(Protocol):
    """Training batches, by the number of the step."""

    def batch(self, stage: int, step: int) -> Batch:
        """Return this process's part of the batch of step `step` of a stage, from 0."""

    def ready(self, stage: int) -> bool:
        """Return whether the first batch of a stage can be had without waiting."""

    def close(self, keep: bool = False) -> None:
        """End; with `keep` so that a resumed run finds what was prepared."""


class RoomSource:
    """Synthetic rooms: endless, and always the same for a seed."""

    depth_unit = 'metre'
    length = None

    def __init__(self, config: TrainConfig) -> None:
        self.kinds = DEFAULT_KINDS
        self.usual_losses = {name: LOSSES[kind][0] for name, kind in DEFAULT_KINDS.items()}
        wanted = parse_tasks(config.tasks) if config.tasks else NYUV2_TASKS
        self.tasks = {name: NYUV2_TASKS[name] for name in select_tasks(wanted, NYUV2_TASKS)}
        if wanted != self.tasks:
            raise ValueError(f'tasks: {config.tasks}, but rooms have '
                             + ','.join(f'{name}:{count}' for name, count in NYUV2_TASKS.items()))
        self.labels = NYUV2_13 if SEGMENTATION in self.tasks else None
        self.size = config.input_height, config.input_width
        self.focal_length = config.focal_length
        self._config = config

    def stream(self, stages: Sequence[Stage], device: torch.device, folder: Path, rank: int,
               world: int, start: int) -> Stream:
        """Return training batches for a run at step `start`; from 0 it is a new one."""
        return RoomStream(stages, self._config.seed, self.focal_length, device, folder,
                          1e9 * self._config.pool_gigabytes, rank, world, start == 0)

    def validation(self, frames: int, device: torch.device) -> Iterable[Batch]:
        """Return batches of at most `frames` rooms that training never sees."""
        seeds = VALIDATION_SEEDS[:frames]
        packed = [render_packed(seeds[start:start + 4], self.size, self.focal_length, device)
                  for start in range(0, len(seeds), 4)]
        return _Unpacked(packed)


class _Unpacked:
    """Batches that are kept in their small form."""

    def __init__(self, packed: Sequence[Batch]) -> None:
        self._packed = packed

    def __iter__(self) -> Iterator[Batch]:
        return map(unpack, self._packed)


class FileSource:
    """
    Any data set of single samples, with a part of it for validation.

    :param train: and `validation`: samples as datasets.DenseDataset gives them.
    :param augmentation: of training batches; None for none.
    """

    def __init__(self, train: Dataset, validation: Dataset, tasks: Mapping[str, int],
                 kinds: Mapping[str, str], usual_losses: Mapping[str, str],
                 size: tuple[int, int], labels: LabelSet | None = None,
                 focal_length: float | None = None, depth_unit: str = 'metre', seed: int = 0,
                 augmentation: Augmentation | None = None, workers: int = 0) -> None:
        self.tasks, self.kinds, self.usual_losses = dict(tasks), kinds, usual_losses
        self.size, self.labels = size, labels
        self.focal_length, self.depth_unit = focal_length, depth_unit
        self.length = len(train)
        self._train, self._validation = train, validation
        self._seed, self._augmentation, self._workers = seed, augmentation, workers

    def stream(self, stages: Sequence[Stage], device: torch.device, folder: Path, rank: int,
               world: int, start: int) -> Stream:
        """Return training batches; ValueError if the stages are of another size."""
        for stage in stages:
            if (stage.height, stage.width) != self.size:
                raise ValueError(
                    f'stages: {stage.height}x{stage.width}, but the images of this data set are '
                    f'{self.size[0]}x{self.size[1]}; use that size, or prepare the data anew')
        return _FileStream(self._train, stages, self._seed, self._augmentation, device,
                           self._workers, rank, world)

    def validation(self, frames: int, device: torch.device) -> Iterable[Batch]:
        """Return batches of single validation samples, at most `frames`, from all parts of it."""
        length = len(self._validation)
        count = min(frames, length)
        # Neighbours are often of one scene.
        chosen = Subset(self._validation, [index * length // count for index in range(count)])
        loader = DataLoader(chosen, 1, num_workers=self._workers, generator=torch.Generator())
        return _Moved(loader, device)


class _Moved:
    """The batches of a loader, on a device."""

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device

    def __iter__(self) -> Iterator[Batch]:
        return (_move(batch, self._device) for batch in self._loader)


class _FileStream:
    """Shuffled batches whose content depends on seed and step number alone."""

    def __init__(self, dataset: Dataset, stages: Sequence[Stage], seed: int,
                 augmentation: Augmentation | None, device: torch.device, workers: int,
                 rank: int, world: int) -> None:
        self._dataset, self._stages, self._seed = dataset, stages, seed
        self._augmentation, self._device, self._workers = augmentation, device, workers
        self._rank, self._world = rank, world
        self._place: tuple[int, int] | None = None
        self._batches: Iterator[Batch] = iter(())
        # A batch may end one epoch and begin the next.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def batch(self, stage: int, step: int) -> Batch:
        if self._place != (stage, step):
            loader = DataLoader(self._dataset, batch_sampler=self._indices(stage, step),
                                num_workers=self._workers,
                                # Or it would draw from the numbers that dropout goes on with.
                                generator=torch.Generator(),
                                pin_memory=self._device.type == 'cuda')
            self._batches = iter(loader)
        self._place = stage, step + 1
        batch = _move(next(self._batches), self._device)
        if self._augmentation is None:
            return batch
        # From the step alone, so that a resumed run goes on with the same transforms.
        generator = torch.Generator().manual_seed(
            hash((self._seed, stage, step, self._rank)) % 2 ** 63)
        return self._augmentation(batch, generator)

    def ready(self, stage: int) -> bool:
        return True

    def close(self, keep: bool = False) -> None:
        self._batches = iter(())

    def _indices(self, stage: int, step: int) -> Iterator[list[int]]:
        """Yield this process's indices of every step from `step` on, epoch after epoch."""
        size, length = self._stages[stage].batch, len(self._dataset)
        own = size // self._world
        while True:
            places = range(step * size, (step + 1) * size)
            indices = [self._order(stage, place // length)[place % length] for place in places]
            yield indices[self._rank * own:(self._rank + 1) * own]
            step += 1

    def _shuffled(self, stage: int, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(
            hash((self._seed, stage, epoch)) % 2 ** 63)
        return torch.randperm(len(self._dataset), generator=generator).tolist()


def open_source(config: TrainConfig) -> RoomSource | FileSource:
    """
    Return the data set of a configuration, checked as far as it can be before training.

    :raises ValueError: naming the key, or the file and its fault.
    """
    if config.data == 'synthetic':
        return RoomSource(config)
    if not config.root:
        raise ValueError(f'root: where is the data set {config.data}? give its folder, or for '
                         'folder its YAML file')
    wanted = parse_tasks(config.tasks) if config.tasks else None
    train, validation = (open_dataset(config.data, config.root, split, wanted)
                         for split in ('train', 'val'))
    for dataset in (train, validation):
        check_dataset(dataset)
    if wanted and wanted != train.tasks:
        raise ValueError(f'tasks: {config.tasks}, but the data set has '
                         + ','.join(f'{name}:{count}' for name, count in train.tasks.items()))
    augmentation = Augmentation(train.kinds, config.scales, config.flip, config.jitter)
    return FileSource(train, validation, train.tasks, train.kinds, train.losses, train.size,
                      train.labels, train.focal_length, train.depth_unit, config.seed,
                      augmentation, config.workers)


def make_card(source: RoomSource | FileSource, config: TrainConfig) -> ModelCard:
    """Return the card of the network that a configuration trains on a data set."""
    return ModelCard(
        tasks=source.tasks, backbone=config.backbone, output_stride=config.output_stride,
        head_channels=config.head_channels, aspp_rates=config.aspp_rates,
        labels=source.labels, input_size=source.size, focal_length=source.focal_length,
        depth_unit=source.depth_unit)


def count_steps(epochs: float, length: int | None, stages: Sequence[Stage]) -> int:
    """Return the steps of so many epochs; ValueError for an endless data set."""
    if length is None:
        raise ValueError('epochs: synthetic rooms have no end; give minutes or steps')
    begin, batch = 0.0, 0.0  # the batch on average, by each stage's share of the training
    for stage in stages:
        batch += (stage.until - begin) * stage.batch
        begin = stage.until
    return math.ceil(round(epochs * length / batch, 6))  # the average is not exact


def _move(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
