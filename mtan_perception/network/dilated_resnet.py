# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
ResNet whose last stages may dilate instead of stride: the trunk that all tasks share.

He et al., 'Deep Residual Learning for Image Recognition', CVPR 2016; dilation as in Chen et al.,
'Rethinking Atrous Convolution for Semantic Image Segmentation', 2017, section 3.1. Modules carry
torchvision's names, so a torchvision state dict loads as it is.
"""

import os
from pathlib import Path

import torch
from torch import nn, Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; (N, in, H, W) -> (N, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride, dilation)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; (N, in, H, W) -> (N, 4 * width, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + shortcut)


BACKBONES = {
    'resnet18': (BasicBlock, (2, 2, 2, 2)),
    'resnet34': (BasicBlock, (3, 4, 6, 3)),
    'resnet50': (Bottleneck, (3, 4, 6, 3)),
    'resnet101': (Bottleneck, (3, 4, 23, 3)),
}

_WIDTHS = (64, 128, 256, 512)
# Stride of each stage; where the wanted output stride is reached, dilation takes over.
_STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}


class DilatedResNet(nn.Module):
    """
    The shared trunk: a stem at stride 4 and four stages, without pooling and classifier.

    :param backbone: resnet18, resnet34, resnet50 or resnet101.
    :param output_stride: 8, 16 or 32, input pixels per pixel of the last stage. With 8 and
        resnet50 the same function as torchvision's
        ``resnet50(replace_stride_with_dilation=[False, True, True])``.
    :raises ValueError: for an unknown backbone or output stride.

    ``channels`` and ``strides`` hold the width and the stride of each stage.
    """

    def __init__(self, backbone: str = 'resnet50', output_stride: int = 8) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f'backbone: {backbone!r}; choose one of {", ".join(BACKBONES)}')
        if output_stride not in _STRIDES:
            raise ValueError(f'output_stride: {output_stride!r}; choose 8, 16 or 32')
        block, depths = BACKBONES[backbone]
        self.channels = tuple(width * block.expansion for width in _WIDTHS)
        self.strides = _STRIDES[output_stride]

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        in_channels, dilation = 64, 1
        for index, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True)):
            stride = self.strides[index]
            # The first block of a stage keeps the dilation of the stage before it.
            blocks = [block(in_channels, width, stride, dilation)]
            if index > 0 and stride == 1:
                dilation *= 2
            in_channels = self.channels[index]
            blocks += [block(in_channels, width, 1, dilation) for _ in range(depth - 1)]
            setattr(self, f'layer{index + 1}', nn.Sequential(*blocks))

        for module in self.modules():
            # A network without content has nothing to draw, and torch loads its compiler for it.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """
        Return, for each of the four stages, its features (u_b, u_t).

        u_b comes out of all blocks but the last and u_t out of the last block (the *u* and *p*
        of MTAN, section 3.2). x is (N, 3, H, W); the features of stage i are
        (N, channels[i], h, w) with h = H/4 at the first stage and H/output_stride at the last,
        rounded up.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for *body, last in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in body:
                x = block(x)
            u_b, x = x, last(x)
            features.append((u_b, x))
        return features


def load_pretrained(trunk: DilatedResNet, backbone: str, source: bool | str | os.PathLike) -> None:
    """
    Fill the trunk with ImageNet weights.

    :param source: True for torchvision's IMAGENET1K_V1 (downloaded once, then from torch.hub's
        cache), or the path of a torchvision ResNet state dict, ``.safetensors`` or ``.pth``
        (read with ``weights_only``).
    :raises OSError: if the weights cannot be fetched or the file is missing.
    :raises ValueError: if the file holds something other than this backbone.
    """
    if source is True:
        state = _torchvision_weights(backbone)
    else:
        state = _read_state(Path(source))
    state = {name: value for name, value in state.items() if not name.startswith('fc.')}
    try:
        trunk.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f'pretrained: {source} does not hold the weights of a torchvision {backbone}: '
            f'{error}') from error


def _torchvision_weights(backbone: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # only this path needs torchvision
    try:
        return get_model_weights(backbone)['IMAGENET1K_V1'].get_state_dict(progress=False)
    except OSError as error:
        raise OSError(
            f'pretrained: the ImageNet weights of {backbone} could not be fetched ({error}); '
            f'without a network give the path of a torchvision state dict instead of True'
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load
            state = load(path.read_bytes())
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what the two readers raise on a broken file is not documented
        raise ValueError(f'pretrained: {path} cannot be read ({error})') from error
    if not isinstance(state, dict):
        raise ValueError(
            f'pretrained: {path} holds a {type(state).__name__}; expected a state dict')
    return state


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation,
                     dilation=dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                         nn.BatchNorm2d(out_channels))
