# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Weights files: round trips, atomic writes, foreign checkpoints, clear errors."""

from collections import OrderedDict
from dataclasses import replace
import json
import math
import os
import re

import pytest
from safetensors.torch import save_file
import torch

from mtan_perception import checkpoint, files, model_card
from mtan_perception.checkpoint import (
    build_network,
    import_reference,
    load_network,
    read_checkpoint,
    save_checkpoint,
)
from mtan_perception.inference.benchmark.original import ReferenceMTAN
from mtan_perception.labels import CITYSCAPES_19, generic, NYUV2_13
from mtan_perception.model_card import CheckpointError, COMPACT, ModelCard, read_card
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.tasks import NYUV2_TASKS

TINY = ModelCard(
    tasks={'depth': 1, 'segmentation': 13}, backbone='resnet18', output_stride=32,
    head_channels=8, aspp_rates=(2, 3), labels=NYUV2_13, input_size=(96, 128),
    mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), focal_length=321.5, normal_axes='nyu',
    training={'data': 'synthetic', 'epochs': 3, 'miou': 0.5})


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return build_network(TINY).eval()


@pytest.fixture
def weights(network, tmp_path):
    path = tmp_path / 'w.safetensors'
    save_checkpoint(path, network, TINY)
    return path


@torch.inference_mode()
def test_round_trip(network, weights):
    loaded, card = load_network(weights)
    assert card == TINY and read_card(weights) == TINY
    assert list(card.tasks) == ['depth', 'segmentation']  # the order is part of it
    assert not loaded.training
    x = torch.randn(1, 3, 32, 32)
    for name, value in network(x).items():
        assert torch.equal(loaded(x)[name], value)
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_half_precision_on_disk_is_float32_in_use(network, tmp_path):
    path = tmp_path / 'half.safetensors'
    save_checkpoint(path, network.state_dict(), TINY, dtype=torch.float16)
    state, _ = read_checkpoint(path)
    assert state['trunk.conv1.weight'].dtype == torch.float16
    assert state['trunk.bn1.num_batches_tracked'].dtype == torch.int64
    loaded, _ = load_network(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.trunk.conv1.weight, network.trunk.conv1.weight,
                               atol=1e-3, rtol=1e-3)


def test_a_saved_file_follows_the_umask(weights):
    umask = os.umask(0)
    os.umask(umask)
    assert weights.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('module, failing', [(checkpoint, 'save_file'), (files, '_flush')])
def test_a_failing_save_leaves_the_file_untouched(network, weights, monkeypatch, module, failing):
    before = weights.read_bytes()

    def fail(*args):
        raise OSError('no space left on device')

    monkeypatch.setattr(module, failing, fail)
    with pytest.raises(OSError, match='no space'):
        save_checkpoint(weights, network, replace(TINY, input_size=(1, 1)))
    assert weights.read_bytes() == before
    assert os.listdir(weights.parent) == [weights.name]


def test_a_full_disk_is_an_error_of_the_system(weights, network, full_disk):
    """Not one of safetensors, which whoever saves would not expect."""
    before = weights.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r'w\.safetensors: cannot be written'):
        save_checkpoint(weights, network, TINY)
    assert weights.read_bytes() == before


def test_save_into_a_missing_folder_names_it(network, tmp_path):
    with pytest.raises(OSError, match='nowhere'):
        save_checkpoint(tmp_path / 'nowhere' / 'w.safetensors', network, TINY)


def test_random_is_the_same_each_time_and_disturbs_nothing():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, card = load_network('random')
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second, _ = load_network('random')
    assert card == COMPACT and not first.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    with torch.inference_mode():
        depth = first(torch.randn(1, 3, 64, 64))['depth']
    assert 1 < depth.min() and depth.max() < 3  # metres that a consumer would show


def test_default_that_is_not_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(model_card, 'DEFAULT_WEIGHTS', tmp_path / 'default.safetensors')
    with pytest.raises(CheckpointError, match=r'default is not part of .*or random'):
        load_network('default')


def test_default_that_is_shipped(monkeypatch, weights):
    monkeypatch.setattr(model_card, 'DEFAULT_WEIGHTS', weights)
    assert load_network('default')[1] == TINY


