# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The backends: each gives what the plain network gives; which one is taken, and what is said."""

import gc
import logging
import os
import shutil
import subprocess
import sys
import time
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtan_perception.checkpoint import build_network, load_network, save_checkpoint
from mtan_perception.inference import Engine, EngineError
from mtan_perception.inference.backends import (
    build_backend,
    half_precision,
    openvino_backend,
    torch_backend,
)
from mtan_perception.inference.backends.cuda_graphs import CudaGraphs
from mtan_perception.inference.convolution import (
    AtrousConvolution,
    SplitConvolution,
    TiledConvolution,
)
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import classify, finish, point_normals
from mtan_perception.model_card import COMPACT, ModelCard
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.tasks import NYUV2_TASKS

pytestmark = pytest.mark.usefixtures('cache')

SIZE = (48, 72)
CPU = torch.device('cpu')
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def load():
    return load_network('random')[0]


def expected(x, tasks=None):
    """Return what finish makes of the plain network's logits, by way of its activated maps."""
    with torch.no_grad():
        maps = load()(x, tasks=tasks)
    images = {}
    if 'segmentation' in maps:
        images['label'], images['probability'] = classify(maps['segmentation'])
    if 'depth' in maps:
        images['depth'] = maps['depth'][:, 0]
    if 'normal' in maps:
        images['normal'] = point_normals(maps['normal'], 'optical')
    return images


def run(backend, x, tasks):
    """Return the backend's images of a tensor, as tensors."""
    found = backend(x.numpy() if backend.name == 'openvino' else x, tasks)
    return {name: torch.as_tensor(image) for name, image in found.items()}


def assert_agrees(found, wanted, tolerance=1e-4):
    assert list(found) == list(wanted)
    for name, image in wanted.items():
        other = found[name].cpu()
        assert (other.dtype, other.shape) == (image.dtype, image.shape), name
        if name == 'label':
            assert (other == image).float().mean() > 0.999
        else:
            assert (other - image).abs().max() < tolerance, name


@pytest.mark.parametrize('name, packages', [
    ('torch', []), ('openvino', ['openvino']), ('onnxruntime', ['onnx', 'onnxruntime'])])
def test_a_backend_agrees_with_the_network(name, packages):
    """All tasks, one, a batch and another size: what was built is not mistaken for another."""
    for package in packages:
        pytest.importorskip(package)
    backend = build_backend(name, 'random', 'cpu', 'fp32', 'optical')
    assert (backend.name, backend.precision) == (name, 'fp32')
    x = torch.randn(2, 3, *SIZE)
    everything, small = ('segmentation', 'depth', 'normal'), x[:1, :, :32, :40]
    assert_agrees(run(backend, x[:1], everything), expected(x[:1]))
    for _ in range(2):  # what comes again may be built then
        assert_agrees(run(backend, x, ('normal',)), expected(x, ['normal']))
        assert_agrees(run(backend, small, ('depth',)), expected(small, ['depth']))
    assert_agrees(run(backend, x[1:], everything), expected(x[1:]))


@pytest.mark.parametrize('name, package', [
    ('openvino', 'openvino'), ('onnxruntime', 'onnxruntime')])
def test_what_is_prepared_is_not_built_again(name, package, monkeypatch):
    """A further size is there at its first call, and again without a word."""
    pytest.importorskip(package)
    backend = build_backend(name, 'random', 'cpu', 'fp32', 'optical')
    shapes, tasks = ((1, 3, 32, 40), (2, 3, 40, 32)), ('depth',)
    wanted = [expected(torch.ones(shape), tasks) for shape in shapes]
    for lacking in (True, False):
        assert [backend.prepare(shape, tasks) for shape in shapes] == [lacking] * 2
    monkeypatch.setattr(OptimizedMTAN, 'logits', None)  # of which it would be built, or run
    monkeypatch.setattr(openvino_backend, 'write_model', None)
    for shape, images in zip(shapes, wanted, strict=True):
        assert_agrees(run(backend, torch.ones(shape), tasks), images)


