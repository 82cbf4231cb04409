# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The optimised network on CUDA: all tasks together, and the trunk ahead of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import nn, Tensor
from torch.nn import functional

from mtan_perception.inference.backends.triton_layers import (
    FusedConvolution,
    FusedPyramid,
    FusedStem,
    Place,
    pool_most,
)
from mtan_perception.inference.convolution import Convolution
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.optimize import OptimizedMTAN

Fuse = Callable[..., FusedConvolution]
Promise = Callable[[], Tensor]
"""Gives a map, and lets the current stream wait for it."""


class FusedMTAN:
    """
    The function of OptimizedMTAN.logits on CUDA, in half precision.

    :param network: on the CPU; what it holds is copied.
    :param place: moves a finished buffer to its device and precision.
    :raises BackendError: for a network that the kernels do not do.

    Maps are (tasks, images, height, width, channels); the trunk's have one task.
    """

    def __init__(self, network: OptimizedMTAN, place: Place) -> None:
        self.tasks = dict(network.tasks)

        def fuse(*parts: Convolution, shortcut: Convolution | None = None) -> FusedConvolution:
            return FusedConvolution(parts, place, shortcut)
        self._stem, self._maxpool = FusedStem(network.stem, place), network.maxpool
        self._bodies = [[_Block(block, fuse) for block in body] for body in network.bodies]
        self._ends = [_Block(end, fuse) for end in network.ends]
        self._masks = [_Masks([masks[name] for name in self.tasks], fuse)
                       for masks in network.masks]
        self._encoders = [(_Block(block, fuse), pool) for block, pool in network.encoders]
        self._heads = _Heads([network.heads[name] for name in self.tasks], fuse, place)
        self._selected: dict[tuple[str, ...], tuple[list[_Masks], _Heads]] = {}
        self._beside = _Beside()

    def logits(self, x: Tensor, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return name -> (N, channels, h, w) float32, before its activation, of (N, 3, H, W)."""
        wanted = set(self.tasks if tasks is None else tasks)
        names = tuple(name for name in self.tasks if name in wanted)
        masks, heads = self._select(names)
        with self._beside.joined(x):
            logits = heads(self._attend(x, masks), self._beside)
        return {name: part[..., :self.tasks[name]].permute(0, 3, 1, 2)
                for name, part in zip(names, logits, strict=True)}

    def _attend(self, x: Tensor, masks: list['_Masks']) -> Tensor:
        """Return the tasks' features."""
        # Many of the kernels are too small to fill the device: the trunk runs ahead beside the
        # tasks'. What it gives is kept until the end, so that its memory is not used anew.
        with self._beside(x):
            stages = list(self._trunk(x))
        attended = None
        for stage, (u, p) in enumerate(stages):
            if attended is not None:
                block, pool = self._encoders[stage - 1]
                attended = block(attended)
                attended = attended if isinstance(pool, nn.Identity) else pool_most(
                    pool, attended)
            attended = masks[stage](u, attended, p)
        return attended

    def _trunk(self, x: Tensor) -> Iterator[tuple[Promise, Promise]]:
        """Yield of each stage what waits for the features before its last block, and after it."""
        features = pool_most(self._maxpool, self._stem(x))
        for body, end in zip(self._bodies, self._ends, strict=True):
            for block in body:
                features = block(features)
            u = self._beside.promise(features)
            features = end(features)
            yield u, self._beside.promise(features)

    def _select(self, names: tuple[str, ...]) -> tuple[list['_Masks'], '_Heads']:
        """Return the masks and heads of the tasks, in the same memory."""
        if names not in self._selected:
            # Of three tasks any are evenly spaced, and so are their weights in memory.
            places = [tuple(self.tasks).index(name) for name in names]
            step = places[1] - places[0] if len(places) > 1 else 1
            tasks = slice(places[0], places[-1] + 1, step)
            if list(range(*tasks.indices(len(self.tasks)))) != places:
                raise BackendError(f"{', '.join(names)} of {', '.join(self.tasks)} are not evenly "
                                   'spaced')
            self._selected[names] = [mask[tasks] for mask in self._masks], self._heads[tasks]
        return self._selected[names]


class _Beside:
    """A second stream of kernels on a CUDA device; without one, all runs in turn."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def __call__(self, x: Tensor) -> Iterator[None]:
        """Let what is inside run beside what follows it."""
        if not x.is_cuda:
            yield
            return
        if self._stream is None:
            # Urgent: what it does the others wait for.
            self._stream = torch.cuda.Stream(x.device, priority=-1)
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def joined(self, x: Tensor) -> Iterator[None]:
        """Let the current stream wait at the end for all that ran beside it, come what may."""
        try:
            yield
        finally:  # else a capture in progress could not be ended, and torch would keep its memory
            if self._stream is not None:
                torch.cuda.current_stream(x.device).wait_stream(self._stream)

    def promise(self, map_: Tensor) -> Promise:
        """Return a call that gives the map once the current stream has computed what it has to."""
        if not map_.is_cuda:
            return lambda: map_
        is_done = torch.cuda.current_stream(map_.device).record_event()

        def wait() -> Tensor:
            torch.cuda.current_stream(map_.device).wait_event(is_done)
            return map_
        return wait


class _Block:
    """A residual block."""

    def __init__(self, block: nn.Module, fuse: Fuse) -> None:
        is_plain = isinstance(block.shortcut, nn.Identity)
        self._first = [fuse(convolution) for convolution in block.first]
        self._last = fuse(block.last, shortcut=None if is_plain else block.shortcut)
        self._shortcut = 'addend' if is_plain else 'other'

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self._first:
            y = convolution(y)
        return self._last(y, **{self._shortcut: x})


class _Masks:
    """The tasks' masks at one stage: equations 1 and 2."""

    def __init__(self, masks: list[nn.Module], fuse: Fuse) -> None:
        if hasattr(masks[0], 'encoded'):
            # The bias is added once all is summed up.
            self._shared = fuse(*(Convolution(mask.shared.weight, None) for mask in masks))
            self._encoded = fuse(*(
                Convolution(mask.encoded.weight, mask.shared.bias, activation='relu')
                for mask in masks))
        else:
            self._shared = fuse(*(
                Convolution(mask.shared.weight, mask.shared.bias, activation='relu')
                for mask in masks))
            self._encoded = None
        self._out = fuse(*(mask.out for mask in masks))

    def __getitem__(self, tasks: slice) -> '_Masks':
        part = copy(self)
        part._shared, part._out = self._shared[tasks], self._out[tasks]
        part._encoded = None if self._encoded is None else self._encoded[tasks]
        return part

    def __call__(self, u: Promise, encoded: Tensor | None, p: Promise) -> Tensor:
        """Return the attended features; u and p are asked for as late as can be."""
        hidden = self._shared(u())
        if self._encoded is not None:
            hidden = self._encoded(encoded, addend=hidden)
        return self._out(hidden, factor=p())


class _Heads:
    """The tasks' decoders."""

    def __init__(self, heads: list[nn.Module], fuse: Fuse, place: Place) -> None:
        self._pyramid = FusedPyramid([list(head.branches) for head in heads], place)

        def stacked(name: str) -> tuple[Tensor, Tensor]:
            parts = [getattr(head, name) for head in heads]
            return (place(torch.stack([part.weight[:, :, 0, 0].T for part in parts])),
                    place(torch.stack([part.bias for part in parts])[:, None]))
        self._pooling, self._pooling_bias = stacked('pooling')
        self._pooled, self._pooled_bias = stacked('pooled')
        self._projection = fuse(*(
            Convolution(torch.cat([head.projections[index].weight
                                   for index in self._pyramid.order], dim=1), None,
                        activation='relu') for head in heads))
        self._convolution = fuse(*(head.convolution for head in heads))
        most = max(len(head.out.weight) for head in heads)
        self._out = fuse(*(_widened(head.out, most) for head in heads))

    def __getitem__(self, tasks: slice) -> '_Heads':
        part = copy(self)
        part.__dict__ |= {name: value[tasks] for name, value in self.__dict__.items()}
        return part

    def __call__(self, x: Tensor, beside: _Beside) -> Tensor:
        """Return (tasks, images, h, w, channels of the task with most) float32."""
        with beside(x):
            pooling = torch.baddbmm(self._pooling_bias, x.mean((2, 3)), self._pooling).relu_()
            pooled = beside.promise(torch.baddbmm(self._pooled_bias, pooling, self._pooled))
        branches = self._pyramid(x)
        return self._out(self._convolution(self._projection(branches, bias=pooled())),
                         dtype=torch.float32)


def _widened(convolution: Convolution, out: int) -> Convolution:
    """Return it with further results, all 0, up to `out` of them."""
    missing = out - len(convolution.weight)
    return Convolution(functional.pad(convolution.weight, (0, 0, 0, 0, 0, 0, 0, missing)),
                       functional.pad(convolution.bias, (0, missing)))
