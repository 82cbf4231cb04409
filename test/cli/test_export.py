# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan export``: the file, run in its own runtime, gives what the engine gives."""

from dataclasses import replace
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from mtan_perception.checkpoint import build_network, save_checkpoint
from mtan_perception.cli.main import main
from mtan_perception.inference import Engine
from mtan_perception.model_card import COMPACT, ModelCard
from mtan_perception.network import MTANDeepLabv3

SIZE = (48, 64)


def run_onnx(path, image):
    session = pytest.importorskip('onnxruntime').InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return session.run(['label', 'probability', 'depth', 'normal'], {'image': image})


def run_openvino(path, image):
    pytest.importorskip('openvino')
    from mtan_perception.inference.backends.openvino_runtime import openvino_core
    model = openvino_core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    results = model({'image': image})
    return [results[name] for name in ('label', 'probability', 'depth', 'normal')]


def run_torchscript(path, image):
    with torch.no_grad():
        return [part.numpy() for part in torch.jit.load(str(path))(torch.from_numpy(image))]


def notes_of_onnx(path):
    session = pytest.importorskip('onnxruntime').InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    return session.get_modelmeta().custom_metadata_map


def notes_of_openvino(path):
    from mtan_perception.inference.backends.openvino_runtime import openvino_core
    model = openvino_core().read_model(str(path))
    return {name: model.get_rt_info(['mtan_perception', name]).value
            for name in ('labels', 'depth_unit', 'focal_length')}


def notes_of_torchscript(path):
    notes = dict.fromkeys(('labels', 'depth_unit', 'focal_length'), '')
    torch.jit.load(str(path), _extra_files=notes)
    return {name: note.decode() for name, note in notes.items()}


@pytest.mark.parametrize('form, name, read, packages', [
    ('onnx', 'm.onnx', notes_of_onnx, ('onnx', 'onnxruntime')),
    ('openvino', 'm.xml', notes_of_openvino, ('openvino',)),
    ('torchscript', 'm.pt', notes_of_torchscript, ()),
])
def test_the_file_says_what_its_numbers_mean(tmp_path, form, name, read, packages):
    for package in packages:
        pytest.importorskip(package)
    card = replace(COMPACT, focal_length=123.5)
    save_checkpoint(tmp_path / 'a.safetensors', build_network(card), card)
    path = tmp_path / name
    assert main(['export', '--weights', str(tmp_path / 'a.safetensors'), '--format', form,
                 '--out', str(path), '--input-size', '32x32']) == 0
    assert read(path) == {'labels': json.dumps(COMPACT.labels.names), 'depth_unit': 'metre',
                          'focal_length': '123.5'}


@pytest.mark.parametrize('form, name, execute, packages', [
    ('onnx', 'm.onnx', run_onnx, ('onnx', 'onnxruntime')),
    ('openvino', 'm.xml', run_openvino, ('openvino',)),
    ('torchscript', 'm.pt', run_torchscript, ()),
])
def test_the_file_gives_what_the_engine_gives(tmp_path, capsys, form, name, execute, packages):
    """Raw pixels in, finished images out, by their names."""
    for package in packages:
        pytest.importorskip(package)
    path = tmp_path / name
    assert main(['export', '--weights', 'random', '--format', form, '--out', str(path),
                 '--input-size', '48x64']) == 0
    assert 'image (1, 48, 64, 3) uint8 RGB -> label, probability, depth, normal' in \
        capsys.readouterr().out
    assert not [file for file in tmp_path.iterdir() if file.name.startswith('.')]
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    label, probability, depth, normal = (part[0] for part in execute(path, image[None]))
    engine = Engine('random', 'cpu', input_size=SIZE, backend='torch')
    expected = engine.infer(image)
    assert label.dtype == np.uint8 and (label == expected.label).mean() > 0.999
    assert np.abs(255 * probability - expected.confidence).max() < 0.51
    assert np.nanmax(np.abs(depth - expected.depth)) < 1e-3  # the file knows no range: no NaN
    assert np.abs(normal - expected.normal).max() < 1e-3


@pytest.mark.parametrize('unit, wanted', [
    ('metre', 'multiply it by f / 123.5'), ('inverse', 'depth is inverse')])
def test_what_is_said_of_depth(unit, wanted, tmp_path, capsys):
    card = replace(COMPACT, focal_length=123.5, depth_unit=unit)
    save_checkpoint(tmp_path / 'a.safetensors', build_network(card), card)
    assert main(['export', '--weights', str(tmp_path / 'a.safetensors'), '--format', 'torchscript',
                 '--out', str(tmp_path / 'a.pt'), '--input-size', '32x32']) == 0
    said = capsys.readouterr().out
    assert wanted in said and ('multiply' in said) == (unit == 'metre')


