# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: one network on one device, from camera image to finished predictions."""

from collections.abc import Callable, Iterable, Sequence
import gc
import logging
import math
import numbers
import os
import time
from typing import Any, TypeVar

import numpy as np

from mtan_perception.geometry import correct_depth, Fit, fit_image, INPUT_LIMITS
from mtan_perception.inference.backends import Backend, build_backend, Images
from mtan_perception.inference.devices import (
    choose_device,
    choose_precision,
    free_unused_memory,
    is_gpu,
    is_out_of_memory,
)
from mtan_perception.inference.errors import BackendError, EngineError, first_line
from mtan_perception.inference.images import limit_confidence, limit_depth
from mtan_perception.inference.prediction import Prediction
from mtan_perception.inference.weights_file import WeightsFile
from mtan_perception.model_card import read_card, UNTRAINED
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION, select_tasks

_LOGGER = logging.getLogger(__name__)

Result = TypeVar('Result')
_OUTPUT_TASKS = (SEGMENTATION, DEPTH, NORMAL)


class Engine:
    """
    Segmentation, depth and surface normals of single images.

    An engine belongs to one thread: build it, set it and call it there. `tasks`, `input_size`,
    `depth_range` and `confidence_threshold` may be set between frames and hold from the next one
    on; a value that is refused leaves the old one in place.

    :param weights: a checkpoint file, 'default', or 'random' for outputs that mean nothing.
    :param device: 'auto' (CUDA where there is a device), 'cpu', 'cuda' or 'cuda:N'.
    :param precision: 'auto' (fp16 on CUDA, else fp32), 'fp32', 'fp16' or 'bf16'. One that the
        device lacks is replaced by fp32, with a warning. On CUDA torch computes the convolutions
        of fp32 in TF32, of 10 bits, unless torch.backends.cudnn.allow_tf32 is False.
    :param tasks: those to compute, by name; None for all that the network has.
    :param input_size: (height, width) into which an image is fitted; None for the checkpoint's.
    :param backend: 'auto' (the fastest that can run here), or one of
        mtan_perception.inference.backends.BACKENDS; where that cannot run, a warning says why and
        torch takes its place.
    :raises EngineError: for a device, precision, task, size or backend that cannot be.
    :raises mtan_perception.checkpoint.CheckpointError: for weights that cannot be read.
    """

    def __init__(self, weights: str | os.PathLike, device: str = 'auto', precision: str = 'auto',
                 tasks: Iterable[str] | None = None,
                 input_size: tuple[int, int] | None = None, backend: str = 'auto') -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.card = read_card(weights)
        if str(weights) == 'random':
            _LOGGER.warning(UNTRAINED)
        if not self.available_tasks:
            raise EngineError(f"weights: {weights} has the task(s) {', '.join(self.card.tasks)}; "
                              f"an engine needs at least one of {', '.join(_OUTPUT_TASKS)}")
        self.tasks = self.available_tasks if tasks is None else tasks
        self.input_size = self.card.input_size if input_size is None else input_size
        self.depth_range = (0.0, math.inf)
        self.confidence_threshold = 0.0
        self._weights = WeightsFile(weights)
        self._backend: Backend | None = None
        self._images: Images | None = None
        self._lacking: str | None = backend
        """The backend that is to be built; None once it is."""
        self._persist(lambda: None)

    @property
    def backend(self) -> str:
        """Name of the runtime that runs the network, or is to."""
        return self._lacking if self._backend is None else self._backend.name

    @property
    def available_tasks(self) -> tuple[str, ...]:
        """The network's tasks of which a Prediction has the outputs."""
        return tuple(name for name in self.card.tasks if name in _OUTPUT_TASKS)

    @property
    def corrects_depth(self) -> bool:
        """Whether depth can be corrected by a camera's focal length: the weights name theirs."""
        return self.card.corrects_depth

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks to compute, in the network's order."""
        return self._tasks

    @tasks.setter
    def tasks(self, names: Iterable[str]) -> None:
        self._tasks = self._select_tasks(names)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels into which an image is fitted, each 32 to 4096."""
        return self._input_size

    @input_size.setter
    def input_size(self, size: tuple[int, int]) -> None:
        try:
            height, width = map(int, size)
            if (height, width) != tuple(size):
                raise ValueError
        except (OverflowError, TypeError, ValueError):
            raise EngineError(f'input_size: {size!r} is not (height, width) in whole pixels'
                              ) from None
        least, most = INPUT_LIMITS
        if not least <= min(height, width) <= max(height, width) <= most:
            raise EngineError(f'input_size: {height}x{width}; height and width must be '
                              f'{least} to {most} pixels')
        self._input_size = height, width

    @property
    def depth_range(self) -> tuple[float, float]:
        """(min, max) in metres; depth outside becomes NaN."""
        return self._depth_range

    @depth_range.setter
    def depth_range(self, limits: tuple[float, float]) -> None:
        try:
            limits = tuple(limits)
            nearest, farthest = map(float, limits)
            if not 0 <= nearest < farthest:
                raise ValueError
        except (TypeError, ValueError):
            raise EngineError(f'depth_range: {limits!r}; give two distances in metres, the first '
                              'at least 0 and less than the second') from None
        self._depth_range = nearest, farthest

    @property
    def confidence_threshold(self) -> float:
        """Probability, 0 to 1, below which a pixel is labelled 255."""
        return self._confidence_threshold

    @confidence_threshold.setter
    def confidence_threshold(self, threshold: float) -> None:
        try:
            value = float(threshold)
            if not 0 <= value <= 1:
                raise ValueError
        except (TypeError, ValueError):
            raise EngineError(f'confidence_threshold: {threshold!r}; give a probability, 0 to 1'
                              ) from None
        self._confidence_threshold = value

    def warm_up(self) -> None:
        """Run once on a blank image of the input size, so that the first frame is not slow."""
        images = [np.zeros((*self.input_size, 3), np.uint8)]
        if not self.prepare(images):
            self.infer_batch(images)

    def prepare(self, images: Sequence[np.ndarray], tasks: Iterable[str] | None = None) -> bool:
        """
        Build what images like these lack to be inferred as fast as ever, and run them once.

        That is for each further size that the network sees, set of tasks and, on CUDA, number of
        images. Without it some backends build on the first call, and others run what came once
        in a slower way.

        :param images: as for `infer_batch`.
        :param tasks: as for `infer_batch`.
        :returns: whether anything was lacking. If so it took seconds, and a camera has a newer
            image by now.
        :raises EngineError: as `infer_batch`.
        """
        _check_images(images)
        wanted = self._wanted(tasks)
        groups = self._group(images)
        lacked = [self._prepare_group((len(group), 3, *size), wanted)
                  for size, group in groups.items()]
        lacked += [self._persist(lambda index=index, fit=fit: self._images.prepare(
            images[index], fit)) for group in groups.values() for index, fit in group]
        if any(lacked):
            self.infer_batch(images, wanted)
        return any(lacked)

    def infer(self, image: np.ndarray, tasks: Iterable[str] | None = None,
              focal_length: float | None = None) -> Prediction:
        """
        Predict the tasks of one image.

        :param image: (H, W, 3) uint8 RGB of any size; it is scaled by one factor to fit into
            `input_size`, never stretched, and read but not kept.
        :param tasks: those wanted for this image; None for `self.tasks`.
        :param focal_length: the camera's, in pixels of `image`; depth is corrected from the one
            it was learnt for (see `corrects_depth`). None leaves depth as the network gives it.
        :raises EngineError: for an image of another type or shape, or an unknown task.
        """
        _check_image(image)
        _check_focal_length(focal_length)
        return self.infer_batch([image], tasks, [focal_length])[0]

    def infer_batch(self, images: Sequence[np.ndarray], tasks: Iterable[str] | None = None,
                    focal_lengths: Sequence[float | None] | None = None) -> list[Prediction]:
        """
        Predict the tasks of several images, as `infer` does, in their order.

        Images that the network sees at one size go through it together, so the caller chooses by
        their number how much memory that takes. Each prediction's timings are its share.

        :param images: each (H, W, 3) uint8 RGB of any size.
        :param tasks: those wanted for these images; None for `self.tasks`.
        :param focal_lengths: one for each image, or None for none.
        :raises EngineError: for an image of another type or shape, an unknown task, or another
            number of focal lengths than of images.
        """
        _check_images(images)
        if focal_lengths is None:
            focal_lengths = [None] * len(images)
        if len(focal_lengths) != len(images):
            raise EngineError(f'focal_lengths: {len(focal_lengths)} for {len(images)} images; '
                              'give one for each, None where it is not known')
        wanted = self._wanted(tasks)
        for index, focal_length in enumerate(focal_lengths):
            _check_focal_length(focal_length, f'focal_lengths[{index}]')
        predictions = {}
        for group in self._group(images).values():
            indices, fits = zip(*group, strict=True)
            predictions |= zip(indices, self._infer_group(
                [images[index] for index in indices], fits, wanted,
                [focal_lengths[index] for index in indices]), strict=True)
        return [predictions[index] for index in range(len(images))]

    def _group(self, images: Sequence[np.ndarray]
               ) -> dict[tuple[int, int], list[tuple[int, Fit]]]:
        """Return for each size that the network sees its images' indices and how they fit."""
        groups: dict[tuple[int, int], list[tuple[int, Fit]]] = {}
        for index, image in enumerate(images):
            # A feature map's last cell is whole only if the size is a multiple of the stride too.
            fit = fit_image(image.shape[:2], self.input_size, self.card.size_multiple)
            groups.setdefault((fit.padded_height, fit.padded_width), []).append((index, fit))
        return groups

    def _prepare_group(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        return self._persist(lambda: self._backend.prepare(shape, tasks))

    def _infer_group(self, images: Sequence[np.ndarray], fits: Sequence[Fit],
                     tasks: tuple[str, ...],
                     focal_lengths: Sequence[float | None]) -> list[Prediction]:
        """Predict images that are padded to one size."""
        return self._persist(lambda: self._infer_on_device(images, fits, tasks, focal_lengths))

    def _infer_on_device(self, images: Sequence[np.ndarray], fits: Sequence[Fit],
                         tasks: tuple[str, ...],
                         focal_lengths: Sequence[float | None]) -> list[Prediction]:
        clock = _Stopwatch(self._images.wait, len(images))
        resized, x = self._images.load(images, fits)
        clock.lap('preprocess')
        finished = self._backend(x, tasks)
        clock.lap('network')
        outputs = {}
        for index, (fit, focal_length) in enumerate(zip(fits, focal_lengths, strict=True)):
            cropped = {name: output[index, :fit.height, :fit.width]
                       for name, output in finished.items()}
            if 'depth' in cropped and focal_length is not None and self.corrects_depth:
                cropped['depth'] = correct_depth(
                    cropped['depth'], focal_length * fit.scale, self.card.focal_length)
            outputs[index, 'image'] = resized[index]
            outputs |= {(index, name): output for name, output in self._limit(cropped).items()}
        arrays = self._images.fetch(outputs)
        clock.lap('postprocess')
        return [Prediction(scale=fit.scale, timings=dict(clock.laps),
                           **{name: array for (owner, name), array in arrays.items()
                              if owner == index})
                for index, fit in enumerate(fits)]

    def _limit(self, images: dict[str, Any]) -> dict[str, Any]:
        """Apply the settings to one image's finished outputs; return those of a Prediction."""
        outputs = {}
        if 'label' in images:
            outputs['label'], outputs['confidence'] = limit_confidence(
                images['label'], images['probability'], self.confidence_threshold)
        if 'depth' in images:
            outputs['depth'] = limit_depth(images['depth'], self.depth_range)
        if 'normal' in images:
            outputs['normal'] = images['normal']
        return outputs

    def _build(self, backend: str, failed: str | None) -> None:
        self._weights.check()
        self._backend = build_backend(backend, self._weights.name, self.device, self.precision,
                                      self.card.normal_axes, failed)
        self._images = self._backend.images(self.device, self.card.mean, self.card.std)
        self.precision = self._backend.precision

    def _persist(self, action: Callable[[], Result]) -> Result:
        """Return action(), on another backend or device where the present one fails."""
        failed = None
        while True:
            try:
                if self._lacking is not None:
                    self._build(self._lacking, failed)
                    self._lacking = None
                return action()
            except RuntimeError as error:
                device = self.device
                failed = None if self._backend is None else self._backend.name
                backend = self._retreat(error)
                if backend is None:
                    raise
                self._lacking = backend
            # The error is gone here, and what failed with it, which held the device's memory.
            gc.collect()
            free_unused_memory(device)

    def _retreat(self, error: RuntimeError) -> str | None:
        """
        Leave the backend that failed, or the device that is too small, and say so.

        :returns: the backend to go on with, None where nothing is left to try.
        :raises EngineError: where the memory of the CPU is too small.
        """
        reason, used = first_line(error), self._backend
        if is_gpu(self.device) and is_out_of_memory(error):
            _LOGGER.warning('device: %s has too little memory (%s); going on, slower, on the CPU: '
                            'choose a smaller input_size, fewer tasks or lighter weights',
                            self.device, reason)
            self._backend = self._images = None
            self.device, self.precision = 'cpu', 'fp32'
            return 'auto'
        if isinstance(error, BackendError) and used is not None and used.name != 'torch':
            _LOGGER.warning('backend: failed (%s); going on with torch', reason)
            self._backend = self._images = None
            return 'torch'
        if is_out_of_memory(error):
            height, width = self.input_size
            raise EngineError(f'input_size: too little memory for {height}x{width} ({reason}); '
                              'choose a smaller one, fewer tasks or lighter weights') from error
        return None

    def _wanted(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        return self.tasks if tasks is None else self._select_tasks(tasks)

    def _select_tasks(self, names: Iterable[str]) -> tuple[str, ...]:
        choices = self.available_tasks
        try:
            selected = select_tasks([names] if isinstance(names, str) else names, choices)
        except ValueError as error:
            raise EngineError(str(error)) from None
        if not selected:
            raise EngineError(f'tasks: none wanted; name at least one of {", ".join(choices)}')
        return selected


class _Stopwatch:
    """
    Seconds of each stage for one of `count` images.

    :param wait: waits for the device, at the end of a stage.
    """

    def __init__(self, wait: Callable[[], None], count: int) -> None:
        self.laps: dict[str, float] = {}
        self._wait = wait
        self._count = count
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the stage `name`; the next one starts now."""
        self._wait()
        now = time.perf_counter()
        self.laps[name] = (now - self._start) / self._count
        self._start = now


def _check_focal_length(focal_length: float | None, name: str = 'focal_length') -> None:
    if focal_length is None:
        return
    if not isinstance(focal_length, numbers.Real) or not 0 < focal_length < math.inf:
        raise EngineError(f'{name}: {focal_length!r}; give it in pixels, above 0, or None')


def _check_images(images: Sequence[np.ndarray]) -> None:
    for index, image in enumerate(images):
        _check_image(image, f'images[{index}]')


def _check_image(image: np.ndarray, name: str = 'image') -> None:
    if not isinstance(image, np.ndarray):
        raise EngineError(f'{name}: a {type(image).__name__}; give a numpy array')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise EngineError(f'{name}: {image.dtype} of shape {image.shape}; give uint8 RGB of shape '
                          '(height, width, 3), at least one pixel')