def rewrite(path, state=None, **metadata):
    """Write the file anew with some metadata or tensors changed."""
    tensors, card = read_checkpoint(path)
    save_file(state or tensors, path, {**card.to_metadata(), **metadata})


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r'none\.safetensors: cannot be opened \(No such'):
        load_network(tmp_path / 'none.safetensors')
    with pytest.raises(CheckpointError, match=r'cannot be opened \(Is a directory\)'):
        load_network(tmp_path)


@pytest.mark.parametrize('keep', [0, 5, 100, -1])
def test_truncated_file(weights, keep):
    content = weights.read_bytes()[:keep]
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'w\.safetensors: is not a whole safetensors file '
                                              rf'\({len(content)} bytes\); copy or download'):
        load_network(weights)


@pytest.mark.parametrize(('content', 'message'), [
    (b'version https://git-lfs.github.com/spec/v1\noid', 'Git LFS pointer.*git lfs pull'),
    (b'<html>404</html>' * 9, 'is not a whole safetensors file'),
])
def test_foreign_bytes(tmp_path, content, message):
    path = tmp_path / 'w.safetensors'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


def test_pytorch_file_points_to_the_import(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'PyTorch file.*mtan import .*w\.pth'):
        load_network(tmp_path / 'w.pth')


def test_safetensors_of_something_else(tmp_path):
    save_file({'a': torch.zeros(1)}, tmp_path / 'w.safetensors')
    with pytest.raises(CheckpointError, match=r'w\.safetensors: holds no mtan_perception card'):
        load_network(tmp_path / 'w.safetensors')


def test_another_version(weights):
    rewrite(weights, format_version='7')
    with pytest.raises(CheckpointError, match=r'w\.safetensors: has format version 7.*reads 1'):
        load_network(weights)


@pytest.mark.parametrize('change', [
    lambda card: '{', lambda card: '[]', lambda card: json.dumps({**card, 'tasks': {}}),
    lambda card: json.dumps({**card, 'tasks': None}), lambda card: json.dumps({**card, 'new': 1}),
    lambda card: json.dumps({**card, 'input_size': 3}),
    lambda card: json.dumps({**card, 'labels': {'name': 'x'}}),
])
def test_damaged_card(weights, change):
    rewrite(weights, card=change(json.loads(TINY.to_metadata()['card'])))
    with pytest.raises(CheckpointError, match=r'w\.safetensors: has a damaged card'):
        load_network(weights)


def test_card_of_an_unknown_network(weights):
    rewrite(weights, **replace(TINY, backbone='vgg16').to_metadata())
    with pytest.raises(CheckpointError, match=r"w\.safetensors: .*'vgg16'; choose one of"):
        load_network(weights)


def test_tensors_that_do_not_fit_the_card(weights):
    rewrite(weights, **replace(TINY, head_channels=16).to_metadata())
    with pytest.raises(CheckpointError, match=r'own card.*\n  mis-shaped: decoders\.depth\.0\.'):
        load_network(weights)


@pytest.mark.parametrize(('change', 'message'), [
    ({'tasks': {'depth': 2}}, 'depth has 1 channel'),
    ({'labels': CITYSCAPES_19}, 'cityscapes_19 has 19 classes, but the segmentation task has 13'),
    ({'tasks': {'depth': 1}}, 'nyuv2_13 has 13 classes, but the segmentation task has None'),
    ({'input_size': (0, 4)}, r'input_size: \(0, 4\)'),
    ({'input_size': (288.0, math.inf)}, r'input_size: \(288\.0, inf\)'),
    ({'input_size': (288.5, 384)}, r'input_size: \(288\.5, 384\)'),
    ({'std': (1, 0, 1)}, r'std \(1, 0, 1\)'),
    ({'std': (1, math.nan, 1)}, r'std \(1, nan, 1\)'),
    ({'mean': (0, math.inf, 0)}, r'mean \(0, inf, 0\)'),
    ({'focal_length': -1.0}, r'focal_length: -1\.0'),
    ({'focal_length': 0}, 'focal_length: 0'),
    ({'mean': (0.5, 0.5)}, r'mean \(0\.5, 0\.5\)'),
    ({'focal_length': math.inf}, 'focal_length: inf'),
    ({'depth_unit': 'furlong'}, "'furlong'; choose one of metre, inverse"),
    ({'normal_axes': 'ned'}, "'ned'; choose one of optical, nyu"),
])
def test_a_card_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(COMPACT, **change)


