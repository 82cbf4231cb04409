# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The optimised network and its convolutions against what they replace."""

from itertools import chain, combinations, product

import pytest
import torch
from torch import nn
from torch.nn import functional

from mtan_perception.inference.convolution import (
    AtrousConvolution,
    Convolution,
    cpu_convolution,
    fold,
    split_convolution,
    tiled_convolution,
    TiledConvolution,
    WinogradConvolution,
)
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.tasks import NYUV2_TASKS

SUBSETS = list(chain.from_iterable(combinations(NYUV2_TASKS, count) for count in (1, 2, 3)))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@torch.no_grad()
def trained(network):
    """Give BatchNorm statistics and an affine map as if the network had been trained."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, least in ((module.running_mean, -0.1), (module.running_var, 0.5),
                                  (module.weight, 0.5), (module.bias, -0.1)):
                tensor.uniform_(least, least + 0.5, generator=generator)
    return network.eval()


def build(**arguments):
    torch.manual_seed(0)
    return trained(MTANDeepLabv3(NYUV2_TASKS, head_channels=16, **arguments))


def assert_equal_maps(ours, theirs, tolerance):
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].shape == theirs[name].shape, name
        assert (ours[name] - theirs[name]).abs().max() < tolerance, name


@pytest.mark.parametrize('factory', [Convolution, cpu_convolution])
@pytest.mark.parametrize('arguments', [
    {'backbone': 'resnet18', 'output_stride': 16, 'aspp_rates': (3, 6, 9)},
    {'backbone': 'resnet18', 'output_stride': 8, 'aspp_rates': (1, 2, 40)},
    {'backbone': 'resnet50', 'output_stride': 32, 'aspp_rates': (12, 24, 36)},
], ids=['os16', 'os8', 'resnet50'])
def test_float64_agrees_to_rounding(arguments, factory):
    """Odd sizes, a batch of two: the same function, not a similar one."""
    network = build(**arguments).double()
    optimized = OptimizedMTAN(network, factory)
    x = torch.randn(2, 3, 61, 83, dtype=torch.float64)
    assert_equal_maps(optimized(x), network(x), 1e-9)
    assert_equal_maps(optimized(x, out_size=(7, 9)), network(x, out_size=(7, 9)), 1e-9)


@pytest.mark.parametrize('factory', [
    Convolution, cpu_convolution, split_convolution, tiled_convolution])
def test_float32_agrees_on_the_full_dilated_resnet50(factory):
    """At output stride 8 with DeepLab's rates, some taps reach the map and some do not."""
    network = build(backbone='resnet50')
    optimized = OptimizedMTAN(network, factory)
    x = torch.randn(1, 3, 104, 136)
    assert_equal_maps(optimized(x), network(x), 1e-3)


@pytest.fixture(scope='module')
def pair():
    network = build(backbone='resnet18', output_stride=16, aspp_rates=(3, 6, 9))
    return network, OptimizedMTAN(network, cpu_convolution)


@pytest.mark.parametrize('subset', SUBSETS, ids='-'.join)
def test_each_subset_of_the_tasks(pair, subset):
    """In any order of asking, the network's order comes back, and only what was asked."""
    network, optimized = pair
    x = torch.randn(1, 3, 64, 96)
    assert_equal_maps(optimized(x, tasks=reversed(subset)), network(x, tasks=subset), 1e-4)


def test_only_what_is_wanted_runs(pair):
    """The mask and head of another task are not called, and the encoders once for all."""
    _, optimized = pair
    calls = []
    handles = [module.register_forward_hook(lambda module, inputs, output, name=name:
                                            calls.append((name, inputs[0].shape[0])))
               for name, module in optimized.named_modules()
               if name.startswith(('heads.', 'encoders.')) and name.count('.') == 1]
    optimized(torch.randn(1, 3, 64, 64), tasks=['normal', 'segmentation'])
    for handle in handles:
        handle.remove()
    assert calls == [('encoders.0', 2), ('encoders.1', 2), ('encoders.2', 2),
                     ('heads.segmentation', 1), ('heads.normal', 1)]


def test_no_norm_and_no_gradient_is_left(pair):
    _, optimized = pair
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.Dropout))
                   for module in optimized.modules())
    assert not any(tensor.requires_grad for tensor in optimized.state_dict().values())


def test_the_network_is_not_changed(pair):
    """Folding writes into copies: the network can be optimised again, or trained on."""
    network, _ = pair
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    OptimizedMTAN(network).to(torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize('count', [2, 3, 4, 5, 6])
def test_chains_are_the_convolution(count):
    """Pixels with none before and after them, three taps; along both axes with another length."""
    taps, pixels = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 3), (count, 4)))
    weight = taps.view(1, 1, 3, 3)
    inputs, matrices, outputs = AtrousConvolution(weight, None).by_chains((count, 4))
    found = torch.kron(*outputs) @ (matrices.flatten() * (torch.kron(*inputs) @ pixels.flatten()))
    expected = functional.conv2d(pixels[None, None], weight, padding=1)
    assert (found - expected.flatten()).abs().max() < 1e-12


