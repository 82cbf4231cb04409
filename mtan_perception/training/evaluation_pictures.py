# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation; apart from it, because the charts need OpenCV."""

import numpy as np

from mtan_perception.charts import band_chart, confusion_matrix, histogram
from mtan_perception.labels import LabelSet, UNLABELLED
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training.evaluation import Evaluation, Frame
from mtan_perception.visualization import (
    color_depth,
    color_mask,
    color_normal,
    contact_sheet,
    depth_range,
)

SHEET_WIDTH = 384
"""Greatest width of one picture on the contact sheet, in pixels."""
_DISTANCES = 24
# With fewer pixels of the sample, the quartiles of a distance say nothing.
_LEAST_PIXELS = 30


def draw(evaluation: Evaluation, labels: LabelSet | None,
         depth_unit: str = 'metre') -> dict[str, np.ndarray]:
    """
    Return the pictures, uint8 (H, W, 3) RGB, by name; those of tasks that were not judged lack.

    `labels` names and colours the classes; it may be None where there is no segmentation.
    """
    pictures = {}
    metrics = evaluation.metrics
    if SEGMENTATION in metrics:
        pictures['confusion_matrix'] = confusion_matrix(
            metrics[SEGMENTATION].confusion.numpy(), labels.names, labels.colors)
    if DEPTH in metrics:
        pictures['depth_error'] = _depth_error(evaluation, depth_unit)
    if NORMAL in metrics:
        pictures['normal_angle'] = _angles(evaluation)
    frames = evaluation.worst_frames()
    if frames:
        palette = None if labels is None else labels.palette
        pictures['worst_frames'] = contact_sheet([_row(frame, palette) for frame in frames],
                                                 labels)
    return pictures


def _depth_error(evaluation: Evaluation, unit: str) -> np.ndarray:
    truth, output = np.concatenate(evaluation.depth_samples, axis=1).astype(np.float64)
    title = 'Depth error against distance: median, and the middle half of the pixels'
    unit = 'm' if unit == 'metre' else unit
    labels = {'x_label': f'true distance ({unit})', 'y_label': f'prediction - truth ({unit})'}
    # The rare ends of the distances would squeeze the others.
    nearest, farthest = np.percentile(truth, (0.5, 99.5)) if truth.size else (0.0, 1.0)
    edges = np.linspace(nearest, max(farthest, nearest + 1e-6), _DISTANCES + 1)
    quartiles = np.full((3, _DISTANCES), np.nan)
    place = np.digitize(truth, edges) - 1
    for index in range(_DISTANCES):
        error = (output - truth)[place == index]
        if error.size >= _LEAST_PIXELS:
            quartiles[:, index] = np.percentile(error, (25, 50, 75))
    return band_chart((edges[:-1] + edges[1:]) / 2, *quartiles, title=title, **labels)


def _angles(evaluation: Evaluation) -> np.ndarray:
    metrics = evaluation.metrics[NORMAL]
    result = metrics.result()
    degrees = metrics.counts.numpy()[:-1].reshape(180, -1).sum(1).astype(np.float64)
    degrees[-1] += metrics.counts[-1].item()
    shares = 100 * degrees / max(degrees.sum(), 1)
    # At least to 45 degrees, and further only as far as there is something to see.
    end = max(45, min(180, int(np.searchsorted(shares.cumsum(), 99.5)) + 5))
    marks = [(result[key], f'{key} {result[key]:.1f}') for key in ('median', 'mean')]
    marks += [(limit, f'within {limit:g}: {100 * result[f"within_{limit:g}"]:.1f} %')
              for limit in (11.25, 22.5, 30)]
    return histogram(np.arange(end + 1), shares[:end], sorted(marks),
                     title='Angle between predicted and true normals',
                     x_label='angle (degrees)', y_label='pixels (%)')


def _row(frame: Frame, palette: np.ndarray | None) -> list[tuple[str, np.ndarray]]:
    """Return captions and pictures of a frame: the input, then each output beside its truth."""
    row = [(frame.name, _shrink(frame.image))]
    for task in frame.output:
        output, truth = (_paint(task, value, frame, palette)
                         for value in (frame.output[task], frame.truth[task]))
        row += [(_caption(task, frame.errors.get(task)), output), ('truth', truth)]
    return row


def _caption(task: str, error: float | None) -> str:
    if error is None:
        return f'{task}: no true pixel'
    return {SEGMENTATION: f'{task}: {100 * error:.0f} % wrong', DEPTH: f'{task}: rel {error:.2f}',
            NORMAL: f'{task}: {error:.0f} deg'}[task]


def _paint(task: str, value: np.ndarray, frame: Frame, palette: np.ndarray | None) -> np.ndarray:
    if task == SEGMENTATION:
        known = (value >= 0) & (value < UNLABELLED)
        return _shrink(color_mask(np.where(known, value, UNLABELLED).astype(np.uint8), palette))
    if task == DEPTH:
        limits = depth_range(frame.truth[DEPTH])
        return _shrink(color_depth(np.where(value > 0, value, np.nan), *limits))
    return _shrink(color_normal(value))


def _shrink(picture: np.ndarray) -> np.ndarray:
    if picture.shape[1] <= SHEET_WIDTH:
        return picture
    # The nearest pixels, because a mixture of two classes' colours would be that of a third.
    step = picture.shape[1] / SHEET_WIDTH
    rows, columns = (((np.arange(max(1, int(length / step))) + 0.5) * step).astype(int)
                     for length in picture.shape[:2])
    return picture[rows[:, None], columns]
