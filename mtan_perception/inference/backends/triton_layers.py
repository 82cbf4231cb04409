# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The network's layers on CUDA, each as few kernels, for all tasks together.

A convolution writes its sums to memory, and bias, shortcut, activation and mask each read them
and write them again. Here one kernel applies them before the sums leave the registers, or, where
the vendor's libraries are faster by more than that, one does after them.

Maps are (tasks, images, height, width, channels); an axis of one task is shared by all.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial

import torch
from torch import nn, Tensor
from torch.nn import functional
import triton

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.inference.backends import triton_kernels as kernels
from mtan_perception.inference.backends.triton_choices import fastest, Tiling, TILINGS
from mtan_perception.inference.convolution import ACTIVATIONS, Convolution
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.postprocess import MIN_NORM
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

Place = Callable[[Tensor], Tensor]
"""Moves a finished buffer to its device and precision."""

# Pixels in a row of a tile of a kernel of several taps: the nearer to a square, the more taps lie
# outside the map for all of it.
_TILE_WIDTH = 16
_POINTWISE_PIXELS, _POINTWISE_CHANNELS = 32, 64
_MIN_OUTPUTS = min(tiling.outputs for tiling in TILINGS)
_STEM_PIXELS = 64
_FINISH_PIXELS = 128
_MAX_OFFSET = 2 ** 31
"""Where a kernel's offsets within an image end."""
_ACTIVATIONS = {ACTIVATIONS[None]: 0, ACTIVATIONS['relu']: 1, ACTIVATIONS['sigmoid']: 2}


