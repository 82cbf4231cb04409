# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
MTAN on a dilated-ResNet DeepLabv3: one trunk, one soft-attention path and head for each task.

Liu, Johns, Davison, 'End-to-End Multi-Task Learning with Attention', CVPR 2019, figure 2 and
section 3.2, on the ResNet variant published with the paper.
"""

from collections.abc import Iterable, Mapping, Sequence
import os

import torch
from torch import nn, Tensor
from torch.nn import functional

from mtan_perception.network.attention import AttentionMask, SharedEncoder
from mtan_perception.network.deeplab_head import DeepLabHead
from mtan_perception.network.dilated_resnet import DilatedResNet, load_pretrained


def unit_vectors(x: Tensor, min_norm: float = 1e-4) -> Tensor:
    """
    Divide (N, C, H, W) by its 2-norm over C.

    A vector shorter than ``min_norm`` has no direction to speak of and passes unchanged, so
    that output and gradient stay finite. The norm is taken in float32: in float16 the squares
    of small components vanish and those of large ones overflow.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return (wide / norm.masked_fill(norm < min_norm, 1.0)).to(x.dtype)


def log_probabilities(x: Tensor) -> Tensor:
    """Return the log of the class probabilities of logits (N, C, H, W)."""
    return functional.log_softmax(x, dim=1)


ACTIVATIONS = {
    'log_softmax': log_probabilities,
    'unit': unit_vectors,
    'identity': nn.Identity(),
}

_DEFAULT_ACTIVATIONS = {'segmentation': 'log_softmax', 'normal': 'unit'}


class MTANDeepLabv3(nn.Module):
    """
    Multi-task network: an image in, one dense map for each task out.

    :param tasks: name -> channels, in order, for example
        ``{'segmentation': 13, 'depth': 1, 'normal': 3}``.
    :param backbone: resnet18, resnet34, resnet50 or resnet101.
    :param output_stride: 8, 16 or 32; input pixels per pixel of the deepest features.
    :param head_channels: width of the task heads.
    :param aspp_rates: dilations inside the task heads.
    :param pretrained: True for torchvision's ImageNet weights in the trunk, or the path of a
        torchvision ResNet state dict.
    :param activations: name -> 'log_softmax', 'unit' or 'identity', where a task should not have
        the usual one (segmentation: log_softmax, normal: unit, any other: identity).
    :raises ValueError: for tasks, a backbone, a stride or an activation that cannot be.
    """

    def __init__(self, tasks: Mapping[str, int], backbone: str = 'resnet50',
                 output_stride: int = 8, head_channels: int = 256,
                 aspp_rates: Sequence[int] = (12, 24, 36),
                 pretrained: bool | str | os.PathLike = False,
                 activations: Mapping[str, str] | None = None) -> None:
        super().__init__()
        _check_tasks(tasks)
        self.tasks = dict(tasks)
        self.activations = _choose_activations(tasks, activations or {})

        self.trunk = DilatedResNet(backbone, output_stride)
        if pretrained:
            load_pretrained(self.trunk, backbone, pretrained)

        channels, strides = self.trunk.channels, self.trunk.strides
        self.masks = nn.ModuleList()
        self.shared_encoders = nn.ModuleList()
        for stage, width in enumerate(channels):
            in_width = width if stage == 0 else 2 * width
            self.masks.append(nn.ModuleDict({name: AttentionMask(in_width, width)
                                             for name in tasks}))
            if stage > 0:
                self.shared_encoders.append(
                    SharedEncoder(channels[stage - 1], width, strides[stage]))
        self.decoders = nn.ModuleDict({
            name: DeepLabHead(channels[-1], count, head_channels, aspp_rates)
            for name, count in tasks.items()})

    def forward(self, x: Tensor, out_size: tuple[int, int] | None = None,
                tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """
        Return the prediction of each wanted task by its name.

        :param x: (N, 3, H, W) normalised image, any size.
        :param out_size: (h, w) of the predictions; None for the size of x.
        :param tasks: names of the wanted tasks; None for all. Only their masks, share of the
            encoders and heads are computed.
        :returns: name -> (N, channels, h, w): log-probabilities, depth, unit normals.
        :raises ValueError: for an unknown task.
        """
        names = self._select(tasks)
        size = tuple(x.shape[-2:]) if out_size is None else tuple(out_size)
        features = self.trunk(x)
        return {name: self._predict(name, features, size) for name in names}

    def _select(self, tasks: Iterable[str] | None) -> list[str]:
        wanted = set(self.tasks if tasks is None else tasks)
        unknown = wanted.difference(self.tasks)
        if unknown:
            raise ValueError(f'tasks: unknown {", ".join(map(repr, sorted(unknown)))}; '
                             f'this network has {", ".join(self.tasks)}')
        return [name for name in self.tasks if name in wanted]

    def _predict(self, name: str, features: list[tuple[Tensor, Tensor]],
                 size: tuple[int, int]) -> Tensor:
        logits = self.decoders[name](self._attend(name, features))
        logits = functional.interpolate(logits, size, mode='bilinear', align_corners=True)
        return ACTIVATIONS[self.activations[name]](logits)

    def _attend(self, name: str, features: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Walk one task's attention path down the stages: equations 1 and 2."""
        attended = None
        for stage, (u, p) in enumerate(features):
            if stage > 0:
                u = torch.cat((u, self.shared_encoders[stage - 1](attended)), dim=1)
            attended = self.masks[stage][name](u) * p
        return attended


def _check_tasks(tasks: Mapping[str, int]) -> None:
    if not tasks:
        raise ValueError('tasks: none given; name at least one, as in {"depth": 1}')
    for name, channels in tasks.items():
        # A module's name has no dot and must not hide what nn.ModuleDict itself offers.
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ValueError(f'tasks: {name!r} cannot name a task; choose another identifier')
        if channels < 1:
            raise ValueError(f'tasks: {name} needs at least 1 channel, not {channels}')


def _choose_activations(tasks: Mapping[str, int], wanted: Mapping[str, str]) -> dict[str, str]:
    for name, activation in wanted.items():
        if name not in tasks:
            raise ValueError(f'activations: unknown task {name!r}; tasks are {", ".join(tasks)}')
        if activation not in ACTIVATIONS:
            raise ValueError(f'activations: {activation!r} for {name}; '
                             f'choose one of {", ".join(ACTIVATIONS)}')
    chosen = {name: _DEFAULT_ACTIVATIONS.get(name, 'identity') for name in tasks}
    return {**chosen, **wanted}
