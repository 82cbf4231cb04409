# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The network against the oracle, at any size, for any choice of tasks."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtan_perception.checkpoint import import_reference
from mtan_perception.inference.benchmark.original import randomise_batch_norm, ReferenceMTAN
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.network.mtan_deeplabv3 import unit_vectors

TASKS = {'segmentation': 13, 'depth': 1, 'normal': 3}


def compact(tasks=TASKS, **options):
    options = {'backbone': 'resnet18', 'output_stride': 16, 'head_channels': 32,
               'aspp_rates': (2, 4, 6), **options}
    return MTANDeepLabv3(tasks, **options)


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    return compact().eval()


@torch.inference_mode()
def test_agrees_with_the_oracle_on_the_same_checkpoint(tmp_path):
    torch.manual_seed(0)
    oracle = randomise_batch_norm(ReferenceMTAN(TASKS)).eval()
    assert len(oracle.state_dict()) == 690
    torch.save(oracle.state_dict(), tmp_path / 'oracle.pth')
    with torch.device('meta'):
        network = MTANDeepLabv3(TASKS).eval()
    network.load_state_dict(import_reference(tmp_path / 'oracle.pth', TASKS), assign=True)
    (tmp_path / 'oracle.pth').unlink()  # large
    x = torch.randn(1, 3, 72, 104)
    ours, theirs = network(x), oracle(x)
    for name in TASKS:
        assert theirs[name].std() > 0.01  # a constant would agree too easily
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


def test_number_of_parameters():
    with torch.device('meta'):
        network = MTANDeepLabv3(TASKS)
    assert sum(p.numel() for p in network.parameters()) == 92_347_921
    assert len(network.state_dict()) == 690


@pytest.mark.parametrize(('backbone', 'width'), [
    ('resnet18', 512), ('resnet34', 512), ('resnet50', 2048), ('resnet101', 2048)])
@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_widths_follow_the_backbone(backbone, width, output_stride):
    with torch.device('meta'):
        network = MTANDeepLabv3({'depth': 1}, backbone, output_stride)
        assert network(torch.empty(1, 3, 97, 129))['depth'].shape == (1, 1, 97, 129)
    assert network.decoders['depth'][0].convs[0][0].in_channels == width


@pytest.mark.parametrize('output_stride', [8, 16, 32])
@torch.inference_mode()
def test_any_input_size(output_stride):
    network = compact(output_stride=output_stride).eval()
    for size in [(100, 128), (97, 129), (33, 47), (8, 8), (5, 3), (1, 1)]:
        result = network(torch.randn(1, 3, *size))
        assert {name: tuple(value.shape) for name, value in result.items()} == {
            name: (1, channels, *size) for name, channels in TASKS.items()}
        assert all(torch.isfinite(value).all() for value in result.values())


@torch.inference_mode()
def test_meaning_of_the_outputs(small):
    result = small(torch.randn(2, 3, 64, 96), out_size=(50, 70))
    assert list(result) == ['segmentation', 'depth', 'normal']
    ones = torch.ones(2, 50, 70)
    torch.testing.assert_close(result['segmentation'].exp().sum(dim=1), ones)
    torch.testing.assert_close(result['normal'].norm(dim=1), ones)
    assert result['depth'].shape == (2, 1, 50, 70)


@torch.inference_mode()
def test_a_subset_predicts_the_same_in_the_networks_order(small):
    x = torch.randn(1, 3, 64, 64)
    full, subset = small(x), small(x, tasks=['normal', 'segmentation'])
    assert list(subset) == ['segmentation', 'normal']
    for name, value in subset.items():
        torch.testing.assert_close(value, full[name])
    assert small(x, tasks=[]) == {}


def test_one_task_costs_at_most_half():
    def flops(tasks):
        with FlopCounterMode(display=False) as counter:
            network(x, tasks=tasks)
        return counter.get_total_flops()

    with torch.device('meta'):
        network = MTANDeepLabv3(TASKS).eval()
        x = torch.empty(1, 3, 288, 384)
    full, depth = flops(None), flops(['depth'])
    assert full / 2e9 == pytest.approx(192, abs=1)  # GMAC
    assert depth <= 0.5 * full


def test_modules_of_other_tasks_do_not_run():
    with torch.device('meta'):
        network = compact().eval()
    ran = []
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network(torch.empty(1, 3, 32, 32, device='meta'), tasks=['depth'])
    assert any('decoders.depth' in name for name in ran)
    assert not [name for name in ran if 'segmentation' in name or 'normal' in name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_normal_of_a_tiny_or_huge_vector_is_finite_and_so_is_its_gradient(dtype):
    length = torch.tensor([0.0, 1e-7, 1e-3, 1.0, 3e4]).to(dtype)
    x = length.reshape(1, 1, 1, 5).repeat(1, 3, 1, 1).requires_grad_()
    y = unit_vectors(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert (y[..., 0] == 0).all()
    torch.testing.assert_close(y[..., 2:].float().norm(dim=1), torch.ones(1, 1, 3),
                               atol=5e-3, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_network_whose_normal_head_is_dead_in_half_precision(dtype):
    network = compact({'normal': 3}).eval()
    for parameter in network.decoders['normal'][-1].parameters():
        parameter.zero_()
    normal = network.to(dtype)(torch.randn(1, 3, 32, 32, dtype=dtype))['normal']
    assert (normal == 0).all()


def test_training_on_one_image_and_each_task_on_its_own():
    network = compact().train()
    network(torch.randn(1, 3, 64, 64))
    counts = {encoder.block.bn1.num_batches_tracked.item() for encoder in network.shared_encoders}
    assert counts == {len(TASKS)}
    assert network.trunk.bn1.num_batches_tracked.item() == 1


def test_gradients_reach_every_parameter():
    network = compact().train()
    sum(value.sum() for value in network(torch.randn(2, 3, 64, 64)).values()).backward()
    assert [name for name, p in network.named_parameters()
            if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_activations_can_be_chosen():
    network = compact({'edges': 2, 'depth': 3}, activations={'edges': 'log_softmax',
                                                             'depth': 'unit'}).eval()
    result = network(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(result['edges'].exp().sum(dim=1), torch.ones(1, 32, 32))
    torch.testing.assert_close(result['depth'].norm(dim=1), torch.ones(1, 32, 32))


@pytest.mark.parametrize(('options', 'message'), [
    ({'tasks': {}}, 'none given'),
    ({'tasks': {'values': 1}}, "'values' cannot name a task"),
    ({'tasks': {'training': 1}}, "'training' cannot name a task"),
    ({'tasks': {'a.b': 1}}, "'a.b' cannot name a task"),
    ({'tasks': {'depth': 0}}, 'depth needs at least 1 channel, not 0'),
    ({'activations': {'flow': 'unit'}}, "unknown task 'flow'; tasks are segmentation"),
    ({'activations': {'depth': 'relu'}}, "'relu' for depth; choose one of log_softmax"),
])
def test_impossible_options_are_named(options, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        compact(**options)


def test_unknown_task_is_named_with_the_choices(small):
    with pytest.raises(ValueError, match=r"unknown 'flow'; .* segmentation, depth, normal"):
        small(torch.zeros(1, 3, 32, 32), tasks=['flow', 'depth'])


def test_imports_torch_alone():
    code = ('import sys, mtan_perception.network; '
            'print([m for m in ("torchvision", "safetensors", "cv2", "rclpy", "yaml", '
            '"mtan_perception.tasks") if m in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout.strip() == '[]'