def test_what_a_card_says_of_itself():
    assert ModelCard({'segmentation': 5}).labels == generic(5)
    assert ModelCard({'depth': 1}).labels is None
    assert TINY.is_synthetic and not COMPACT.is_synthetic
    assert TINY.corrects_depth and not replace(TINY, depth_unit='inverse').corrects_depth
    assert not COMPACT.corrects_depth, 'its focal length is not known'
    assert (TINY.size_multiple, replace(TINY, output_stride=8).size_multiple) == (32, 8)
    assert read_card('random') is COMPACT


def test_a_network_in_another_memory_format_is_saved_as_any(network, tmp_path):
    """As one that was trained on a GPU; counters stay whole numbers."""
    path = tmp_path / 'w.safetensors'
    state = {name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
             for name, tensor in network.state_dict().items()}
    save_checkpoint(path, state, TINY)
    for name, tensor in load_network(path)[0].state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name]), name


# ---- foreign checkpoints ----------------------------------------------------------------------

def reference_state(tasks=NYUV2_TASKS):
    """Return the reference's tensors, each one number expanded: next to no bytes in a file."""
    with torch.device('meta'):
        shapes = {name: value.shape for name, value in ReferenceMTAN(tasks).state_dict().items()}
    return OrderedDict((name, torch.tensor(float(index)).expand(shape))
                       for index, (name, shape) in enumerate(shapes.items()))


def libmtl_name(name, tasks=tuple(NYUV2_TASKS)):
    name = re.sub(r'^shared_layer(\d)_b', lambda m: f'shared_layer.{int(m[1]) - 1}.0', name)
    name = re.sub(r'^shared_layer(\d)_t', lambda m: f'shared_layer.{int(m[1]) - 1}.1', name)
    name = re.sub(r'^(encoder_(?:block_)?att)_(\d)', lambda m: f'{m[1]}.{int(m[2]) - 1}', name)
    name = re.sub(r'^decoders\.(\d)', lambda m: f'decoders.{tasks[int(m[1])]}', name)
    return name if name.startswith('decoders') else f'encoder.{name}'


def numbers(state):
    return {name: value.flatten()[0].item() for name, value in state.items()}


@pytest.fixture
def checkpoint_file(tmp_path):
    def save(content):
        torch.save(content, tmp_path / 'ckpt.pth')
        return tmp_path / 'ckpt.pth'
    return save


def test_import_of_the_reference_names(checkpoint_file):
    source = reference_state()
    state = import_reference(checkpoint_file(source), NYUV2_TASKS)
    with torch.device('meta'):
        expected = MTANDeepLabv3(NYUV2_TASKS).state_dict()
    assert {n: (v.shape, v.dtype) for n, v in state.items()} == {
        n: (v.shape, v.dtype) for n, v in expected.items()}
    theirs, ours = numbers(source), numbers(state)
    assert len(set(ours.values())) == 690
    for reference, name in {
        'shared_conv.0.weight': 'trunk.conv1.weight',
        'shared_layer3_b.4.conv2.weight': 'trunk.layer3.4.conv2.weight',
        'shared_layer3_t.bn3.running_var': 'trunk.layer3.5.bn3.running_var',
        'encoder_att_2.1.3.bias': 'masks.1.depth.3.bias',
        'encoder_block_att_3.downsample.0.weight': 'shared_encoders.2.block.downsample.0.weight',
        'decoders.2.0.convs.4.2.bias': 'decoders.normal.0.convs.4.2.bias',
    }.items():
        assert ours[name] == theirs[reference]


def test_import_of_libmtls_names(checkpoint_file):
    source = reference_state()
    renamed = {libmtl_name(name): value for name, value in source.items()}
    assert 'encoder.encoder_att.3.2.4.weight' in renamed
    assert 'encoder.shared_layer.0.1.conv1.weight' in renamed
    state = import_reference(checkpoint_file(renamed), NYUV2_TASKS)
    assert numbers(state) == numbers(import_reference(checkpoint_file(source), NYUV2_TASKS))


