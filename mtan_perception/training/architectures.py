# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The networks to compare under one trainer: MTAN, and what it is measured against.

The baselines are those of the MTAN paper (Liu et al., CVPR 2019, section 4.1.2) on the same trunk
and heads: `split` shares the whole trunk and has no attention; `single` is a network of its own
for each task. They are for comparison alone: only `mtan` becomes weights that the node runs.
"""

from collections.abc import Iterable

from torch import nn, Tensor
from torch.nn import functional

from mtan_perception.checkpoint import build_network
from mtan_perception.model_card import ModelCard
from mtan_perception.network.deeplab_head import DeepLabHead
from mtan_perception.network.dilated_resnet import DilatedResNet
from mtan_perception.network.mtan_deeplabv3 import ACTIVATIONS

_ACTIVATIONS = {'segmentation': 'log_softmax', 'normal': 'unit'}


class SplitNetwork(nn.Module):
    """One trunk for all tasks (hard sharing) and one head for each."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.trunk = DilatedResNet(card.backbone, card.output_stride)
        self.decoders = nn.ModuleDict({
            name: DeepLabHead(self.trunk.channels[-1], channels, card.head_channels,
                              card.aspp_rates)
            for name, channels in card.tasks.items()})

    def forward(self, x: Tensor, out_size: tuple[int, int] | None = None,
                tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return name -> prediction, as MTANDeepLabv3 does."""
        size = tuple(x.shape[-2:]) if out_size is None else tuple(out_size)
        features = self.trunk(x)[-1][1]
        outputs = {}
        for name, decoder in self.decoders.items():
            if tasks is None or name in tasks:
                logits = functional.interpolate(decoder(features), size, mode='bilinear',
                                                align_corners=True)
                outputs[name] = ACTIVATIONS[_ACTIVATIONS.get(name, 'identity')](logits)
        return outputs


class SingleNetworks(nn.Module):
    """A trunk and a head for each task, with nothing in common."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({
            name: SplitNetwork(ModelCard({name: channels}, card.backbone, card.output_stride,
                                         card.head_channels, card.aspp_rates))
            for name, channels in card.tasks.items()})

    def forward(self, x: Tensor, out_size: tuple[int, int] | None = None,
                tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return name -> prediction, as MTANDeepLabv3 does."""
        return {name: network(x, out_size)[name] for name, network in self.networks.items()
                if tasks is None or name in tasks}


ARCHITECTURES = {'mtan': build_network, 'split': SplitNetwork, 'single': SingleNetworks}


def build_architecture(name: str, card: ModelCard) -> nn.Module:
    """Return a freshly initialised network; ValueError for an unknown architecture."""
    if name not in ARCHITECTURES:
        raise ValueError(f'architecture: {name!r}; choose one of {", ".join(ARCHITECTURES)}')
    return ARCHITECTURES[name](card)