def test_what_is_said_of_a_small_size_and_of_no_training(tmp_path, capsys):
    card = replace(COMPACT, training={'steps': 1})
    save_checkpoint(tmp_path / 'a.safetensors', build_network(card), card)
    for weights, is_trained in ((tmp_path / 'a.safetensors', True), ('random', False)):
        assert main(['export', '--weights', str(weights), '--format', 'torchscript',
                     '--out', str(tmp_path / 'a.pt'), '--input-size', '32x32']) == 0
        said = capsys.readouterr()
        assert ('trained at 288x384; at 32x32 depth comes out too near' in said.out) == is_trained
        assert ('the network is untrained' in said.err) != is_trained


def test_a_model_is_never_beside_the_weights_of_another(tmp_path, capsys):
    """Whatever keeps the new weights from being written."""
    pytest.importorskip('openvino')
    (tmp_path / 'm.xml').write_text('of another')
    (tmp_path / 'm.bin').mkdir()
    assert main(['export', '--weights', 'random', '--format', 'openvino', '--input-size', '32x32',
                 '--out', str(tmp_path / 'm.xml')]) == 2
    assert f'--out: {tmp_path}/m.xml cannot be written' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['m.bin']


def test_the_wanted_tasks_alone(tmp_path, capsys):
    path = tmp_path / 'new' / 'depth.pt'
    assert main(['export', '--weights', 'random', '--format', 'torchscript', '--out', str(path),
                 '--input-size', '32x32', '--tasks', 'depth']) == 0
    assert capsys.readouterr().out.strip().endswith('-> depth')
    depth, = run_torchscript(path, np.zeros((1, 32, 32, 3), np.uint8))
    assert depth.shape == (1, 32, 32) and depth.dtype == np.float32


@pytest.mark.parametrize('arguments, words', [
    (['--format', 'onnx', '--out', 'm.pt'], 'a file of onnx ends in .onnx'),
    (['--format', 'torchscript', '--out', 'm.pt', '--input-size', '100x128'],
     '100x128; give multiples of 16'),
    (['--format', 'torchscript', '--out', 'm.pt', '--input-size', '4112x4112'],
     '--input-size: 4112x4112; height and width must be at most 4096 pixels'),
    (['--format', 'torchscript', '--out', 'm.pt', '--tasks', 'edges'], "unknown 'edges'"),
    (['--format', 'torchscript', '--out', '/dev/null/m.pt', '--input-size', '32x32'], '/dev/null'),
])
def test_what_cannot_be_exported(arguments, words, capsys, tmp_path, monkeypatch):
    """One line names the option and the remedy; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(['export', '--weights', 'random', *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('form, name', [
    ('onnx', 'm.onnx'), ('openvino', 'm.xml'), ('torchscript', 'm.pt')])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, form, name):
    """The process may write no file of more than a MiB; torch's own writer would end it."""
    pytest.importorskip('onnx' if form == 'onnx' else 'openvino')
    script = f"""if True:
        import resource, sys
        from mtan_perception.cli.main import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, 2 ** 20))
        sys.exit(main(['export', '--weights', 'default', '--format', {form!r}, '--out', {name!r},
                       '--input-size', '32x32']))"""
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                            timeout=100, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert f'--out: {name} cannot be written: ' in result.stderr
    assert 'Traceback' not in result.stderr and not list(tmp_path.iterdir())


def test_weights_without_a_task_of_ours_are_refused(capsys, tmp_path):
    """A file would give nothing."""
    card = ModelCard({'edges': 1}, 'resnet18', 16, 16, (1, 2, 3))
    network = MTANDeepLabv3(card.tasks, card.backbone, card.output_stride, card.head_channels,
                            card.aspp_rates)
    save_checkpoint(tmp_path / 'edges.safetensors', network.state_dict(), card)
    assert main(['export', '--weights', str(tmp_path / 'edges.safetensors'), '--format',
                 'torchscript', '--out', str(tmp_path / 'm.pt')]) == 2
    assert 'has the task(s) edges; a file has images of segmentation' in capsys.readouterr().err


def test_a_missing_runtime_names_the_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert main(['export', '--weights', 'random', '--format', 'openvino',
                 '--out', str(tmp_path / 'm.xml'), '--input-size', '32x32']) == 2
    assert 'pip install openvino' in capsys.readouterr().err