@pytest.mark.parametrize('key', ['state_dict', 'model', 'model_state_dict'])
def test_import_of_a_wrapped_checkpoint_without_counters(checkpoint_file, key):
    source = {f'module.{name}': value for name, value in reference_state({'depth': 1}).items()
              if not name.endswith('num_batches_tracked')}
    state = import_reference(checkpoint_file({'epoch': 3, key: source}), {'depth': 1})
    assert state['trunk.bn1.num_batches_tracked'].item() == 0
    assert numbers(state)['trunk.conv1.weight'] == numbers(source)['module.shared_conv.0.weight']


def test_of_another_backbone_only_the_first_are_listed(checkpoint_file):
    """Of each kind, so that what they have in common is seen."""
    with pytest.raises(CheckpointError) as caught:
        import_reference(checkpoint_file(reference_state()), NYUV2_TASKS, 'resnet18')
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 2 * 6
    assert re.search(r'\.\.\. and \d{3} more unknown', lines[6])


def test_other_names_are_those_of_another_network(checkpoint_file):
    """One of each is shown, by which a prefix is found."""
    source = {f'other.{name}': tensor for name, tensor in reference_state().items()}
    with pytest.raises(CheckpointError, match='is a checkpoint of another network') as error:
        import_reference(checkpoint_file(source), NYUV2_TASKS)
    assert 'like other.shared_conv.0.weight, those of this network like s' in str(error.value)


def test_everything_that_does_not_fit_is_listed_at_once(checkpoint_file):
    source = reference_state()
    del source['shared_conv.0.weight'], source['decoders.1.4.bias']
    source['extra.weight'] = torch.zeros(2)
    source['epoch'] = 3
    source['encoder_att_1.0.0.weight'] = torch.zeros(64, 255, 1, 1)
    source['encoder_att_1.0.0.bias'] = 'text'
    with pytest.raises(CheckpointError) as caught:
        import_reference(checkpoint_file(source), NYUV2_TASKS)
    first, *rest = str(caught.value).splitlines()
    assert 'ckpt.pth: 6 of its tensors do not fit' in first and '--tasks' in first
    assert sorted(line.strip() for line in rest) == [
        'mis-shaped: encoder_att_1.0.0.bias str, expected (64,)',
        'mis-shaped: encoder_att_1.0.0.weight (64, 255, 1, 1), expected (64, 256, 1, 1)',
        'missing: decoders.1.4.bias (1,)',
        'missing: shared_conv.0.weight (64, 3, 7, 7)',
        'unknown: epoch',
        'unknown: extra.weight']


def test_wrong_tasks_show_as_shapes(checkpoint_file):
    path = checkpoint_file(reference_state())
    with pytest.raises(CheckpointError, match=r'decoders\.0\.4\.bias \(13,\), expected \(40,\)'):
        import_reference(path, {**NYUV2_TASKS, 'segmentation': 40})
    with pytest.raises(CheckpointError, match=r'unknown: encoder_att_1\.2\.0\.weight'):
        import_reference(path, {'segmentation': 13, 'depth': 1})


class Malicious:
    """Pickled, it creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, zipped):
    path, proof = tmp_path / 'evil.pth', tmp_path / 'proof'
    torch.save({'state_dict': Malicious(proof)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'evil\.pth: refused.*could run code'):
        import_reference(path, NYUV2_TASKS)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # so the refusal was needed


@pytest.mark.parametrize(('content', 'message'), [
    (b'', 'is damaged or no PyTorch checkpoint'),
    (b'not a checkpoint at all', 'is not a PyTorch checkpoint'),
    (b'PK\x03\x04 cut short', 'is damaged or no PyTorch checkpoint'),
    (None, r'cannot be opened \(No such file'),
])
def test_import_of_something_else(tmp_path, content, message):
    path = tmp_path / 'ckpt.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'ckpt\.pth: {message}'):
        import_reference(path, NYUV2_TASKS)


@pytest.mark.parametrize('content', [torch.zeros(3), [1, 2], {}])
def test_import_of_no_state_dict(checkpoint_file, content):
    with pytest.raises(CheckpointError, match='holds no state dict'):
        import_reference(checkpoint_file(content), NYUV2_TASKS)