def test_openvino_prepares_nothing_that_would_push_out_what_is_in_use():
    """Nor what a model of more tasks runs already."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    everything = ('segmentation', 'depth', 'normal')
    assert all(backend.prepare((1, 3, 32, width), everything) for width in (32, 40, 48))
    assert not backend.prepare((1, 3, 32, 48), ('depth',))
    assert not backend.prepare((1, 3, 32, 56), everything)
    assert [size[1] for size, _ in backend._models] == [32, 40, 48]


@pytest.mark.parametrize('name, packages', [
    ('torch', []), ('openvino', ['openvino']), ('onnxruntime', ['onnx', 'onnxruntime'])])
def test_files_kept_of_other_architectures_are_not_taken(name, packages, tmp_path):
    """The same weights, but for the pyramid's rates, of which no tensor tells."""
    for package in packages:
        pytest.importorskip(package)
    x, state = torch.randn(1, 3, 128, 128), None
    for rates in ((1, 2, 5), (5, 6, 9)):
        card = ModelCard({'depth': 1}, 'resnet18', 16, 16, rates)
        network = build_network(card).eval()
        state = state or network.state_dict()
        network.load_state_dict(state)
        with torch.no_grad():
            wanted = network(x)['depth'][:, 0]
        save_checkpoint(tmp_path / 'a.safetensors', network, card)
        backend = build_backend(name, tmp_path / 'a.safetensors', 'cpu', 'fp32', 'optical')
        assert_agrees(run(backend, x, ('depth',)), {'depth': wanted})


@pytest.mark.parametrize('size, dilation, paired', [
    ((36, 48), 24, True), ((27, 48), 24, True), ((7, 5), 4, True), ((8, 8), 4, True),
    ((9, 8), 4, False), ((5, 12), 6, False), ((3, 4), 6, False)])
def test_atrous_taps_by_pairs_in_openvino(size, dilation, paired):
    """Whatever the map: pairs and singles along either axis, pairs alone, or too many for it."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    module = atrous(8, 16, dilation)
    assert module.comes_in_pairs(*size) == paired
    found, wanted, kinds = convolved(module, module.weight, size)
    assert ('VariadicSplit' in kinds) == paired
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize('size, dilation, chains', [
    ((36, 48), 12, (3, 4)), ((17, 22), 6, (3, 4)), ((8, 15), 4, (2, 4)), ((18, 24), 9, (2, 3)),
    ((9, 8), 4, None), ((36, 48), 24, None), ((5, 12), 6, None), ((36, 60), 12, (3, 5)),
    ((36, 64), 12, (3, 6)), ((36, 80), 12, None)])
def test_atrous_taps_by_chains_in_openvino(size, dilation, chains):
    """Maps that chains cover or nearly cover; not where too much is empty, single or too long."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    module = atrous(256, 4, dilation)
    assert module.chains(*size) == chains
    found, wanted, kinds = convolved(module, module.weight, size)
    assert ('MatMul' in kinds) == (chains is not None)
    assert np.abs(found - wanted).max() < 1e-4


def test_atrous_taps_go_by_chains_where_that_pays():
    """Not with few results."""
    pytest.importorskip('openvino')
    for out in (255, 256):
        module = atrous(out, 4, 6)
        assert ('MatMul' in convolved(module, module.weight, (18, 24))[2]) == (out == 256)


@pytest.mark.parametrize('out, size, thirds', [
    (256, (18, 42), True), (256, (18, 5), True), (256, (17, 42), False), (255, (18, 42), False)])
