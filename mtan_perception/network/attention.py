# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The task-specific attention of MTAN.

Liu, Johns, Davison, 'End-to-End Multi-Task Learning with Attention', CVPR 2019, section 3.2.
For task i and stage j of the trunk, with shared features u (first part of the stage) and p
(its end):

* equation 1: the attended features are the mask times p, element by element;
* equation 2: the mask is h(g([u; f(attended features of stage j - 1)])).

g and h belong to one task and stage; f is shared by the tasks.
"""

from torch import nn, Tensor

from mtan_perception.network.dilated_resnet import Bottleneck


class AttentionMask(nn.Sequential):
    """
    h(g(.)) of equation 2: (N, in_channels, H, W) -> a mask in 0..1 of (N, channels, H, W).

    Two 1x1 convolutions with BatchNorm; g ends in ReLU, h in a sigmoid.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        hidden = channels // 4
        super().__init__(
            nn.Conv2d(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.BatchNorm2d(channels),
            nn.Sigmoid())


class SharedEncoder(nn.Module):
    """
    f of equation 2: take attended features to the width and size of the next stage.

    (N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride), rounded up, by a bottleneck
    block and, where the next stage strides, 2x2 max pooling. Rounding up is what the strided
    convolutions of the trunk do, so that the two always fit together.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.block = Bottleneck(in_channels, out_channels // Bottleneck.expansion)
        self.pool = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the input of the next stage's masks."""
        return self.pool(self.block(x))
