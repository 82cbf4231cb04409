# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Masks stay in 0..1; the shared encoder meets the trunk at every size."""

import pytest
import torch
from torch import nn

from mtan_perception.network.attention import AttentionMask, SharedEncoder


def test_mask_lies_between_zero_and_one():
    torch.manual_seed(0)
    mask = AttentionMask(24, 16)(10 * torch.randn(2, 24, 5, 7))
    assert mask.shape == (2, 16, 5, 7)
    assert 0 < mask.min() < 0.1 and 0.9 < mask.max() < 1


def test_mask_squeezes_to_a_quarter_of_the_width():
    assert AttentionMask(1024, 512)[0].weight.shape == (128, 1024, 1, 1)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 8), (25, 33)])
def test_encoder_ends_at_the_size_of_a_strided_convolution(size, stride):
    x = torch.randn(1, 8, *size)
    strided = nn.Conv2d(8, 16, 3, stride=stride, padding=1)
    assert SharedEncoder(8, 16, stride).eval()(x).shape == strided(x).shape


def test_encoder_keeps_the_larger_activation():
    encoder = SharedEncoder(8, 16, 2).eval()
    x = torch.randn(1, 8, 4, 6)
    expected = encoder.block(x).reshape(1, 16, 2, 2, 3, 2).amax(dim=(3, 5))
    torch.testing.assert_close(encoder(x), expected)
