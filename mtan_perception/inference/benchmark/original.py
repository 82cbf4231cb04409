# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
MTAN on DeepLabv3 written straight from the equations: what is measured and tested against.

Every step of the paper (CVPR 2019, section 3.2) stands where the data passes it, built from
torchvision's blocks, under the tensor names of the published checkpoints. It keeps the original's
limits: sizes are multiples of 8, and a zero normal becomes NaN.
"""

from collections.abc import Mapping

import torch
from torch import nn, Tensor
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, resnet50
from torchvision.models.segmentation.deeplabv3 import DeepLabHead


def attention(in_channels: int, hidden: int, channels: int) -> nn.Sequential:
    """Return h(g(.)) of equation 2."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(),
        nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid())


def bottleneck(in_channels: int, channels: int) -> Bottleneck:
    """Return f of equation 2."""
    shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False),
                             nn.BatchNorm2d(channels))
    return Bottleneck(in_channels, channels // 4, downsample=shortcut)


class ReferenceMTAN(nn.Module):
    """(N, 3, H, W) -> {task: (N, channels, H, W)}, always all tasks."""

    def __init__(self, tasks: Mapping[str, int]) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        trunk = resnet50(replace_stride_with_dilation=[False, True, True])
        self.shared_conv = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.shared_layer1_b, self.shared_layer1_t = trunk.layer1[:-1], trunk.layer1[-1]
        self.shared_layer2_b, self.shared_layer2_t = trunk.layer2[:-1], trunk.layer2[-1]
        self.shared_layer3_b, self.shared_layer3_t = trunk.layer3[:-1], trunk.layer3[-1]
        self.shared_layer4_b, self.shared_layer4_t = trunk.layer4[:-1], trunk.layer4[-1]

        def for_each_task(*channels: int) -> nn.ModuleList:
            return nn.ModuleList([attention(*channels) for _ in self.tasks])

        self.encoder_att_1 = for_each_task(256, 64, 256)
        self.encoder_att_2 = for_each_task(1024, 128, 512)
        self.encoder_att_3 = for_each_task(2048, 256, 1024)
        self.encoder_att_4 = for_each_task(4096, 512, 2048)
        self.encoder_block_att_1 = bottleneck(256, 512)
        self.encoder_block_att_2 = bottleneck(512, 1024)
        self.encoder_block_att_3 = bottleneck(1024, 2048)
        self.down_sampling = nn.MaxPool2d(2)
        self.decoders = nn.ModuleList([
            DeepLabHead(2048, channels, (12, 24, 36)) for channels in self.tasks.values()])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of all tasks."""
        size = x.shape[-2:]
        u_1_b = self.shared_layer1_b(self.shared_conv(x))
        u_1_t = self.shared_layer1_t(u_1_b)
        u_2_b = self.shared_layer2_b(u_1_t)
        u_2_t = self.shared_layer2_t(u_2_b)
        u_3_b = self.shared_layer3_b(u_2_t)
        u_3_t = self.shared_layer3_t(u_3_b)
        u_4_b = self.shared_layer4_b(u_3_t)
        u_4_t = self.shared_layer4_t(u_4_b)

        result = {}
        for index, name in enumerate(self.tasks):
            a_1 = self.encoder_att_1[index](u_1_b) * u_1_t
            f_1 = self.down_sampling(self.encoder_block_att_1(a_1))
            a_2 = self.encoder_att_2[index](torch.cat((u_2_b, f_1), 1)) * u_2_t
            f_2 = self.encoder_block_att_2(a_2)
            a_3 = self.encoder_att_3[index](torch.cat((u_3_b, f_2), 1)) * u_3_t
            f_3 = self.encoder_block_att_3(a_3)
            a_4 = self.encoder_att_4[index](torch.cat((u_4_b, f_3), 1)) * u_4_t
            y = functional.interpolate(self.decoders[index](a_4), size, mode='bilinear',
                                       align_corners=True)
            if name == 'segmentation':
                y = functional.log_softmax(y, dim=1)
            if name == 'normal':
                y = y / torch.norm(y, p=2, dim=1, keepdim=True)
            result[name] = y
        return result


def randomise_batch_norm(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give each BatchNorm statistics and an affine map as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            count = module.num_features
            with torch.no_grad():
                module.running_mean.copy_(0.1 * torch.randn(count, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(count, generator=generator))
                module.weight.copy_(0.5 + torch.rand(count, generator=generator))
                module.bias.copy_(0.1 * torch.randn(count, generator=generator))
    return network
