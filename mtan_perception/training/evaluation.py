# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Judge predictions against the truth: the figures, and what is needed to draw them.

The predictions come from the same engine as the node's, from 8-bit images, so that the figures
are those of what a user gets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
import heapq

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mtan_perception.inference import Prediction
from mtan_perception.labels import generic, LabelSet
from mtan_perception.metrics import DepthMetrics, NormalMetrics, SegmentationMetrics
from mtan_perception.model_card import ModelCard
from mtan_perception.synthetic import render
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training.datasets import DatasetError, DenseDataset
from mtan_perception.training.rooms import TEST_SEEDS, training_seeds, VALIDATION_SEEDS

TASKS = (SEGMENTATION, DEPTH, NORMAL)

WORST = 10
"""How many of the worst frames are kept for a picture."""

SPLIT_SEEDS = {'test': TEST_SEEDS, 'val': VALIDATION_SEEDS[:500],
               'train': training_seeds(0, 0, 500)}
"""The synthetic scenes of each split by which weights are judged."""

# Pixels of a frame that are kept to draw the depth error against the distance.
_DEPTH_SAMPLES = 1000
_RENDER_AT_ONCE = {'cpu': 1, 'cuda': 64}


@dataclass(frozen=True)
class Frame:
    """
    One judged frame.

    `image` is uint8 RGB of any size. `output` and `truth` hold by task, in one size: class ids
    (H, W), metres (H, W), vectors (H, W, 3). `errors` holds the frame's share of wrong pixels,
    relative depth error and mean angle in degrees, where it has a pixel to judge.
    """

    name: str
    image: np.ndarray
    output: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    errors: dict[str, float]

    @property
    def badness(self) -> float:
        """
        How bad it is over all tasks, by which the worst frames are found.

        The mean of the share of wrong pixels, the relative depth error and the mean angle as a
        share of 90 degrees, which are of one order of magnitude in practice.
        """
        values = [error / (90 if task == NORMAL else 1) for task, error in self.errors.items()]
        return sum(values) / len(values) if values else 0.0


