# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Show a training frame larger, mirrored and in another light, with its truth transformed along.

Zooming in by s shows the picture that a camera with s times the focal length would have taken:
nothing in the scene moves, so normals stay, and so would metric depth. But a network cannot see
the focal length. It learns depth for one fixed focal length f (`ModelCard.focal_length`), and for
that a thing s times as large is s times nearer: the depth to learn is z / s (and the inverse depth
s / z). A sample's depth is always meant for the data set's own focal length f, its 'intrinsics'
always are the camera that would have taken the picture, with focal length s * f after a zoom.
Metric depth in that camera is therefore depth * (intrinsics[0, 0] / f), which is
`geometry.correct_depth`, the step by which inference treats a camera of another focal length.
Mirroring negates the normals' x and moves the principal point; depth stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mtan_perception.tasks import DEPTH, NORMAL
from mtan_perception.training.layouts import DEFAULT_KINDS, INVERSE_DEPTH

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class _Window(NamedTuple):
    """What N frames show of their originals: zoom, first row and column, mirrored; each (N,)."""

    scale: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor


@dataclass(frozen=True)
class Augmentation:
    """
    Random scale and crop, mirroring and photometric jitter of a sample or of a batch.

    :param kinds: task -> kind, from the data set; a task that is not listed is no spatial one
        and passes unchanged.
    :param scales: zooms to choose from, each at least 1; the crop is as large as fits the frame.
    :param flip: probability of mirroring left and right.
    :param jitter: brightness, contrast and saturation change by factors of up to 1 +- jitter;
        0 leaves the colours as they are.
    :raises ValueError: naming the entry that cannot be.
    """

    kinds: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_KINDS))
    scales: tuple[float, ...] = (1.0, 1.2, 1.5)
    flip: float = 0.5
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f'scales: {self.scales}; give zooms of at least 1')
        for name in ('flip', 'jitter'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}: {getattr(self, name)}; give a number from 0 to 1')

    def __call__(self, sample: Mapping[str, Tensor],
                 generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """
        Return the transformed sample; each frame of a batch gets a transform of its own.

        :param sample: as datasets.DenseDataset gives it, or stacked along a first axis; on any
            device. It is not changed.
        :param generator: source of the random numbers, on the CPU; None for torch's own.
        """
        if sample['image'].ndim == 4:
            return self._batch(sample, generator)
        batch = self._batch({name: tensor[None] for name, tensor in sample.items()}, generator)
        return {name: tensor[0] for name, tensor in batch.items()}

    def _batch(self, sample: Mapping[str, Tensor],
               generator: torch.Generator | None) -> dict[str, Tensor]:
        image = sample['image']
        count, _, height, width = image.shape
        draws = torch.rand(7, count, generator=generator)
        window = self._choose_window(draws[:4], height, width, image.device)
        rows, columns = _source(window, height, width)
        result = {**sample, 'image': _bilinear(image, rows, columns)}
        for name, kind in self.kinds.items():
            if name in sample:
                result[name] = _transformed(sample[name], kind, window, rows, columns)
        if 'intrinsics' in sample:
            result['intrinsics'] = _moved_camera(sample['intrinsics'], window, width)
        if self.jitter:
            factors = 1 + self.jitter * (2 * draws[4:] - 1)
            result['image'] = _jittered(result['image'], factors.to(image))
        return result

    def _choose_window(self, draws: Tensor, height: int, width: int,
                       device: torch.device) -> _Window:
        choice = (draws[0] * len(self.scales)).long()
        scale = torch.tensor(self.scales)[choice]
        # Whole pixels, so that a scale of 1 leaves every value as it is.
        top = (draws[1] * ((height - height / scale).floor() + 1)).floor()
        left = (draws[2] * ((width - width / scale).floor() + 1)).floor()
        return _Window(*(value.to(device) for value in (scale, top, left, draws[3] < self.flip)))


def _source(window: _Window, height: int, width: int) -> tuple[Tensor, Tensor]:
    """
    Return where in the original the centre of each row (N, H) and column (N, W) comes from.

    Pixel i covers i to i + 1 here, so that its centre is at i + 0.5.
    """
    row = torch.arange(height, device=window.scale.device) + 0.5
    column = torch.arange(width, device=window.scale.device) + 0.5
    column = torch.where(window.mirrored[:, None], width - column, column)
    scale = window.scale[:, None]
    return row / scale + window.top[:, None], column / scale + window.left[:, None]


def _transformed(truth: Tensor, kind: str, window: _Window, rows: Tensor,
                 columns: Tensor) -> Tensor:
    """Return the truth (N, C, H, W) or (N, H, W) of one task as the window shows it."""
    if kind == NORMAL:
        return _moved_normals(truth, window, rows, columns)
    planes = truth if truth.ndim == 4 else truth[:, None]
    # Between two surfaces, or a valid and an invalid pixel, there is nothing to interpolate.
    planes = _pick(planes, rows.long(), columns.long())
    scale = window.scale[:, None, None, None]
    if kind == DEPTH:
        planes = planes / scale
    elif kind == INVERSE_DEPTH:
        planes = planes * scale
    return planes if truth.ndim == 4 else planes[:, 0]


def _moved_normals(normal: Tensor, window: _Window, rows: Tensor, columns: Tensor) -> Tensor:
    valid = _pick(normal, rows.long(), columns.long()).square().sum(1, keepdim=True) > 0
    # Invalid ones are zero vectors: they add nothing to the sum, and length is restored below.
    normal = _bilinear(normal, rows, columns)
    length = normal.norm(dim=1, keepdim=True)
    normal = torch.where(valid & (length > 1e-3), normal / length.clamp(min=1e-3), 0.0)
    sign = torch.where(window.mirrored, -1.0, 1.0)
    return torch.cat((normal[:, :1] * sign[:, None, None, None], normal[:, 1:]), 1)


def _moved_camera(intrinsics: Tensor, window: _Window, width: int) -> Tensor:
    """Return the camera matrices (N, 3, 3) of the windows; pixel centres at whole numbers."""
    fx, skew, cx, fy, cy = (intrinsics[:, row, column] for row, column in
                            ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    scale, top, left, mirrored = (value.to(intrinsics) for value in window)
    sign = 1 - 2 * mirrored
    cx = (cx + 0.5 - left) * scale - 0.5
    cy = (cy + 0.5 - top) * scale - 0.5
    result = intrinsics.clone()
    result[:, 0, 0], result[:, 0, 1], result[:, 1, 1] = fx * scale, sign * skew * scale, fy * scale
    result[:, 0, 2], result[:, 1, 2] = torch.where(mirrored > 0, width - 1 - cx, cx), cy
    return result


def _pick(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return planes (N, C, H, W) at whole rows (N, H) and columns (N, W)."""
    count, channels, height, width = planes.shape
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = (rows[:, :, None] * width + columns[:, None]).reshape(count, 1, -1)
    return planes.flatten(2).gather(2, index.expand(-1, channels, -1)).reshape(planes.shape)


def _bilinear(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    top, left = (rows - 0.5).floor(), (columns - 0.5).floor()
    down = (rows - 0.5 - top)[:, None, :, None].to(planes)
    right = (columns - 0.5 - left)[:, None, None].to(planes)
    top, left = top.long(), left.long()
    upper = torch.lerp(_pick(planes, top, left), _pick(planes, top, left + 1), right)
    lower = torch.lerp(_pick(planes, top + 1, left), _pick(planes, top + 1, left + 1), right)
    return torch.lerp(upper, lower, down)


def _jittered(image: Tensor, factors: Tensor) -> Tensor:
    """Return images (N, 3, H, W) with brightness, contrast and saturation times factors (3, N)."""
    brightness, contrast, saturation = factors[:, :, None, None, None]
    image = image * brightness
    luma = (image * image.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    image = torch.lerp(luma, image, saturation)
    mean = luma.mean((2, 3), keepdim=True)
    return torch.lerp(mean, image, contrast).clamp(0, 1)