def test_atrous_taps_by_thirds_in_openvino(out, size, thirds):
    """Columns of taps within the map or not; not on other maps, nor with few results."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    module = atrous(out, 4, 6)
    found, wanted, kinds = convolved(module, module.weight, size)
    assert ('Split' in kinds) == module.comes_in_thirds(size[0]) == thirds
    assert np.abs(found - wanted).max() < 1e-4


def atrous(out, channels, dilation):
    return AtrousConvolution(torch.randn(out, channels, 3, 3), torch.randn(out), 1, dilation,
                             dilation, 'relu')


def convolved(module, weight, size):
    """Return relu(module + addend) by OpenVINO, by torch in float64, and OpenVINO's operations."""
    import openvino

    from mtan_perception.inference.backends import openvino_runtime
    from mtan_perception.inference.backends.openvino_convolution import convolve, quantized_zero
    out, channels = weight.shape[:2]
    x = torch.randn(1, channels, *size)
    wanted = torch.nn.functional.conv2d(
        x.double(), weight.double(), module.bias.double(), module.stride, module.padding,
        module.dilation)
    addend = torch.randn(1, out, *wanted.shape[2:])
    inputs = [openvino.opset13.parameter(part.shape, np.float32) for part in (x, addend)]
    y = convolve(module, openvino.opset13.add(inputs[0], quantized_zero()), inputs[1])
    model = openvino.Model([y], inputs)
    kinds = {operation.get_type_name() for operation in model.get_ops()}
    compiled = openvino_runtime.openvino_core().compile_model(
        model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    assert not openvino_runtime.rounds_products(compiled)
    return compiled([x.numpy(), addend.numpy()])[0], (wanted + addend).relu().numpy(), kinds


@pytest.mark.parametrize('size, dilation', [
    ((30, 42), 1), ((9, 13), 1), ((31, 33), 2), ((9, 12), 4), ((36, 48), 4)])
def test_winograd_in_openvino(size, dilation):
    """Maps that tiles divide, and others."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    weight = torch.randn(8, 6, 3, 3)
    module = TiledConvolution(weight, torch.randn(8), 1, dilation, dilation, 'relu')
    found, wanted, _ = convolved(module, weight, size)
    assert np.abs(found - wanted).max() < 3e-4  # of results up to 30


@pytest.mark.parametrize('shape, dilation, stride, size', [
    ((64, 32, 1, 1), 1, 1, (9, 12)), ((64, 32, 1, 1), 1, 2, (9, 12)),
    ((32, 64, 1, 1), 1, 1, (9, 12)), ((32, 32, 3, 3), 1, 1, (9, 12)),
    ((32, 32, 3, 3), 1, 2, (9, 12)), ((32, 32, 3, 3), 4, 1, (9, 12)),
    ((32, 64, 3, 3), 6, 1, (9, 12)), ((32, 64, 3, 3), 6, 1, (6, 13)),
    ((32, 64, 3, 3), 12, 1, (9, 12))])
def test_products_of_bfloat16_in_openvino(shape, dilation, stride, size):
    """As they come in the network; errors of single bfloat16 products would be 200 times these."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    weight = torch.randn(shape)
    padding = dilation if shape[2] == 3 else 0
    module = SplitConvolution(weight, torch.randn(shape[0]), stride, padding, dilation, 'relu')
    assert (module.weight - weight).abs().max() < 2**-16 * weight.abs().max()
    found, wanted, _ = convolved(module, weight, size)
    assert np.abs(found - wanted).max() < 2**-15 * wanted.max()


@pytest.mark.parametrize('is_exact', [True, False], ids='float32 products: {}'.format)
@pytest.mark.parametrize('task, channels', [
    ('segmentation', 1), ('segmentation', 2), ('segmentation', 13), ('depth', 1), ('normal', 3)])
def test_finishing_in_openvino(task, channels, is_exact):
    """As torch does it, where a normal has no direction, too."""
    pytest.importorskip('openvino')
    torch.manual_seed(0)
    logits = torch.randn(1, channels, 6, 8)
    logits[..., :2] *= task != 'normal'
    size = 48, 64
    assert_agrees(finished(task, logits, size, is_exact), finish({task: logits}, size, 'nyu'))


@pytest.mark.parametrize('is_exact', [True, False], ids='float32 products: {}'.format)
def test_classes_that_are_equal_or_no_numbers_in_openvino(is_exact):
    """The first of those that are equally probable; what is not a number has no probability."""
    pytest.importorskip('openvino')
    logits = torch.randn(1, 3, 6, 8)
    logits[:, 2] = logits[:, 0]
    found = finished('segmentation', logits, (48, 64), is_exact)
    assert found['label'].unique().tolist() == [0, 1]
    logits[:, 1, 2, 3] = torch.nan
    found = finished('segmentation', logits, (48, 64), is_exact)
    assert found['probability'][0, 17, 27].isnan()


def finished(task, logits, size, is_exact):
    """Return the task's images, in the axes 'nyu', by OpenVINO."""
    import openvino

    from mtan_perception.inference.backends import openvino_graph, openvino_runtime
    x = openvino.opset13.parameter(logits.shape, np.float32)
    images = openvino_graph._finish(
        task, openvino_graph._upsample(x, size, is_exact), 'nyu')
    compiled = openvino_runtime.openvino_core().compile_model(
        openvino.Model(list(images.values()), [x]), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return {name: torch.from_numpy(array.copy())
            for name, array in zip(images, compiled(logits.numpy()).values(), strict=True)}


def test_openvino_that_rounds_products_is_found_out():
    """A bfloat16 convolution that gives bfloat16, as it does where nothing is quantised."""
    openvino = pytest.importorskip('openvino')
    from mtan_perception.inference.backends.openvino_convolution import convolve
    from mtan_perception.inference.backends.openvino_runtime import openvino_core, rounds_products
    x = openvino.opset13.parameter((1, 32, 8, 8), np.float32)
    module = SplitConvolution(torch.randn(32, 32, 3, 3), torch.randn(32), padding=1)
    model = openvino.Model([convolve(module, x)], [x])
    core = openvino_core()
    if 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        pytest.skip('needs a processor with bfloat16')
    assert rounds_products(core.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'}))


@pytest.mark.parametrize('units', [True, False], ids='matrix units: {}'.format)
def test_openvino_on_either_kind_of_processor(units, monkeypatch):
    """The one that is not here is made up, or asked for by the environment."""
    pytest.importorskip('openvino')
    if units:
        monkeypatch.setattr(openvino_backend, 'uses_matrix_units', lambda: True)
    else:
        monkeypatch.setenv('MTAN_AMX', '0')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    assert backend._factory == ('split_convolution' if units else 'tiled_convolution')
    x = torch.randn(1, 3, *SIZE)
    for tasks in (('segmentation', 'depth', 'normal'), ('depth',)):
        assert backend.prepare(x.shape, tasks) or backend._able(SIZE, tasks)
        assert_agrees(run(backend, x, tasks), expected(x, tasks), 1e-3)


def test_openvino_falls_back_from_products_that_are_rounded(monkeypatch, caplog):
    """One warning says so; the answer is that of the network all the same."""
    pytest.importorskip('openvino')
    from mtan_perception.inference.backends import openvino_runtime
    monkeypatch.setattr(openvino_backend, 'uses_matrix_units', lambda: True)
    monkeypatch.setattr(openvino_runtime, 'rounds_products', lambda compiled: True)
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    x = torch.randn(1, 3, *SIZE)
    assert_agrees(run(backend, x, ('depth',)), expected(x, ['depth']))
    assert [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING] == [
        f'openvino {sys.modules["openvino"].__version__} rounds the sums of bfloat16 products; '
        'going on with those of float32, which are slower: try another version']


def test_signals_arrive_after_openvino_backends_have_gone():
    """As they do when a node is configured anew, and then stopped."""
    pytest.importorskip('openvino')
    script = """if True:
        import gc, signal
        import numpy as np
        from mtan_perception.inference.backends import build_backend
        def run():
            backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
            backend(np.zeros((1, 3, 32, 32), np.float32), ('depth',))
            return backend
        first = run()
        second = run()
        del first
        gc.collect()
        del second
        gc.collect()
        signal.signal(signal.SIGUSR1, lambda number, frame: print('arrived'))
        signal.raise_signal(signal.SIGUSR1)"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, 'arrived\n'), done.stderr


def test_openvino_builds_aside_what_comes_again(caplog):
    """No frame waits for a model after the first; the last three models are kept."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')

    def call(width):
        key = (32, width), ('depth',)
        x = torch.randn(1, 3, 32, width)
        assert_agrees(run(backend, x, ('depth',)), expected(x, ['depth']))
        return key in backend._models
    with caplog.at_level(logging.INFO):
        assert call(32)
        assert not call(40) and caplog.text.count('openvino: building') == 1
        for width in (40, 48, 56):
            deadline = time.monotonic() + 60
            while not call(width):
                assert time.monotonic() < deadline
    assert caplog.text.count('openvino: building') == 4
    assert [size[1] for size, _ in backend._models] == [40, 48, 56]


def test_openvino_does_not_build_again_what_is_being_built(caplog):
    """It came twice, so that it is built aside, and is prepared before it is there."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    run(backend, torch.randn(1, 3, 32, 32), ('depth',))
    x = torch.randn(1, 3, 32, 40)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            run(backend, x, ('depth',))
        assert backend.prepare(x.shape, ('depth',))
    assert caplog.text.count('openvino: building') == 1
    assert ((32, 40), ('depth',)) in backend._models
    assert not backend.prepare(x.shape, ('depth',))


def test_openvino_takes_a_model_of_more_tasks_until_it_has_one_of_fewer(monkeypatch):
    """Which is twice as fast as torch; of its images only those of the wanted tasks are there."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    x, everything = torch.randn(1, 3, *SIZE), ('segmentation', 'depth', 'normal')
    assert_agrees(run(backend, x, everything), expected(x))
    monkeypatch.setattr(OptimizedMTAN, 'logits', None)  # what torch would run
    for tasks in (('segmentation',), ('depth', 'normal')):
        deadline = time.monotonic() + 60
        while (SIZE, tasks) not in backend._models:
            assert_agrees(run(backend, x, tasks), expected(x, tasks))
            assert time.monotonic() < deadline
        assert_agrees(run(backend, x, tasks), expected(x, tasks))


def test_openvino_does_not_build_for_ever(caplog):
    """Of more sizes in turn than models are kept, torch runs the rest; a pause makes room."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')

    def call(width):
        run(backend, torch.randn(1, 3, 32, width), ('depth',))

    def until(widths, kept):
        deadline = time.monotonic() + 60
        while {size[1] for size, _ in backend._models} != kept:
            assert time.monotonic() < deadline
            for width in widths:
                call(width)
    with caplog.at_level(logging.INFO):
        until((32, 40, 48), {32, 40, 48})
        for _ in range(40):
            for width in (32, 40, 48, 56):
                call(width)
        assert caplog.text.count('openvino: building') == 3
        until((40, 48, 56), {40, 48, 56})
    assert caplog.text.count('openvino: building') == 4


def test_openvino_that_fails_on_a_frame_is_a_backend_that_fails():
    """The engine goes on with another then."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    run(backend, torch.randn(1, 3, 32, 32), ('depth',))
    (model,) = backend._models.values()
    backend._models[(40, 40), ('depth',)] = model  # of another size
    with pytest.raises(BackendError, match=r'openvino failed: .*shape.*\Z'):
        run(backend, torch.randn(1, 3, 40, 40), ('depth',))


@pytest.mark.parametrize('name, packages', [
    ('torch', []), ('openvino', ['openvino']), ('onnxruntime', ['onnx', 'onnxruntime'])])
def test_finished_normals_without_direction(name, packages, tmp_path):
    """A head that gives zero: the normal points at the camera, whatever the runtime."""
    for package in packages:
        pytest.importorskip(package)
    network = load()
    torch.nn.init.zeros_(network.decoders['normal'][-1].weight)
    torch.nn.init.zeros_(network.decoders['normal'][-1].bias)
    save_checkpoint(tmp_path / 'silent.safetensors', network, COMPACT)
    backend = build_backend(name, tmp_path / 'silent.safetensors', 'cpu', 'fp32', 'optical')
    normal = run(backend, torch.randn(1, 3, 32, 32), ('normal',))['normal']
    assert (normal == torch.tensor([0.0, 0.0, -1.0])).all()


def test_bf16_in_openvino():
    """Half the bits, nearly the same classes."""
    pytest.importorskip('openvino')
    backend = build_backend('openvino', 'random', 'cpu', 'bf16', 'optical')
    x = torch.randn(1, 3, *SIZE)
    tasks = ('segmentation', 'depth')
    found, wanted = run(backend, x, tasks), expected(x, tasks)
    assert (found['label'] == wanted['label']).float().mean() > 0.9
    assert (found['depth'] - wanted['depth']).abs().mean() < 0.05
    (model,) = backend._models.values()
    hint = model.request.get_compiled_model().get_property('INFERENCE_PRECISION_HINT')
    assert (backend.precision, hint.get_type_name()) == ('bf16', 'bf16')


def test_auto_takes_openvino_on_a_cpu_and_says_so(caplog):
    """One line names the runtime, the device, the precision and the reason."""
    pytest.importorskip('openvino')
    with caplog.at_level(logging.INFO):
        engine = Engine('random', 'cpu', input_size=SIZE)
        engine.warm_up()
    assert engine.backend == 'openvino'
    assert 'backend: openvino on cpu in fp32, the fastest that can run here' in caplog.text
    assert 'openvino: building segmentation, depth, normal at 48x' in caplog.text


def test_auto_without_openvino_is_torch(monkeypatch, caplog):
    """What is not installed is told, but is no warning: nothing was asked for."""
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with caplog.at_level(logging.INFO):
        assert build_backend('auto', 'random', 'cpu', 'fp32', 'optical').name == 'torch'
    assert 'openvino cannot be used: ' in caplog.text
    assert 'pip install --upgrade openvino' in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_an_openvino_that_is_too_old_is_left_alone(monkeypatch, caplog):
    """It has not all the names that are needed of it."""
    pytest.importorskip('openvino')
    folder = 'mtan_perception.inference.backends'
    for module in ('openvino_images', 'openvino_runtime'):
        monkeypatch.delitem(sys.modules, f'{folder}.{module}', raising=False)
    monkeypatch.setitem(sys.modules, 'openvino', types.ModuleType('openvino'))
    with caplog.at_level(logging.INFO):
        assert build_backend('auto', 'random', 'cpu', 'fp32', 'optical').name == 'torch'
    assert 'openvino cannot be used: cannot import name' in caplog.text


@pytest.mark.skipif(shutil.which('g++') is None, reason='needs a C++ compiler')
def test_compile_agrees_and_says_that_it_builds(caplog):
    with caplog.at_level(logging.INFO):
        backend = build_backend('compile', 'random', 'cpu', 'fp32', 'optical')
        assert backend.prepare((1, 3, *SIZE), ('depth',))
        for seed in range(2):
            x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
            assert_agrees(run(backend, x, ('depth',)), expected(x, ['depth']))
    assert caplog.text.count('compile: building depth at 48x72, which may take minutes') == 1
    assert caplog.text.count('compile: built in ') == 1
    assert not backend.prepare((1, 3, *SIZE), ('depth',))


def test_compile_without_a_compiler_leaves_it_to_torch(tmp_path):
    script = """if True:
        from mtan_perception.inference import Engine
        engine = Engine('random', 'cpu', input_size=(32, 32), backend='compile')
        engine.warm_up()
        print(engine.backend)"""
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=100, check=True,
        env={**os.environ, 'CXX': '/nowhere', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path)})
    assert result.stdout == 'torch\n'
    assert 'backend: failed (torch.compile: InvalidCxxCompiler' in result.stderr
    assert 'going on with torch' in result.stderr


def test_openvino_tells_nobody_of_its_use(tmp_path):
    """Left alone, each import would send an event, by a process of its own."""
    pytest.importorskip('openvino')
    script = """if True:
        import multiprocessing, sys
        import mtan_perception.inference
        import openvino
        print(openvino.Core().available_devices, sys.modules['openvino_telemetry'],
              multiprocessing.active_children())"""
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                            timeout=60, env={**os.environ, 'HOME': str(tmp_path)}, check=True)
    assert result.stdout.startswith("['CPU'") and result.stdout.endswith('] None []\n')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, package', [('openvino', 'openvino'),
                                           ('onnxruntime', 'onnxruntime')])