class Evaluation:
    """
    The figures over all frames that it has been shown, and what their pictures need.

    :param channels: of the tasks to judge, by name; those of segmentation are the classes.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        make = {SEGMENTATION: lambda: SegmentationMetrics(channels[SEGMENTATION]),
                DEPTH: DepthMetrics, NORMAL: NormalMetrics}
        self.metrics = {task: make[task]() for task in TASKS if task in channels}
        self.count = 0
        self.depth_samples = [np.empty((2, 0), np.float32)]  # truth, output
        self._depth_asked = 0
        self._worst: list[tuple[float, int, Frame]] = []

    def update(self, name: str, image: np.ndarray, output: Mapping[str, np.ndarray],
               truth: Mapping[str, np.ndarray]) -> None:
        """
        Judge one frame; the arguments are those of Frame.

        Raise ValueError naming the frame, if output and truth do not fit together.
        """
        before = self._totals()
        try:
            for task, metrics in self.metrics.items():
                metrics.update(output[task], truth[task])
        except ValueError as error:
            raise ValueError(f'{name}: {task}: {error}') from error
        if DEPTH in self.metrics:
            self._keep_depth(output[DEPTH], truth[DEPTH])
        errors = {}
        for task, (error, count) in self._totals().items():
            pixels = count - before[task][1]
            if pixels:
                errors[task] = (error - before[task][0]) / pixels
        frame = Frame(name, image, {task: output[task] for task in self.metrics},
                      {task: truth[task] for task in self.metrics}, errors)
        heapq.heappush(self._worst, (frame.badness, -self.count, frame))
        if len(self._worst) > WORST:
            heapq.heappop(self._worst)
        self.count += 1

    def result(self) -> dict[str, dict]:
        """Return the figures of each judged task, by the names of `metrics`."""
        return {task: metrics.result() for task, metrics in self.metrics.items()}

    def worst_frames(self) -> list[Frame]:
        """Return the worst frames, the worst first."""
        return [frame for _, _, frame in sorted(self._worst, key=lambda item: item[:2])[::-1]]

    def depth_known(self) -> float:
        """Return the share of the pixels with a true depth for which one was predicted."""
        return self.metrics[DEPTH].count / self._depth_asked if self._depth_asked else np.nan

    def _totals(self) -> dict[str, tuple[float, int]]:
        """Return the sum of the errors and the number of pixels so far, by task."""
        totals = {}
        if SEGMENTATION in self.metrics:
            confusion = self.metrics[SEGMENTATION].confusion
            pixels = int(confusion.sum())
            totals[SEGMENTATION] = pixels - int(confusion.diagonal().sum()), pixels
        if DEPTH in self.metrics:
            totals[DEPTH] = self.metrics[DEPTH].relative, self.metrics[DEPTH].count
        if NORMAL in self.metrics:
            metrics = self.metrics[NORMAL]
            totals[NORMAL] = metrics.sums.sum().item(), int(metrics.counts.sum())
        return totals

    def _keep_depth(self, output: np.ndarray, truth: np.ndarray) -> None:
        asked = (truth > 0) & np.isfinite(truth)
        self._depth_asked += int(asked.sum())
        pairs = np.stack((truth[asked], output[asked]))
        # At even distances through the image, which needs no random numbers.
        pairs = pairs[:, ::max(1, pairs.shape[1] // _DEPTH_SAMPLES)]
        self.depth_samples.append(pairs[:, np.isfinite(pairs[1])].astype(np.float32))


def choose_tasks(card: ModelCard, data_tasks: Mapping[str, int], data_labels: LabelSet | None,
                 depth_unit: str = 'metre', wanted: Iterable[str] | None = None) -> dict[str, int]:
    """
    Return the tasks, with their channels, that the weights and the data have in common.

    :param depth_unit: of the data, as in ModelCard.
    :param wanted: names of the tasks to judge; None for as many as possible.
    :raises ValueError: for a wanted task that one of them lacks, for none in common, and where
        the classes or the units are not the same.
    """
    for name in wanted or ():
        for owner, tasks in (('weights', card.tasks), ('data', data_tasks)):
            if name not in TASKS or name not in tasks:
                raise ValueError(f'tasks: the {owner} have no {name!r} that could be judged; '
                                 f'they have {", ".join(tasks)}')
    common = {name: card.tasks[name] for name in TASKS if name in card.tasks
              and name in data_tasks and (wanted is None or name in wanted)}
    if not common:
        raise ValueError(f'the weights have {", ".join(card.tasks)} and the data '
                         f'{", ".join(data_tasks)}: no task to judge in common; use other weights')
    misfit = _misfit(card, common, data_tasks, data_labels, depth_unit)
    if misfit is not None:
        task, ours, theirs = misfit
        rest = ','.join(name for name in common if name != task)
        raise ValueError(f'{task}: the weights have {ours}, the data {theirs}; use weights that '
                         'were trained for such data'
                         + (f', or judge the rest with --tasks {rest}' if rest else ''))
    return common


def _misfit(card: ModelCard, common: Iterable[str], data_tasks: Mapping[str, int],
            data_labels: LabelSet | None, depth_unit: str) -> tuple[str, str, str] | None:
    """Return a task of which weights and data mean different things, and what either means."""
    if SEGMENTATION in common:
        ours, theirs = card.labels, data_labels or generic(data_tasks[SEGMENTATION])
        # Where one of them has no names, the number has to do.
        named = generic(len(ours.names)) not in (ours, theirs)
        if len(ours.names) != len(theirs.names) or (named and ours.names != theirs.names):
            return (SEGMENTATION, f'{len(ours.names)} classes ({ours.name})',
                    f'{len(theirs.names)} ({theirs.name})')
    if DEPTH in common and card.depth_unit != depth_unit:
        return DEPTH, f'the unit {card.depth_unit}', depth_unit
    return None


def evaluate(engine, frames: Iterable[tuple[str, Mapping[str, Tensor]]],
             channels: Mapping[str, int],
             progress: Callable[[int], None] = lambda done: None) -> Evaluation:
    """
    Run the engine on each frame and judge its predictions.

    :param engine: an Engine; it needs `card` and `infer(image, tasks, focal_length)`.
    :param frames: name and sample of each: 'image' (3, H, W) RGB in 0..1; the truth:
        'segmentation' (H, W) with -1 for unlabelled, 'depth' (1, H, W) with 0 for unknown,
        'normal' (3, H, W) in the optical frame with zeros for unknown; and, where known,
        'intrinsics' (3, 3).
    :param channels: of the tasks to judge, from `choose_tasks`.
    :param progress: called with the number of frames that are done.
    :raises ValueError: if there is no frame, or naming one that cannot be judged.

    A prediction of another size than the truth is resized to it. The engine corrects depth by
    the camera's focal length where that is known.
    """
    evaluation = Evaluation(channels)
    for name, sample in frames:
        image = to_image(sample['image'])
        focal_length = float(sample['intrinsics'][0, 0]) if 'intrinsics' in sample else None
        prediction = engine.infer(image, tuple(channels), focal_length)
        truth = _truth(sample, channels)
        evaluation.update(name, image, _outputs(prediction, channels, image.shape[:2]), truth)
        progress(evaluation.count)
    if not evaluation.count:
        raise ValueError('no frame to judge; choose another part of the data')
    return evaluation


def synthetic_frames(seeds: range, size: tuple[int, int],
                     device: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield name and sample of each seed's room at `size` (height, width), on the CPU."""
    step = _RENDER_AT_ONCE.get(torch.device(device).type, 1)
    for start in range(0, len(seeds), step):
        part = seeds[start:start + step]
        fields = [field.cpu() for field in render(part, *size, device=device)]
        for seed, rgb, label, depth, normal, intrinsics in zip(part, *fields, strict=True):
            yield f'seed {seed}', {'image': rgb, SEGMENTATION: label, DEPTH: depth,
                                   NORMAL: normal, 'intrinsics': intrinsics}


