# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The network as it is best executed: the same function with less work.

* BatchNorm is folded into the convolutions.
* The tasks' first mask convolutions, W * cat(u, f), become one product of all tasks' W_u with
  the shared u, plus W_f * f for each task: nothing is concatenated.
* The shared encoders take all tasks stacked on the batch axis, in one call.
* Atrous taps that lie outside the map are not computed (mtan_perception.inference.convolution).
* The projection of the pyramid is a sum over its branches: the pooled one is added as the single
  value that it is, and nothing is concatenated.
* A task that is not wanted is not computed.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn, Tensor

from mtan_perception.inference.convolution import Convolution, Factory, fold, folded
from mtan_perception.inference.postprocess import upsample
from mtan_perception.network.attention import AttentionMask
from mtan_perception.network.deeplab_head import DeepLabHead
from mtan_perception.network.dilated_resnet import BasicBlock, Bottleneck
from mtan_perception.network.mtan_deeplabv3 import ACTIVATIONS, MTANDeepLabv3


class OptimizedMTAN(nn.Module):
    """
    The function of an MTANDeepLabv3 in evaluation, without its gradients.

    :param network: the network, on any device, in float32 or float64. It is read, not changed.
    :param factory: makes the convolutions; see mtan_perception.inference.convolution.
    :param place: returns each finished buffer where it shall lie; called one by one, always in one
        order.
    """

    def __init__(self, network: MTANDeepLabv3, factory: Factory = Convolution,
                 place: Callable[[Tensor], Tensor] = lambda buffer: buffer) -> None:
        super().__init__()

        def placed(*arguments, **options) -> nn.Module:
            return factory(*arguments, **options)._apply(place)

        self.tasks = dict(network.tasks)
        self.activations = dict(network.activations)
        trunk = network.trunk
        self.stem = fold(trunk.conv1, trunk.bn1, 'relu', placed)
        self.maxpool = trunk.maxpool
        self.bodies, self.ends = nn.ModuleList(), nn.ModuleList()
        for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
            *body, end = (_Block(block, placed) for block in stage)
            self.bodies.append(nn.Sequential(*body))
            self.ends.append(end)
        self.masks = nn.ModuleList([
            nn.ModuleDict({name: _Mask(mask, width, stage > 0, placed)
                           for name, mask in masks.items()})
            for stage, (masks, width) in enumerate(
                zip(network.masks, trunk.channels, strict=True))])
        self.encoders = nn.ModuleList([
            nn.Sequential(_Block(encoder.block, placed), encoder.pool)
            for encoder in network.shared_encoders])
        self.heads = nn.ModuleDict({name: _Head(head, placed)
                                    for name, head in network.decoders.items()})
        self._merged: dict[tuple[int, tuple[str, ...]], Convolution] = {}
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, out_size: tuple[int, int] | None = None,
                tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return what MTANDeepLabv3.forward returns, for tasks that the network has."""
        size = tuple(x.shape[-2:]) if out_size is None else tuple(out_size)
        return {name: ACTIVATIONS[self.activations[name]](upsample(logits, size))
                for name, logits in self.logits(x, tasks).items()}

    def logits(self, x: Tensor, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return name -> (N, channels, h, w), at the stride of the heads and not yet activated."""
        names = self._names(tasks)
        x, attended = self.maxpool(self.stem(x)), None
        for stage, (body, end) in enumerate(zip(self.bodies, self.ends, strict=True)):
            u = body(x)
            x = end(u)
            if stage > 0:
                # One task after the other on the batch axis: (tasks * N, channels, h, w).
                stacked = torch.cat(attended) if len(names) > 1 else attended[0]
                attended = self.encoders[stage - 1](stacked).chunk(len(names))
            attended = self._attend(stage, names, u, x, attended)
        return {name: self.heads[name](features)
                for name, features in zip(names, attended, strict=True)}

    def merge(self, tasks: Iterable[str] | None = None) -> None:
        """Merge what the tasks have in common, which `logits` otherwise does when it needs it."""
        for stage in range(len(self.bodies)):
            self._merge(stage, self._names(tasks))

    def _names(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        """Return the tasks in the network's order; all of them for None."""
        wanted = set(self.tasks if tasks is None else tasks)
        return tuple(name for name in self.tasks if name in wanted)

    def _attend(self, stage: int, names: tuple[str, ...], u: Tensor, p: Tensor,
                encoded: Iterable[Tensor] | None) -> list[Tensor]:
        """Return each task's attended features: equations 1 and 2."""
        masks = [self.masks[stage][name] for name in names]
        hidden = self._merge(stage, names)(u).chunk(len(names), dim=1)
        if encoded is None:
            hidden = [torch.relu(part) for part in hidden]
        else:
            hidden = [mask.encoded(f, part)
                      for mask, f, part in zip(masks, encoded, hidden, strict=True)]
        return [mask.out(part) * p for mask, part in zip(masks, hidden, strict=True)]

    def _merge(self, stage: int, names: tuple[str, ...]) -> Convolution:
        """Return W_u of the tasks as one convolution; a set of tasks has its own from then on."""
        if (stage, names) not in self._merged:
            masks = [self.masks[stage][name] for name in names]
            self._merged[stage, names] = Convolution(
                torch.cat([mask.shared.weight for mask in masks]),
                torch.cat([mask.shared.bias for mask in masks]))
        return self._merged[stage, names]

    def _apply(self, *arguments, **options):
        self._merged.clear()  # another device or type: merge anew
        return super()._apply(*arguments, **options)


class _Block(nn.Module):
    """A residual block; its last convolution adds the shortcut."""

    def __init__(self, block: BasicBlock | Bottleneck, factory: Factory) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        *first, last = pairs
        self.first = nn.Sequential(*(fold(*pair, 'relu', factory) for pair in first))
        self.last = fold(*last, 'relu', factory)
        self.shortcut = (nn.Identity() if block.downsample is None
                         else fold(*block.downsample, None, factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x), self.shortcut(x))


class _Mask(nn.Module):
    """One task's mask at one stage; `shared` is W_u, which its parent applies for all tasks."""

    def __init__(self, mask: AttentionMask, width: int, attends: bool, factory: Factory) -> None:
        super().__init__()
        weight, bias = folded(mask[0], mask[1])
        self.shared = factory(weight[:, :width].contiguous(), bias)
        if attends:
            self.encoded = factory(weight[:, width:].contiguous(), None, activation='relu')
        self.out = fold(mask[3], mask[4], 'sigmoid', factory)


class _Head(nn.Module):
    """A task's decoder: (N, in, h, w) -> (N, out, h, w)."""

    def __init__(self, head: DeepLabHead, factory: Factory) -> None:
        super().__init__()
        pyramid, convolution, norm, _, out = head
        *branches, pooling = pyramid.convs
        self.branches = nn.ModuleList(
            [fold(branch[0], branch[1], 'relu', factory) for branch in branches])
        self.pooling = fold(pooling[1], pooling[2], 'relu', factory)
        weight, bias = folded(pyramid.project[0], pyramid.project[1])
        *parts, pooled = weight.split(pooling[1].out_channels, dim=1)
        self.projections = nn.ModuleList([factory(part.contiguous(), None) for part in parts])
        self.pooled = factory(pooled.contiguous(), bias)
        self.convolution = fold(convolution, norm, 'relu', factory)
        self.out = fold(out, None, None, factory)

    def forward(self, x: Tensor) -> Tensor:
        y = None
        for branch, projection in zip(self.branches, self.projections, strict=True):
            y = projection(branch(x), y)
        y = y + self.pooled(self.pooling(x.mean((2, 3), keepdim=True)))
        return self.out(self.convolution(torch.relu_(y)))
