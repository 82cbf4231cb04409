# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The trunk against torchvision's ResNet, and its ImageNet weights."""

import pytest
from safetensors.torch import save_file
import torch
from torch import nn
import torchvision.models

from mtan_perception.inference.benchmark.original import randomise_batch_norm
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.network.dilated_resnet import DilatedResNet, load_pretrained


def torchvision_twin(backbone, replace=None):
    twin = getattr(torchvision.models, backbone)(replace_stride_with_dilation=replace)
    return randomise_batch_norm(twin).eval()


def torchvision_stages(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        u_b = layer[:-1](x)
        x = layer[-1](u_b)
        yield u_b, x


@pytest.mark.parametrize(('backbone', 'output_stride', 'replace'), [
    ('resnet50', 8, [False, True, True]),
    ('resnet50', 16, [False, False, True]),
    ('resnet50', 32, None),
    ('resnet18', 32, None),
])
@torch.inference_mode()
def test_same_function_as_torchvision(backbone, output_stride, replace):
    torch.manual_seed(0)
    twin = torchvision_twin(backbone, replace)
    trunk = DilatedResNet(backbone, output_stride).eval()
    copy_weights(trunk, twin)
    x = torch.randn(2, 3, 64, 96)
    expected = list(torchvision_stages(twin, x))
    assert expected[-1][1].shape[-2:] == (64 // output_stride, 96 // output_stride)
    for stage, (ours, theirs) in enumerate(zip(trunk(x), expected, strict=True)):
        assert ours[1].shape[1] == trunk.channels[stage]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def copy_weights(trunk, twin):
    trunk.load_state_dict({name: value for name, value in twin.state_dict().items()
                           if not name.startswith('fc.')})


def test_parameters_of_the_trunk():
    with torch.device('meta'):
        trunk = DilatedResNet('resnet50')
    assert sum(p.numel() for p in trunk.parameters()) == 23_508_032


@pytest.mark.parametrize('backbone', ['resnet18', 'resnet34', 'resnet50', 'resnet101'])
def test_tensors_are_named_like_torchvisions(backbone):
    with torch.device('meta'):
        ours = DilatedResNet(backbone).state_dict()
        theirs = getattr(torchvision.models, backbone)().state_dict()
    shapes = {name: value.shape for name, value in theirs.items() if not name.startswith('fc.')}
    assert {name: value.shape for name, value in ours.items()} == shapes


@pytest.mark.parametrize(('output_stride', 'dilations'), [
    (8, [1, 1, 1, 1, 1, 2, 2, 4]),
    (16, [1, 1, 1, 1, 1, 1, 1, 2]),
    (32, [1] * 8),
])
def test_basic_blocks_dilate_where_they_no_longer_stride(output_stride, dilations):
    trunk = DilatedResNet('resnet18', output_stride)
    layers = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
    assert [block.conv2.dilation[0] for layer in layers for block in layer] == dilations
    x = torch.zeros(1, 3, 64, 32)
    size = (64 // output_stride, 32 // output_stride)
    assert trunk.eval()(x)[-1][1].shape == (1, 512, *size)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_pretrained_from_a_local_file(tmp_path, suffix):
    twin = torchvision_twin('resnet18')
    path = tmp_path / f'resnet18{suffix}'
    save = save_file if suffix == '.safetensors' else torch.save
    save(twin.state_dict(), path)
    network = MTANDeepLabv3({'depth': 1}, 'resnet18', pretrained=path)
    torch.testing.assert_close(network.trunk.layer4[1].conv2.weight, twin.layer4[1].conv2.weight)
    torch.testing.assert_close(network.trunk.bn1.running_var, twin.bn1.running_var)


def test_pretrained_true_takes_torchvisions_first_imagenet_weights(monkeypatch):
    twin = torchvision_twin('resnet18')
    asked = []

    def fetch(self, *args, **kwargs):
        asked.append(str(self))
        return twin.state_dict()

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, 'get_state_dict', fetch)
    network = MTANDeepLabv3({'depth': 1}, 'resnet18', pretrained=True)
    assert asked == ['ResNet18_Weights.IMAGENET1K_V1']
    torch.testing.assert_close(network.trunk.conv1.weight, twin.conv1.weight)


def test_pretrained_without_a_network_names_the_way_out(monkeypatch):
    asked = []

    def fail(self, *args, **kwargs):
        asked.append(str(self))
        raise OSError('no route to host')

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, 'get_state_dict', fail)
    with pytest.raises(OSError, match=r'resnet50.*no route to host.*path of a torchvision'):
        load_pretrained(DilatedResNet('resnet50'), 'resnet50', True)
    assert asked == ['ResNet50_Weights.IMAGENET1K_V1'], 'not V2, which is the default'


def test_pretrained_from_an_unsuitable_file(tmp_path):
    trunk = DilatedResNet('resnet18')
    other, text, lone = tmp_path / 'r34.pth', tmp_path / 'text.pth', tmp_path / 'lone.pth'
    torch.save(nn.Linear(2, 2).state_dict(), other)
    text.write_text('not a checkpoint')
    torch.save(torch.zeros(3), lone)
    with pytest.raises(ValueError, match=r'r34\.pth does not hold.*resnet18'):
        load_pretrained(trunk, 'resnet18', other)
    with pytest.raises(ValueError, match=r'text\.pth cannot be read'):
        load_pretrained(trunk, 'resnet18', text)
    with pytest.raises(ValueError, match=r'lone\.pth holds a Tensor'):
        load_pretrained(trunk, 'resnet18', lone)
    with pytest.raises(FileNotFoundError):
        load_pretrained(trunk, 'resnet18', tmp_path / 'none.pth')


def test_unknown_backbone_and_stride_are_named():
    with pytest.raises(ValueError, match=r"'vgg16'.*resnet18, resnet34, resnet50, resnet101"):
        DilatedResNet('vgg16')
    with pytest.raises(ValueError, match=r'4; choose 8, 16 or 32'):
        DilatedResNet('resnet50', output_stride=4)