class FusedConvolution:
    """
    Convolutions of one shape, each task's with its own weights, and what follows them.

    :param parts: one for each task, or one that all share; on any device, in any precision.
    :param shortcut: of another map, whose result is added to theirs; shared by the tasks.
    :raises BackendError: for numbers of channels that the kernel does not do.
    """

    def __init__(self, parts: Sequence[Convolution], place: Place,
                 shortcut: Convolution | None = None) -> None:
        first = parts[0]
        out, in_channels, self._side = first.weight.shape[:3]
        if in_channels % 16:
            raise BackendError(f'{in_channels} channels are not a multiple of 16')
        self._stride, self._dilation = first.stride, first.dilation
        self._activation = _ACTIVATIONS[first.activation]
        self.weight = place(torch.stack([part.weight.permute(0, 2, 3, 1) for part in parts])
                            .reshape(len(parts), out, self._side ** 2 * in_channels))
        bias = [part.weight.new_zeros(out) if part.bias is None else part.bias for part in parts]
        self.bias = torch.stack(bias).float().to(self.weight.device)
        self._has_bias = first.bias is not None
        self._narrow_bias = self.bias.to(self.weight.dtype)
        self._shortcut = None if shortcut is None else FusedConvolution([shortcut], place)
        self._joint_bias = None if shortcut is None else self.bias + self._shortcut.bias

    def __getitem__(self, tasks: slice) -> 'FusedConvolution':
        """Return that of some of the tasks, in the same memory."""
        if len(self.weight) == 1:
            return self
        part = copy(self)
        part.weight, part.bias, part._narrow_bias = (
            parts[tasks] for parts in (self.weight, self.bias, self._narrow_bias))
        return part

    def __call__(self, x: Tensor, addend: Tensor | None = None, factor: Tensor | None = None,
                 bias: Tensor | None = None, other: Tensor | None = None,
                 dtype: torch.dtype | None = None) -> Tensor:
        """
        Return factor * activation(weight * x + bias + addend), (tasks, images, h, w, out).

        :param bias: (tasks, images, out), in place of its own.
        :param other: what the shortcut is applied to and then added.
        :param dtype: of the result; None for that of x.
        """
        candidates: dict[Tiling | str, Callable[[], Tensor]] = {
            tiling: partial(self._by_kernel, x, addend, factor, bias, other, dtype, tiling)
            for tiling in TILINGS if x.shape[-1] % tiling.inputs == 0
            and (other is None or other.shape[-1] % tiling.inputs == 0)
            and tiling.outputs < 2 * max(self.weight.shape[1], _MIN_OUTPUTS)}
        if other is not None:
            candidates['apart'] = lambda: self(x, self._shortcut(other), factor, bias, None, dtype)
        elif x.is_cuda and dtype is None:
            if len(self.weight) == 1 or self._side == self._stride == 1:
                candidates['library'] = partial(self._by_library, x, addend, factor, bias)
            if len(self.weight) == 1 and self._activation == 1 and factor is bias is None:
                candidates['cudnn'] = partial(self._by_cudnn, x, addend)
        return fastest(
            (*candidates, x.dtype, dtype, self.weight.shape, self._side, self._stride,
             self._dilation, self._activation, self._has_bias,
             *(None if map_ is None else (map_.shape, map_.stride())
               for map_ in (x, addend, factor, bias, other))), candidates, x.device)

    def _shape(self, x: Tensor, *others: Tensor | None) -> list[int]:
        """Return that of the result."""
        tasks = max(len(self.weight), *(len(map_) for map_ in (x, *others) if map_ is not None))
        size = (-(-length // self._stride) for length in x.shape[2:4])
        return [tasks, x.shape[1], *size, self.weight.shape[1]]

    def _by_kernel(self, x: Tensor, addend: Tensor | None, factor: Tensor | None,
                   bias: Tensor | None, other: Tensor | None, dtype: torch.dtype | None,
                   tiling: Tiling) -> Tensor:
        """Do all in one kernel."""
        y = x.new_empty(self._shape(x, addend, factor, other), dtype=dtype or x.dtype)
        own = self.bias if other is None else self._joint_bias
        maps: list[Tensor | None] = [x, addend, factor, other, y]
        rows = (own[:, None] if bias is None else bias).expand(*y.shape[:2], -1)
        maps = [None if map_ is None else map_.expand(len(y), *map_.shape[1:]) for map_ in maps]
        if len(self.weight) == 1 and _steps(rows, 2) == [0, 0]:
            # The tasks are further images.
            maps = [None if map_ is None else map_.reshape(1, -1, *map_.shape[2:])
                    for map_ in maps]
            rows = rows[:1, :1].expand(1, maps[0].shape[1], -1)
        images, widest = maps[0].shape[1], max(
            map_.stride(3) for map_ in maps if map_ is not None)
        if (self._side == self._stride == 1 and _steps(rows, 2)[1] == 0
                and (other is None or self._shortcut._stride == 1)
                and images * y.shape[2] * y.shape[3] * widest < _MAX_OFFSET):
            # The images are one row of pixels.
            maps = [None if map_ is None else map_.view(len(map_), 1, 1, -1, map_.shape[-1])
                    for map_ in maps]
            rows = rows[:, :1]
        x, addend, factor, other, out = maps
        _convolve(tiling, x, self.weight, rows[None], out[None], self._side, self._stride,
                  self._dilation, self._activation, addend, factor, other, self._shortcut)
        return y

    def _by_library(self, x: Tensor, addend: Tensor | None, factor: Tensor | None,
                    bias: Tensor | None) -> Tensor:
        """Leave the sums to cuBLAS or cuDNN, and do the rest in one kernel."""
        shape = self._shape(x, addend, factor)
        if self._side > 1 or self._stride > 1:
            y = self._mapped(functional.conv2d(
                *self._images(x), None, self._stride, self._dilation * (self._side // 2),
                self._dilation), shape)
        elif len(self.weight) == 1:
            y = (x.reshape(-1, x.shape[-1]) @ self.weight[0].T).view(len(x), *shape[1:])
        elif len(x) == 1 and self.weight.is_contiguous():
            y = x.reshape(-1, x.shape[-1]) @ self.weight.flatten(0, 1).T
            y = y.view(*shape[1:4], shape[0], shape[4]).permute(3, 0, 1, 2, 4)
        else:
            y = torch.bmm(x.view(len(x), -1, x.shape[-1]).expand(shape[0], -1, -1),
                          self.weight.transpose(1, 2)).view(shape)
        if (self._has_bias or self._activation
                or any(part is not None for part in (addend, factor, bias))):
            _complete(y, self.bias[:, None] if bias is None else bias, self._activation, addend,
                      factor)
        return y

    def _by_cudnn(self, x: Tensor, addend: Tensor | None) -> Tensor:
        """Leave all to cuDNN."""
        shape = self._shape(x, addend)
        padding = self._dilation * (self._side // 2)
        rest = (self._narrow_bias[0], *(
            [length] * 2 for length in (self._stride, padding, self._dilation)), 1)
        if addend is None:
            y = torch.cudnn_convolution_relu(*self._images(x), *rest)
        else:
            added = addend.flatten(0, 1).permute(0, 3, 1, 2)
            y = torch.cudnn_convolution_add_relu(*self._images(x), added, 1.0, *rest)
        return self._mapped(y, shape)

    def _images(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map and the weight as torch has them, in the same memory."""
        weight = self.weight.view(-1, self._side, self._side, x.shape[-1])
        return x.flatten(0, 1).permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)

    def _mapped(self, images: Tensor, shape: Sequence[int]) -> Tensor:
        return images.permute(0, 2, 3, 1).contiguous().view(shape)


class FusedPyramid:
    """
    The branches of the tasks' pyramids side by side, in one kernel.

    :param heads: of each task its branches.
    """

    def __init__(self, heads: Sequence[Sequence[Convolution]], place: Place) -> None:
        # Those with most to do first, so that at the end no multiprocessor waits for another.
        self.order = sorted(range(len(heads[0])), key=lambda index: (
            -heads[0][index].weight.shape[2], heads[0][index].dilation))
        branches = [FusedConvolution([head[index] for head in heads], place)
                    for index in self.order]
        self._weight = torch.cat([branch.weight.flatten() for branch in branches])
        self._bias = torch.stack([branch.bias for branch in branches])
        self._activation = branches[0]._activation
        offset, rows = 0, []
        for branch in branches:
            rows.append([offset, branch.weight[0].numel(), branch._side, branch._dilation])
            offset += branch.weight.numel()
        self._table = torch.tensor(rows, device=self._weight.device)

    def __getitem__(self, tasks: slice) -> 'FusedPyramid':
        """Return that of some of the tasks, in the same memory."""
        start, _, step = tasks.indices(self._bias.shape[1])
        offset, length, *rest = self._table.unbind(1)
        part = copy(self)
        part._bias = self._bias[:, tasks]
        part._table = torch.stack([offset + start * length, step * length, *rest], dim=1)
        return part

    def __call__(self, x: Tensor) -> Tensor:
        """Return (tasks, images, h, w, branches * out), the branches in their `order`."""
        return fastest(('pyramid', self._weight.shape, self._bias.shape, x.dtype, x.shape), {
            tiling: partial(self._by_kernel, x, tiling) for tiling in TILINGS
            if x.shape[-1] % tiling.inputs == 0}, x.device)

    def _by_kernel(self, x: Tensor, tiling: Tiling) -> Tensor:
        y = x.new_empty(*x.shape[:4], len(self._bias), self._bias.shape[-1])
        _convolve(tiling, x, self._weight, self._bias[:, :, None], y.permute(4, 0, 1, 2, 3, 5),
                  3, 1, 1, self._activation, branches=self._table)
        return y.flatten(4)


class FusedStem:
    """
    The network's first convolution, of images in any precision and layout.

    :raises BackendError: for any other than that of a ResNet.
    """

    def __init__(self, stem: Convolution, place: Place) -> None:
        out, *taps = stem.weight.shape
        if (taps, stem.stride, stem.padding) != ([3, 7, 7], 2, 3):
            raise BackendError('the first convolution is not of 7x7 taps and stride 2')
        rows = stem.weight.permute(0, 2, 3, 1).reshape(out, 7, 21)
        self._weight = place(functional.pad(rows, (0, 32 - 21)))
        self._bias = stem.bias.float().to(self._weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (1, N, h, w, out) of (N, 3, H, W)."""
        count, _, *size = x.shape
        height, width = (-(-length // 2) for length in size)
        out = len(self._weight)
        y = x.new_empty(1, count, height, width, out, dtype=self._weight.dtype)
        kernels.convolve_image[triton.cdiv(height * width, _STEM_PIXELS), count](
            x, self._weight, self._bias, y, *size, height, width, out, *x.stride(),
            PIXELS=_STEM_PIXELS, OUTPUTS=triton.next_power_of_2(out))
        return y


def pool_most(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """Return the pooled map of a contiguous one."""
    *count, height, width, channels = x.shape
    with torch.device('meta'):
        out = pool(torch.empty(1, 1, height, width)).shape[2:]
    y = x.new_empty(*count, *out, channels)
    blocks = (triton.cdiv(out.numel(), _POINTWISE_PIXELS)
              * triton.cdiv(channels, _POINTWISE_CHANNELS))
    kernels.pool_most[blocks, count[0] * count[1]](
        x, y, height, width, *out, channels, pool.stride, pool.padding, SIDE=pool.kernel_size,
        PIXELS=_POINTWISE_PIXELS, CHANNELS=_POINTWISE_CHANNELS)
    return y


def finish(logits: Mapping[str, Tensor], size: tuple[int, int], axes: str) -> dict[str, Tensor]:
    """
    Return what postprocess.finish returns, by one kernel for each task.

    :param logits: task -> (N, C, h, w) float32, before its activation.
    """
    images: dict[str, Tensor] = {}
    for name, part in logits.items():
        grid = triton.cdiv(size[0] * size[1], _FINISH_PIXELS), len(part)
        source = part, *part.shape[2:], *size, *part.stride()
        if name == SEGMENTATION:
            channels = part.shape[1]
            images['label'], images['probability'] = (
                part.new_empty(len(part), *size, dtype=dtype)
                for dtype in (torch.uint8, torch.float32))
            kernels.classify[grid](
                *source, images['label'], images['probability'], channels,
                CHANNELS=triton.next_power_of_2(channels), PIXELS=_FINISH_PIXELS)
        elif name == DEPTH:
            images['depth'] = part.new_empty(len(part), *size)
            kernels.enlarge[grid](*source, images['depth'], PIXELS=_FINISH_PIXELS)
        elif name == NORMAL:
            images['normal'] = part.new_empty(len(part), *size, 3)
            kernels.point[grid](*source, images['normal'], *NORMAL_SIGNS[axes], MIN_NORM,
                                PIXELS=_FINISH_PIXELS)
    return images


def _convolve(tiling: Tiling, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, side: int,
              stride: int, dilation: int, activation: int, addend: Tensor | None = None,
              factor: Tensor | None = None, other: Tensor | None = None,
              shortcut: FusedConvolution | None = None, branches: Tensor | None = None) -> None:
    """Launch the kernel on maps of (tasks, ...), for y and bias of (branches, tasks, ...)."""
    count, tasks, images, height, width, channels = y.shape
    tile_width = tiling.pixels if height == 1 else _TILE_WIDTH
    across = triton.cdiv(width, tile_width)
    down = triton.cdiv(height, tiling.pixels // tile_width)
    out = triton.cdiv(channels, tiling.outputs)
    other_channels, other_stride, other_weight = (0, 1, weight) if other is None else (
        other.shape[-1], shortcut._stride, shortcut.weight)
    kernels.convolve[across * down * out, tasks * images, count](
        x, weight, bias, y if addend is None else addend, y if factor is None else factor,
        x if other is None else other, other_weight, y, weight if branches is None else branches,
        images, *x.shape[2:4], height, width, x.shape[-1], channels, other_channels,
        stride, side, dilation, other_stride, activation, addend is not None,
        factor is not None, tile_width, across, out, _steps(weight, 1)[0],
        *_steps(x, 4), *_steps(y, 5), *_steps(addend, 4), *_steps(factor, 4), *_steps(other, 4),
        *_steps(bias, 3), HAS_BRANCHES=branches is not None, HAS_OTHER=other is not None,
        IS_POINT=side == 1, PIXELS=tiling.pixels, OUTPUTS=tiling.outputs, INPUTS=tiling.inputs,
        num_warps=tiling.warps, num_stages=tiling.stages, maxnreg=tiling.registers)


def _complete(y: Tensor, bias: Tensor, activation: int, addend: Tensor | None,
              factor: Tensor | None) -> None:
    """Turn sums into factor * activation(y + bias + addend), in place."""
    tasks, images, height, width, channels = y.shape
    blocks = (triton.cdiv(height * width, _POINTWISE_PIXELS)
              * triton.cdiv(channels, _POINTWISE_CHANNELS))

    def steps(map_: Tensor | None) -> list[int]:
        task, image, row, column = _steps(map_, 4)
        return [task, image, column if width > 1 else row]
    kernels.complete[blocks, images, tasks](
        y, bias, y if addend is None else addend, y if factor is None else factor,
        height * width, channels, activation, addend is not None, factor is not None,
        *steps(y), *steps(addend), *steps(factor), *_steps(bias, 2),
        PIXELS=_POINTWISE_PIXELS, CHANNELS=_POINTWISE_CHANNELS)


def _steps(map_: Tensor | None, axes: int) -> list[int]:
    """Return the strides of the first axes; 0 where all share one."""
    return [0] * axes if map_ is None else [
        0 if length == 1 else step
        for length, step in zip(map_.shape[:axes], map_.stride(), strict=False)]
