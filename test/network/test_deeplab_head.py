# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The task head against torchvision's, and training on a single image."""

import pytest
import torch
from torchvision.models.segmentation import deeplabv3

from mtan_perception.inference.benchmark.original import randomise_batch_norm
from mtan_perception.network.deeplab_head import DeepLabHead, SingleValueBatchNorm2d


@torch.inference_mode()
def test_same_function_and_names_as_torchvision():
    torch.manual_seed(0)
    twin = randomise_batch_norm(deeplabv3.DeepLabHead(32, 5, (2, 4, 6))).eval()
    head = DeepLabHead(32, 5, 256, (2, 4, 6)).eval()
    head.load_state_dict(twin.state_dict())
    x = torch.randn(2, 32, 9, 11)
    torch.testing.assert_close(head(x), twin(x), rtol=1e-5, atol=1e-5)


def test_any_number_of_rates_and_channels():
    head = DeepLabHead(16, 2, channels=8, aspp_rates=(3,)).eval()
    assert head(torch.randn(1, 16, 4, 4)).shape == (1, 2, 4, 4)
    assert head[0].project[0].in_channels == 3 * 8


def test_one_image_in_training_uses_the_running_statistics():
    torch.manual_seed(0)
    norm = randomise_batch_norm(SingleValueBatchNorm2d(6)).train()
    before = norm.running_mean.clone()
    x = torch.randn(1, 6, 1, 1, requires_grad=True)
    y = norm(x)
    assert torch.equal(norm.running_mean, before)
    y.sum().backward()
    assert x.grad.abs().min() > 0
    torch.testing.assert_close(y, norm.eval()(x))


def test_more_values_in_training_are_a_plain_batch_norm():
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(8, 6, 1, 1)
    norm = SingleValueBatchNorm2d(6).train()
    y = norm(x)
    torch.testing.assert_close(y.mean(dim=0).flatten(), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(dim=0).flatten())


@pytest.mark.parametrize('batch', [1, 2])
def test_a_head_trains_on_any_batch(batch):
    head = DeepLabHead(16, 2, channels=8, aspp_rates=(2,)).train()
    head(torch.randn(batch, 16, 4, 5)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