def test_an_asked_for_runtime_that_is_missing(name, package, monkeypatch, caplog):
    """A warning gives the line to install it; torch takes its place."""
    monkeypatch.setitem(sys.modules, package, None)
    with caplog.at_level(logging.INFO):
        assert build_backend(name, 'random', 'cpu', 'fp32', 'optical').name == 'torch'
    warnings = [record.getMessage() for record in caplog.records
                if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and 'pip install' in warnings[0] and package in warnings[0]
    assert f'backend: torch on cpu in fp32, in place of {name}' in caplog.text


def test_onnxruntime_does_not_pretend_to_do_bf16(caplog):
    pytest.importorskip('onnxruntime')
    assert build_backend('onnxruntime', 'random', 'cpu', 'bf16', 'optical').name == 'torch'
    assert 'onnxruntime cannot be used: it does not run in bf16 on cpu' in caplog.text


def test_what_takes_the_place_of_a_failed_one_is_not_said_to_be_asked_for(caplog):
    with caplog.at_level(logging.INFO):
        build_backend('torch', 'random', 'cpu', 'fp32', 'optical', 'openvino')
    assert 'backend: torch on cpu in fp32, in place of openvino' in caplog.text


def test_an_unknown_backend_is_refused():
    with pytest.raises(EngineError, match="'abacus' is not known; choose 'auto', 'torch', "):
        build_backend('abacus', 'random', 'cpu', 'fp32', 'optical')


def test_weights_out_of_range_are_run_in_fp32(caplog):
    """A weight of 1e39 would be infinite in bf16 as in fp16 a weight of 1e5."""
    from mtan_perception.inference.backends.torch_backend import TorchBackend

    def load_large():
        network = load()
        network.trunk.conv1.weight.data[0, 0, 0, 0] = 1e5
        network.trunk.bn1.weight.data[0] = 1e3
        return network
    backend = TorchBackend(load_large, CPU, 'fp16', 'optical')
    assert backend.precision == 'fp32' and 'is out of the range of fp16' in caplog.text
    assert TorchBackend(load, CPU, 'bf16', 'optical').precision == 'bf16'


def test_features_out_of_range_are_run_in_fp32(caplog):
    """Weights that fit may still give features that do not."""
    def load_bright():
        network = load()
        network.trunk.bn1.weight.data[:] = 3e4
        return network
    backend = torch_backend.TorchBackend(load_bright, CPU, 'fp16', 'optical')
    assert backend.precision == 'fp32'
    assert 'features of noise are out of the range of fp16; going on with fp32' in caplog.text
    assert torch_backend.TorchBackend(load, CPU, 'fp16', 'optical').precision == 'fp16'


def test_a_backend_that_is_let_go_frees_its_network_at_once():
    """On a GPU the next one needs its memory; garbage is collected some time later."""
    gc.collect()
    gc.disable()
    try:
        backend = torch_backend.TorchBackend(load, CPU, 'bf16', 'optical')
        run(backend, torch.randn(1, 3, *SIZE), ('depth',))
        network = weakref.ref(backend._network)
        del backend
        assert network() is None
    finally:
        gc.enable()


def test_torch_runs_in_bf16():
    backend = build_backend('torch', 'random', 'cpu', 'bf16', 'optical')
    x = torch.randn(1, 3, *SIZE)
    assert run(backend, x, ('depth',))['depth'].dtype == torch.float32
    logits = backend._network.logits(
        x.bfloat16().contiguous(memory_format=torch.channels_last), ['depth'])
    assert logits['depth'].dtype == torch.bfloat16
    assert torch.equal(finish(logits, SIZE, 'optical')['depth'],
                       run(backend, x, ('depth',))['depth'])


def test_the_onnx_file_is_kept_and_a_broken_one_replaced(tmp_path, caplog):
    """The second start builds nothing; damage is found before the runtime reads it."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    x = torch.randn(1, 3, 32, 32)

    def depth():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            return build_backend('onnxruntime', 'random', 'cpu', 'fp32', 'optical')(
                x, ('depth',))['depth'].numpy().copy()
    first = depth()
    assert 'building mtan.onnx' in caplog.text
    assert np.array_equal(depth(), first)
    assert 'building' not in caplog.text
    path, = (tmp_path / 'cache').glob('*/mtan.onnx')
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(depth(), first)
    assert 'is damaged; building it anew' in caplog.text


def test_without_a_cache_the_onnx_file_is_written_for_the_moment(monkeypatch, tmp_path, caplog):
    """The runtime that was asked for runs all the same; a warning names the remedy."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    monkeypatch.setenv('MTAN_CACHE', '/proc/nowhere')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    x = torch.randn(1, 3, 32, 32)
    found = build_backend('onnxruntime', 'random', 'cpu', 'fp32', 'optical')(x, ('depth',))
    assert_agrees(found, expected(x, ['depth']))
    assert 'will have to build the model again: give $MTAN_CACHE a folder' in caplog.text
    assert not list(tmp_path.iterdir())


class HostTensors(TorchDispatchMode):
    """Notes the operations that have to do with a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == 'cpu'
               for leaf in tree_leaves((args, kwargs, result))):
            self.operations.append(operation)
        return result


@pytest.mark.parametrize('axes', ['optical', 'nyu'])
def test_a_cuda_graph_has_no_copy_from_the_host(axes, monkeypatch):
    """It could not be captured. Tensors without content tell where each of them would be."""
    for check in ('large_weight', 'large_features'):  # no numbers to look at
        monkeypatch.setattr(half_precision, check, lambda *_: None)
    # Not in inference mode, which would hide what composite operations do.
    with FakeTensorMode(), torch.no_grad():
        backend = torch_backend.TorchBackend(
            lambda: MTANDeepLabv3(NYUV2_TASKS).eval(), torch.device('cuda:0'), 'fp16', axes)
        x = torch.empty(1, 3, *SIZE, device='cuda:0')
        backend._network.merge()
        with HostTensors() as host:
            images = backend._run._run(x, tuple(NYUV2_TASKS))
    assert host.operations == []
    assert {name: (image.device.type, image.dtype) for name, image in images.items()} == {
        'label': ('cuda', torch.uint8), 'probability': ('cuda', torch.float32),
        'depth': ('cuda', torch.float32), 'normal': ('cuda', torch.float32)}


def test_without_a_cuda_graph_the_network_runs_all_the_same(monkeypatch, caplog):
    """The fault of a GPU is made up; one warning gives its reason, and it is not tried again."""
    backend = build_backend('torch', 'random', 'cpu', 'fp32', 'optical')
    tried = []

    def fail(x, tasks):
        tried.append(tasks)
        try:
            raise RuntimeError('CUDA error: operation not permitted when stream is capturing\n')
        finally:  # as at the end of torch.cuda.graph
            raise RuntimeError('operation failed due to a previous error during capture')
    graphs = CudaGraphs(backend._run, CPU)
    monkeypatch.setattr(graphs, '_capture', fail)
    monkeypatch.setattr(backend, '_run', graphs)
    x = torch.randn(1, 3, *SIZE)
    for _ in range(2):
        assert_agrees(run(backend, x, ('depth',)), expected(x, ['depth']))
    assert tried == [('depth',)]
    assert [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING] == [
        'no CUDA graph (CUDA error: operation not permitted when stream is capturing); going on '
        'without, each kernel launched by itself']


def test_too_little_memory_for_one_graph_says_nothing_of_others(monkeypatch, caplog):
    """That of fewer images is captured all the same; this one is not tried again."""
    graphs, tried = CudaGraphs(lambda x, tasks: {'depth': x[:, 0]}, CPU), []

    def capture(x, tasks):
        tried.append(len(x))
        if len(x) == 1:
            return lambda x: {'depth': x[:, 1]}
        try:
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
        finally:
            raise RuntimeError('operation failed due to a previous error during capture')
    monkeypatch.setattr(graphs, '_capture', capture)
    for count, channel in ((4, 0), (1, 1), (4, 0), (1, 1)):
        x = torch.randn(count, 3, *SIZE)
        assert graphs(x, ('depth',))['depth'].equal(x[:, channel])
    assert tried == [4, 1] and graphs.captures
    assert caplog.text.count('no CUDA graph of 4 image(s) of 48x72 (CUDA out of memory.') == 1


def test_more_images_than_a_graph_is_captured_for_are_prepared_once():
    prepared = []
    graphs = CudaGraphs(lambda x, tasks: {'depth': x[:, 0]}, CPU,
                        lambda x, tasks: prepared.append((len(x), tasks)))
    for count in (5, 5, 6):
        x = torch.randn(count, 3, *SIZE)
        assert graphs(x, ('depth',))['depth'].equal(x[:, 0])
    assert prepared == [(5, ('depth',)), (6, ('depth',))] and len(graphs) == 0


@needs_cuda
@pytest.mark.parametrize('precision, tolerance', [('fp32', 1e-2), ('fp16', 0.05), ('bf16', 0.3)])
def test_cuda_graphs_replay_with_new_images(precision, tolerance):
    """Each replay takes its own input; a second set of tasks has a graph of its own."""
    backend = build_backend('torch', 'random', 'cuda:0', precision, 'optical')
    for seed in (0, 1):
        x = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
        found = run(backend, x.cuda(), ('depth',))['depth'].cpu()
        assert (found - expected(x, ['depth'])['depth']).abs().max() < tolerance
    assert list(run(backend, x.cuda(), ('normal',))) == ['normal'] and len(backend._run) == 2
    assert [backend.prepare((2, 3, *SIZE), ('depth',)) for _ in range(2)] == [True, False]
    assert backend._run.captures


def test_onnxruntime_on_a_device_without_its_libraries_is_refused():
    """It would run on the CPU and say nothing."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    backend = build_backend('onnxruntime', 'random', 'cpu', 'fp32', 'optical')
    backend._providers = ['CUDAExecutionProvider']
    with pytest.raises(BackendError, match='took CPUExecutionProvider, as it cannot use CUDA'), \
            warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run(backend, torch.randn(1, 3, 32, 32), ('depth',))


@needs_cuda
def test_onnxruntime_on_cuda():
    runtime = pytest.importorskip('onnxruntime')
    if 'CUDAExecutionProvider' not in runtime.get_available_providers():
        pytest.skip('needs onnxruntime-gpu')
    backend = build_backend('onnxruntime', 'random', 'cuda:0', 'fp32', 'optical')
    x = torch.randn(1, 3, *SIZE)
    found = {name: image.cpu() for name, image in run(backend, x.cuda(), ('depth',)).items()}
    assert_agrees(found, expected(x, ['depth']), 1e-2)