def dataset_frames(dataset: DenseDataset, limit: int | None,
                   skipped: list[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """
    Yield name and sample of the first `limit` frames of a data set.

    A frame that cannot be used is left out; what is wrong with it is appended to `skipped`.
    """
    for index, name in enumerate(dataset.names[:limit]):
        try:
            sample = dataset.load(index)
        except DatasetError as error:
            skipped.append(str(error))
            continue
        yield name, sample


def to_image(rgb: Tensor) -> np.ndarray:
    """Return what a camera would deliver: (H, W, 3) uint8 from (3, H, W) in 0..1."""
    return (255 * rgb).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()


def _truth(sample: Mapping[str, Tensor], tasks: Iterable[str]) -> dict[str, np.ndarray]:
    arrange = {SEGMENTATION: lambda label: label, DEPTH: lambda depth: depth[0],
               NORMAL: lambda normal: normal.permute(1, 2, 0)}
    return {task: arrange[task](sample[task]).cpu().numpy() for task in tasks}


def _outputs(prediction: Prediction, tasks: Iterable[str],
             size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the outputs by task, resized to `size`: classes to the nearest, others bilinear."""
    arrays = {SEGMENTATION: prediction.label, DEPTH: prediction.depth, NORMAL: prediction.normal}
    return {task: _resize(arrays[task], size, 'nearest-exact' if task == SEGMENTATION
                          else 'bilinear') for task in tasks}


def _resize(array: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    planes = torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    resized = functional.interpolate(planes[None], size, mode=mode)[0].permute(1, 2, 0)
    return resized.reshape(*size, *array.shape[2:]).numpy()
