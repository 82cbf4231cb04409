# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The triton backend's kernels beside torch: on a GPU where there is one, else interpreted.

What only a GPU has (cuDNN's own fusion, graphs, the choice by time) is tested there alone.
"""

import logging
import os
from pathlib import Path
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip('triton')
from mtan_perception.checkpoint import save_checkpoint
from mtan_perception.inference import postprocess
from mtan_perception.inference.backends import build_backend
from mtan_perception.inference.backends import triton_choices as choices
from mtan_perception.inference.backends import triton_layers as layers
from mtan_perception.inference.backends.triton_backend import TritonBackend
from mtan_perception.inference.backends.triton_network import FusedMTAN
from mtan_perception.inference.benchmark.original import randomise_batch_norm
from mtan_perception.inference.convolution import Convolution
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.model_card import ModelCard
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.tasks import NYUV2_TASKS

DEVICE = torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
# On a GPU products of float32 are rounded to TF32.
TOLERANCE = 2e-2 if DEVICE.type == 'cuda' else 1e-4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def place(buffer):
    return buffer.to(DEVICE)


def random_map(tasks, channels, images=2, height=9, width=13):
    return torch.randn(tasks, images, height, width, channels, device=DEVICE)


def convolution(out, channels, side=1, stride=1, dilation=1, activation='relu', bias=True):
    return Convolution(torch.randn(out, channels, side, side) / (side * channels ** 0.5),
                       torch.randn(out) if bias else None, stride, dilation * (side // 2),
                       dilation, activation)


def expected(parts, x, addend=None, factor=None, bias=None):
    """Return the maps by Convolution, task by task."""
    results = []
    for task in range(max(len(parts), *(len(map_) for map_ in (x, addend, factor)
                                        if map_ is not None))):
        part = parts[task % len(parts)]
        image, more, mask = (None if map_ is None else map_[task % len(map_)].cpu().permute(
            0, 3, 1, 2) for map_ in (x, addend, factor))
        if bias is not None:
            rows = bias[task].cpu()[:, :, None, None]
            more = rows if more is None else rows + more
        y = part(image, more)
        results.append((y if mask is None else y * mask).permute(0, 2, 3, 1))
    return torch.stack(results)


def assert_near(found, wanted):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.cpu().float(), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('tiling', choices.TILINGS, ids=str)
@pytest.mark.parametrize('side', [1, 3])
def test_every_tiling_gives_the_same(tiling, side):
    part = convolution(48, 128, side)
    x = random_map(1, 128, images=1)
    fused = layers.FusedConvolution([part], place)
    assert_near(fused._by_kernel(x, None, None, None, None, None, tiling), expected([part], x))


@pytest.mark.parametrize('side, stride, dilation', [
    (1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 1, 12)])
@pytest.mark.parametrize('activation', [None, 'relu', 'sigmoid'])
def test_a_convolution_of_any_geometry(side, stride, dilation, activation):
    """A dilation of 12 meets nothing along one axis, and little along the other."""
    part = convolution(32, 16, side, stride, dilation, activation)
    x = random_map(1, 16)
    assert_near(layers.FusedConvolution([part], place)(x), expected([part], x))


@pytest.mark.parametrize('out', [1, 3, 13])
def test_few_results_of_many_channels(out):
    """As each head's last layer has them, in full precision."""
    part = convolution(out, 32, activation=None)
    x = random_map(1, 32)
    found = layers.FusedConvolution([part], place)(x, dtype=torch.float32)
    assert_near(found, expected([part], x))


@pytest.mark.parametrize('images', [1, 2])
def test_large_maps_are_no_row_of_pixels(images, monkeypatch):
    """Offsets within a row are of 32 bits; the images of a map are one by one if need be."""
    monkeypatch.setattr(layers, '_MAX_OFFSET', 2 * 9 * 13 * 32)
    part, x = convolution(32, 16), random_map(1, 16, images)
    assert_near(layers.FusedConvolution([part], place)(x), expected([part], x))


def result_of(way, fused, x, *given):
    """Return what a layer gives, by its kernel in one tiling or by a library."""
    rest = (None, None, choices.Tiling(64, 32, 16, 4, 3)) if way == '_by_kernel' else ()
    return getattr(fused, way)(x, *given, *rest)


@pytest.mark.parametrize('name', ['_by_kernel', '_by_library'])
@pytest.mark.parametrize('shared', [False, True], ids=['own weights', 'shared weights'])
@pytest.mark.parametrize('one_map', [False, True], ids=['own map', 'shared map'])
@pytest.mark.parametrize('extras', [(), ('addend',), ('factor',), ('bias',),
                                    ('addend', 'factor', 'bias')], ids=' '.join)
def test_tasks_go_through_a_layer_together(name, shared, one_map, extras):
    """Each by itself gives the same; what the tasks share is there once."""
    parts = [convolution(32, 16, bias='bias' not in extras) for _ in range(1 if shared else 3)]
    x = random_map(1 if one_map else 3, 16)
    tasks = max(len(parts), len(x))
    maps = {'addend': random_map(tasks, 32), 'factor': random_map(1, 32),
            'bias': torch.randn(tasks, 2, 32, device=DEVICE)}
    given = [maps[key] if key in extras else None for key in ('addend', 'factor', 'bias')]
    fused = layers.FusedConvolution(parts, place)
    assert_near(result_of(name, fused, x, *given), expected(parts, x, *given))


@pytest.mark.parametrize('name', ['_by_kernel', '_by_library'])
@pytest.mark.parametrize('height, width', [(9, 1), (1, 13), (1, 1)])
def test_maps_of_one_row_or_column(name, height, width):
    part, size = convolution(32, 16), {'height': height, 'width': width}
    x, addend, factor = random_map(3, 16, **size), random_map(3, 32, **size), random_map(
        1, 32, **size)
    fused = layers.FusedConvolution([part], place)
    assert_near(result_of(name, fused, x, addend, factor, None),
                expected([part], x, addend, factor))


@pytest.mark.parametrize('given', [{}, {'addend': (3, 32)}, {'factor': (1, 32)}], ids=str)
def test_a_library_completes_what_has_no_activation(given):
    part = convolution(32, 16, activation=None, bias=False)
    maps = {name: random_map(*shape) for name, shape in given.items()}
    x = random_map(3, 16)
    assert_near(layers.FusedConvolution([part], place)._by_library(
        x, maps.get('addend'), maps.get('factor'), None), expected([part], x, **maps))


@pytest.mark.parametrize('side, stride', [(1, 1), (3, 1), (1, 2)])
def test_a_shortcut_is_added_in_the_same_kernel(side, stride):
    """The sum of two convolutions, of maps that may be of two sizes."""
    part, shortcut = convolution(32, 16, side), convolution(32, 48, 1, stride, activation=None)
    x = random_map(3, 16)
    other = random_map(3, 48, height=9 * stride, width=13 * stride)
    added = expected([shortcut], other)
    found = layers.FusedConvolution([part], place, shortcut)(x, other=other)
    assert_near(found, expected([part], x, added))


@pytest.mark.parametrize('tasks', [slice(0, 3), slice(0, 1), slice(0, 3, 2), slice(1, 3)])
def test_some_of_the_tasks(tasks):
    """In the same memory, the pyramid's branches too."""
    parts = [convolution(32, 16, bias=False) for _ in range(3)]
    fused = layers.FusedConvolution([*parts[:2], convolution(32, 16)], place)[tasks]
    torch.testing.assert_close(fused._narrow_bias, fused.bias)  # of these tasks
    fused = layers.FusedConvolution(parts, place)[tasks]
    heads = [[convolution(16, 32, 1), convolution(16, 32, 3, 1, 2), convolution(16, 32, 3, 1, 9)]
             for _ in range(3)]
    pyramid = layers.FusedPyramid(heads, place)
    x = random_map(len(parts[tasks]), 16)
    assert_near(fused(x), expected(parts[tasks], x))
    x = random_map(len(heads[tasks]), 32)
    branches = [expected([head[index] for head in heads[tasks]], x) for index in pyramid.order]
    assert_near(pyramid[tasks](x), torch.cat(branches, dim=-1))
    assert fused.weight.untyped_storage().nbytes() == 3 * 32 * 16 * 4


def test_what_is_not_a_number_stays_none():
    """So that features out of the precision's range are noticed."""
    x = random_map(1, 16)
    x[0, 0, 4, 5] = torch.nan
    part = convolution(32, 16)
    fused = layers.FusedConvolution([part], place)
    for way in ('_by_kernel', '_by_library'):
        y = result_of(way, fused, x, None, None, None)
        assert y[0, 0, 4, 5].isnan().all() and y.isnan().sum() == 32
    pooled = layers.pool_most(nn.MaxPool2d(2), x)
    assert pooled[0, 0, 2, 2].isnan().all() and pooled.isnan().sum() == 16
    stem = Convolution(torch.ones(64, 3, 7, 7), torch.zeros(64), 2, 3, activation='relu')
    assert layers.FusedStem(stem, place)(torch.full((1, 3, 8, 8), torch.nan, device=DEVICE)
                                         ).isnan().all()


def test_the_stem_takes_images_as_they_are():
    """Their channels are planes; any size, any layout."""
    stem = Convolution(torch.randn(64, 3, 7, 7), torch.randn(64), 2, 3, activation='relu')
    fused = layers.FusedStem(stem, place)
    x = torch.randn(2, 3, 31, 42)
    wanted = stem(x).permute(0, 2, 3, 1)[None]
    torch.testing.assert_close(fused(x.to(DEVICE)).cpu(), wanted, rtol=1e-2, atol=5e-2)
    again = fused(x.to(DEVICE, memory_format=torch.channels_last))
    torch.testing.assert_close(again.cpu(), wanted, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize('pool', [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2),
                                  nn.MaxPool2d(2, ceil_mode=True)], ids=str)
def test_pooling(pool):
    x = random_map(2, 80)
    wanted = pool(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(layers.pool_most(pool, x).flatten(0, 1), wanted)


@pytest.mark.parametrize('axes', ['optical', 'nyu'])
def test_images_are_finished_as_elsewhere(axes):
    """Normals without direction too; maps with channels that a task has not."""
    logits = {name: torch.randn(2, 9, 13, 13, device=DEVICE)[..., :channels].permute(0, 3, 1, 2)
              for name, channels in NYUV2_TASKS.items()}
    logits['normal'][0, :, :3, :3] = 0
    logits['normal'][0, :, 6:, 6:] = torch.nan
    found = layers.finish(logits, (70, 104), axes)
    wanted = postprocess.finish(logits, (70, 104), axes)
    assert list(found) == list(wanted)
    assert (found['label'] != wanted['label']).float().mean() < 1e-3
    for name in ('probability', 'depth', 'normal'):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('tasks', [None, ('depth',), ('segmentation', 'normal')], ids=str)
def test_the_network_is_the_same(tasks):
    network = randomise_batch_norm(MTANDeepLabv3(
        NYUV2_TASKS, 'resnet18', head_channels=32, aspp_rates=(1, 2, 3)).eval())
    x = torch.randn(2, 3, 24, 32)
    with torch.inference_mode():
        wanted = OptimizedMTAN(network).logits(x, tasks)
        found = FusedMTAN(OptimizedMTAN(network), place).logits(x.to(DEVICE), tasks)
    assert list(found) == list(wanted)
    for name, part in wanted.items():
        torch.testing.assert_close(found[name].cpu(), part, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('convolution, problem', [
    (Convolution(torch.zeros(16, 12, 1, 1), None), '12 channels are not a multiple of 16')])
def test_what_the_kernels_do_not_do_is_refused(convolution, problem):
    with pytest.raises(BackendError, match=problem):
        layers.FusedConvolution([convolution], place)
    with pytest.raises(BackendError, match='not of 7x7 taps and stride 2'):
        layers.FusedStem(Convolution(torch.zeros(64, 3, 3, 3), torch.zeros(64), 2, 1), place)


def test_tasks_that_are_not_evenly_spaced_are_refused():
    """Of four tasks; torch takes them then."""
    tasks = dict.fromkeys(('a', 'b', 'c', 'd'), 1)
    network = MTANDeepLabv3(tasks, 'resnet18', head_channels=32,
                            activations=dict.fromkeys(tasks, 'identity')).eval()
    fused = FusedMTAN(OptimizedMTAN(network), place)
    with pytest.raises(BackendError, match='a, b, d of a, b, c, d are not evenly spaced'):
        fused.logits(torch.randn(1, 3, 24, 32, device=DEVICE), ('a', 'b', 'd'))


def load():
    torch.manual_seed(0)
    return MTANDeepLabv3(NYUV2_TASKS, 'resnet18').eval()


def test_a_cpu_takes_another_backend(caplog):
    """It is said once, as for any other backend that cannot run."""
    with caplog.at_level(logging.INFO):
        backend = build_backend('triton', 'random', 'cpu', 'fp32', 'optical')
    assert backend.name == 'torch'
    assert 'backend: triton cannot be used: it computes in fp16 and bf16 on CUDA' in caplog.text


@pytest.fixture
def measured(monkeypatch):
    """Make up what a device would measure; return a call that chooses, and what was measured."""
    monkeypatch.setattr(choices, '_chosen', {})
    measured = []

    def measure(candidates, device):
        measured.append(list(candidates))
        return {name: run() for name, run in candidates.items()}
    monkeypatch.setattr(choices, '_measure', measure)

    def choose(key, candidates):
        return choices.fastest(key, {name: lambda time=time: time for name, time in
                                     candidates.items()}, torch.device('cuda:0'))
    return choose, measured


SMALL, LARGE = choices.Tiling(64, 64, 64, 4, 4), choices.Tiling(128, 64, 64, 4, 3)


def test_the_fastest_way_is_measured_once(measured):
    """Large tiles may take a little longer: other kernels run beside this one."""
    choose, tried = measured
    assert choose('layer', {SMALL: 2.0, LARGE: 3.0, 'cudnn': 1.0}) == 1.0
    assert choose('layer', {SMALL: 2.0, LARGE: 3.0, 'cudnn': 9.0}) == 9.0 and len(tried) == 1
    assert choose('another', {SMALL: 1.0, LARGE: 1.04, 'cudnn': 1.0}) == 1.04
    assert choose('a third', {SMALL: 1.0, LARGE: 1.06, 'cudnn': 1.1}) == 1.0
    with choices.unmeasured():
        assert choose('a fourth', {SMALL: 2.0, LARGE: 1.0}) == 2.0
    assert len(tried) == 3


def test_choices_are_kept_between_starts(measured, cache, caplog):
    """Those of one frame; a way that is no longer there is chosen anew."""
    choose, tried = measured
    choose('of another network', {SMALL: 1.0})
    key = {'device': 'made up'}
    choices.keep_choices(key, lambda: choose('layer', {SMALL: 2.0, 'cudnn': 1.0}))
    choices._chosen.clear()
    with caplog.at_level(logging.DEBUG):
        choices.keep_choices(key, lambda: pytest.fail('it is kept'))
    assert 'cache: ' in caplog.text and list(choices._chosen) == ["cuda:0 'layer'"]
    assert choose('layer', {SMALL: 2.0, 'cudnn': 9.0}) == 9.0 and len(tried) == 2
    assert choose('layer', {SMALL: 2.0, LARGE: 1.0}) == 1.0 and len(tried) == 3


def test_choices_that_cannot_be_kept_are_used_all_the_same(measured, cache, caplog):
    choose, tried = measured
    cache.write_text('in the way')
    choices.keep_choices({'device': 'made up'}, lambda: None)
    assert 'the next start will have to choose its kernels again' in caplog.text
    assert choose('layer', {SMALL: 2.0}) == 2.0 and len(tried) == 1


@pytest.mark.parametrize('capability', [80, 90])
def test_the_kernels_compile_without_a_device(capability, tmp_path):
    """They fit the 99 KB that a program has at most on small GPUs of these generations."""
    environment = {name: value for name, value in os.environ.items()
                   if name != 'TRITON_INTERPRET'}
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name('compile_kernels.py'), str(capability)],
        env=environment | {'TRITON_CACHE_DIR': str(tmp_path)}, capture_output=True, text=True,
        timeout=110)
    assert result.returncode == 0, result.stderr
    shared = [int(line.split()[1]) for line in result.stdout.splitlines()]
    assert len(shared) == 7 + len(choices.TILINGS) and max(shared) <= 99 << 10


def test_a_library_without_a_kernel_for_a_layer_is_left_out(monkeypatch):
    """In cuDNN's words that is want of memory; what is, or a kernel of ours, is an error."""
    def run(error):
        def fail(device):
            raise error
        return fail
    missing = RuntimeError('FIND was unable to find an engine to execute this computation')
    full = torch.cuda.OutOfMemoryError('CUDA out of memory.')
    monkeypatch.setattr(choices, '_milliseconds', lambda run, device: run(device))
    found = choices._measure({SMALL: lambda device: 1.0, 'cudnn': run(missing)}, DEVICE)
    assert found == {SMALL: 1.0}
    for candidates, error in (({'cudnn': run(full)}, full), ({SMALL: run(missing)}, missing)):
        with pytest.raises(RuntimeError) as caught:
            choices._measure(candidates, DEVICE)
        assert caught.value is error


@needs_cuda
@pytest.mark.parametrize('precision, tolerance', [('fp16', 0.05), ('bf16', 0.3)])
def test_graphs_replay_with_new_images(precision, tolerance):
    """Each replay takes its own input; several images at once, and further tasks."""
    backend = TritonBackend(load, DEVICE, precision, 'optical')
    network = OptimizedMTAN(load())
    for count, tasks in ((1, ('depth',)), (1, ('depth',)), (2, tuple(NYUV2_TASKS))):
        x = torch.randn(count, 3, 64, 96)
        with torch.inference_mode():
            wanted = postprocess.finish(network.logits(x, tasks), (64, 96), 'optical')
            found = {name: part.cpu() for name, part in backend(x.to(DEVICE), tasks).items()}
        assert list(found) == list(wanted)
        assert (found['depth'] - wanted['depth']).abs().max() < tolerance
    assert backend._run.captures and len(backend._run) == 2


@needs_cuda
def test_a_dropped_graph_takes_nothing_from_the_others(monkeypatch):
    """As a graph goes, torch lets go of what cuBLAS keeps for the stream on which it began."""
    monkeypatch.setattr(choices, '_chosen', {})
    monkeypatch.setattr(choices, '_choose', lambda candidates, device: (
        'library' if 'library' in candidates else next(iter(candidates))))
    backend, tasks = TritonBackend(load, DEVICE, 'fp16', 'optical'), ('depth',)
    images = [torch.randn(1, 3, 64, 96 + 8 * index, device=DEVICE) for index in range(11)]

    def depth(x):
        return backend(x, tasks)['depth'].clone()
    first = [depth(x) for x in images]
    kept = images[3:]  # the last eight
    torch.cuda.empty_cache()
    filled = [torch.full((2 ** 22,), torch.nan, device=DEVICE) for _ in range(8)]
    assert len(backend._run) == len(kept)
    for x, wanted in zip(kept, first[3:], strict=True):
        assert depth(x).equal(wanted)
    assert all(part.isnan().all() for part in filled) and len(backend._run) == len(kept)


@needs_cuda
@pytest.mark.parametrize('addend', [False, True])
def test_cudnn_fuses_the_same(addend):
    part = convolution(64, 64, 3, 1, 2)
    x = random_map(3, 64).half()
    more = random_map(3, 64).half() if addend else None
    fused = layers.FusedConvolution([part], lambda buffer: buffer.to(DEVICE, torch.float16))
    found = fused._by_cudnn(x, more)
    assert_near(found, expected([part], x.float(), None if more is None else more.float()))


@needs_cuda
def test_features_out_of_range_leave_it_to_torch(caplog, tmp_path):
    """Which then goes on in fp32."""
    network = load()
    network.trunk.bn1.weight.data.fill_(1e4)
    network.trunk.bn1.bias.data.fill_(6e4)
    path = tmp_path / 'large.safetensors'
    save_checkpoint(path, network, ModelCard(NYUV2_TASKS, 'resnet18'))
    backend = build_backend('auto', path, str(DEVICE), 'fp16', 'optical')
    assert (backend.name, backend.precision) == ('torch', 'fp32')
    assert 'out of the range of fp16; going on with fp32' in caplog.text
