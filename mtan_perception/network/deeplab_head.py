# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The decoder of one task: DeepLabv3's head.

Chen et al., 'Rethinking Atrous Convolution for Semantic Image Segmentation', 2017, section 3.3:
atrous spatial pyramid pooling (ASPP) with image-level features.
"""

from collections.abc import Sequence

import torch
from torch import nn, Tensor
from torch.nn import functional


class DeepLabHead(nn.Sequential):
    """
    ASPP, a 3x3 convolution and a 1x1 convolution; (N, in, h, w) -> (N, out, h, w), linear.

    :param in_channels: width of the features.
    :param out_channels: channels that the task predicts.
    :param channels: width inside the head.
    :param aspp_rates: dilations of ASPP's 3x3 convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int = 256,
                 aspp_rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__(
            ASPP(in_channels, channels, aspp_rates),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1))


class ASPP(nn.Module):
    """A 1x1 convolution, one 3x3 convolution for each rate, image pooling; all projected."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList([
            _conv_bn_relu(in_channels, channels, 1),
            *(_conv_bn_relu(in_channels, channels, 3, rate) for rate in rates),
            ImagePooling(in_channels, channels)])
        self.project = nn.Sequential(
            *_conv_bn_relu(len(self.convs) * channels, channels, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, h, w) for x of (N, in_channels, h, w)."""
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))


class ImagePooling(nn.Sequential):
    """The image-level feature: averaged over the image, projected, spread out again."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            SingleValueBatchNorm2d(channels),
            nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, h, w), constant over each image."""
        size = x.shape[-2:]
        return functional.interpolate(super().forward(x), size, mode='bilinear',
                                      align_corners=False)


class SingleValueBatchNorm2d(nn.BatchNorm2d):
    """
    BatchNorm that survives training with one value per channel.

    After image pooling a batch of one image has a single value per channel: it has no variance,
    and BatchNorm2d raises. Here such a batch is normalised by the running statistics, as in
    evaluation, and leaves them as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of (N, C, H, W) over each channel."""
        if self.training and x.numel() == x.shape[1]:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight,
                                         self.bias, training=False, eps=self.eps)
        return super().forward(x)


def _conv_bn_relu(in_channels: int, channels: int, kernel: int,
                  dilation: int = 1) -> nn.Sequential:
    padding = dilation if kernel == 3 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True))