@pytest.mark.parametrize('width', [2, 5])
def test_thirds_are_the_convolution(width):
    """The equations of AtrousConvolution; with columns of taps outside the map, too."""
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    module = AtrousConvolution(weight, None, padding=4, dilation=4)
    others, centre = module.by_thirds(width)
    one, two, three = (torch.randn(1, 3, 4, width, dtype=torch.float64) for _ in range(3))
    beside = module.taps(12, width)[1][1]
    s, t = (functional.conv2d(band, centre, padding=(0, beside), dilation=(1, 4))
            for band in (one + two / 2, two + three))
    x = torch.cat([one, two, three], 2)
    found = torch.cat([s, s + t / 2, t], 2) + functional.conv2d(
        x, others, padding=(4, beside), dilation=(8, 4))
    assert (found - functional.conv2d(x, weight, padding=4, dilation=4)).abs().max() < 1e-12


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (9, 12), (17, 30)])
@pytest.mark.parametrize('dilation', [1, 2, 3, 4])
def test_winograd_is_the_convolution(size, dilation):
    """Maps smaller than a tile, and those that tiles do not divide."""
    weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 5, 3, 3), (6,)))
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = functional.conv2d(x, weight, bias, 1, dilation, dilation).relu()
    found = WinogradConvolution(weight, bias, 1, dilation, dilation, 'relu')(x)
    assert (found - expected).abs().max() < 1e-11


@pytest.mark.parametrize('dilation', [1, 6])
@pytest.mark.parametrize('tiled', [WinogradConvolution, TiledConvolution])
def test_what_tiles_are_not_made_for_is_computed_plainly(dilation, tiled):
    """Other padding for any dilation, and no bias for near taps."""
    channels = tiled.min_channels
    weight, x = torch.randn(channels, channels, 3, 3), torch.randn(1, channels, 14, 15)
    found = cpu_convolution(weight, torch.zeros(channels), 1, 0, dilation, tiled=tiled)(x)
    assert found.shape[2:] == (14 - 2 * dilation, 15 - 2 * dilation)
    plain = cpu_convolution(weight, None, 1, dilation, dilation, tiled=tiled)(x)
    assert plain.shape == x.shape


@pytest.mark.parametrize('size, dilation, tile', [
    ((36, 48), 1, (6, 6)), ((36, 48), 2, (6, 6)), ((36, 48), 4, (3, 6)), ((18, 24), 1, (3, 4)),
    ((9, 12), 1, (3, 3)), ((30, 40), 2, (5, 5))])
def test_tiles_are_chosen_by_the_map(size, dilation, tile):
    """The largest that leave little of themselves empty, while weights pay for being read."""
    module = TiledConvolution(torch.zeros(1, 1, 3, 3), None, 1, dilation, dilation)
    assert module.tile(*size) == tile


@pytest.mark.parametrize('tile', list(product((3, 4, 5, 6), repeat=2)))
def test_tiles_are_the_convolution(tile):
    """Products in float64, of one tile and what surrounds it."""
    pixels = torch.randn(*(side + 2 for side in tile), dtype=torch.float64)
    weight = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    inputs, kernel, outputs = TiledConvolution(weight, None).by_tiles(tile)
    found = torch.kron(*outputs) @ (kernel.flatten() * (torch.kron(*inputs) @ pixels.flatten()))
    expected = functional.conv2d(pixels[None, None], weight)
    assert (found - expected.flatten()).abs().max() < 1e-11


@pytest.mark.parametrize('size', [(4, 30), (30, 4), (4, 4), (30, 30)])
def test_taps_outside_the_map_are_left_out(size, monkeypatch):
    """A dilation as large as the map leaves the middle row or column of the kernel."""
    called = []

    def convolve(x, weight, *arguments):
        called.append(tuple(weight.shape[2:]))
        return torch.conv2d(x, weight, *arguments)
    monkeypatch.setattr(functional, 'conv2d', convolve)
    weight, bias = torch.randn(2, 3, 3, 3), torch.randn(2)
    x = torch.randn(1, 3, *size)
    found = Convolution(weight, bias, padding=12, dilation=12)(x)
    assert called == [tuple(3 if length > 12 else 1 for length in size)]
    assert (found - torch.conv2d(x, weight, bias, 1, 12, 12)).abs().max() < 1e-5


@pytest.mark.parametrize('bias', [True, False])
def test_folding(bias):
    """Convolution and BatchNorm in one, the addend before the activation."""
    convolution, norm = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(4)
    trained(norm)
    x, addend = torch.randn(2, 3, 9, 9), torch.randn(2, 4, 5, 5)
    expected = norm(convolution(x))
    assert (fold(convolution, norm)(x) - expected).abs().max() < 1e-5
    found = fold(convolution, norm, 'sigmoid')(x, addend)
    assert (found - torch.sigmoid(expected + addend)).abs().max() < 1e-5
