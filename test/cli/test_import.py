# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The `mtan` command: import, info, help and errors."""

from dataclasses import replace
import subprocess
import sys

import pytest
import torch

from mtan_perception.checkpoint import load_network, save_checkpoint
from mtan_perception.cli.main import main
from mtan_perception.inference.benchmark.original import ReferenceMTAN
from mtan_perception.labels import NYUV2_13
from mtan_perception.model_card import read_card


@pytest.fixture
def reference_file(tmp_path):
    def save(tasks):
        with torch.device('meta'):
            state = ReferenceMTAN(tasks).state_dict()
        # Expanded from one value, a tensor takes next to no bytes in the file.
        state = {name: torch.tensor(0.01).expand(value.shape) for name, value in state.items()}
        torch.save(state, tmp_path / 'ckpt.pth')
        return str(tmp_path / 'ckpt.pth')
    return save


@pytest.fixture
def out(tmp_path):
    yield tmp_path / 'w.safetensors'
    (tmp_path / 'w.safetensors').unlink(missing_ok=True)  # too large to be kept by pytest


def test_import_writes_weights_that_load(reference_file, out, capsys):
    path = reference_file({'segmentation': 13, 'normal': 3})
    assert main(['import', path, '--tasks', 'segmentation:13,normal:3', '--out', str(out),
                 '--input-size', '240x320', '--input-scaling', 'symmetric',
                 '--focal-length', '300']) == 0
    assert 'tasks segmentation, normal' in capsys.readouterr().out
    network, card = load_network(out)
    assert network.decoders['normal'][4].weight[0, 0, 0, 0].item() == pytest.approx(0.01)
    assert card.tasks == {'segmentation': 13, 'normal': 3}
    assert card.labels == NYUV2_13 and card.normal_axes == 'nyu'
    assert card.input_size == (240, 320) and card.focal_length == 300
    assert card.mean == card.std == (0.5, 0.5, 0.5)
    assert card.training == {'imported_from': 'ckpt.pth'}


def test_import_options_describe_the_labels_and_axes(reference_file, out, tmp_path):
    labels = tmp_path / 'own.yaml'
    labels.write_text('name: own\nclasses: [{name: crate}, {name: pallet}]\n')
    path = reference_file({'segmentation': 2})
    arguments = ['import', path, '--tasks', 'segmentation:2', '--out', str(out)]
    assert main([*arguments, '--labels', str(labels), '--normal-axes', 'optical']) == 0
    assert read_card(out).labels.names == ('crate', 'pallet')
    assert read_card(out).normal_axes == 'optical'
    assert main(arguments) == 0
    assert read_card(out).labels.name == 'generic_2'
    assert read_card(out).mean == (0.485, 0.456, 0.406)


def test_depth_of_cityscapes_is_inverse_unless_said_otherwise(reference_file, out):
    path = reference_file({'segmentation': 7, 'depth': 1})
    arguments = ['import', path, '--tasks', 'segmentation:7,depth:1', '--out', str(out)]
    for options, unit in (([], 'inverse'), (['--depth-unit', 'metre'], 'metre')):
        assert main([*arguments, *options]) == 0
        assert read_card(out).labels.name == 'cityscapes_7'
        assert read_card(out).depth_unit == unit


@pytest.mark.parametrize(('options', 'message'), [
    (['--tasks', 'depth:1,segmentation:13,normal:3'], 'decoders.0.4.bias (13,), expected (1,)'),
    (['--tasks', 'segmentation'], "cannot read 'segmentation'"),
    (['--input-size', '288'], "--input-size: '288'; write HEIGHTxWIDTH"),
    (['--input-size', '0x384'], "--input-size: '0x384'; write HEIGHTxWIDTH"),
    (['--labels', 'cityscapes_7'], 'cityscapes_7 has 7 classes'),
    (['--labels', 'none.yaml'], "'none.yaml': no such file"),
    (['--backbone', 'vgg16'], "'vgg16'; choose one of"),
])
def test_import_writes_nothing_after_an_error(reference_file, out, capsys, options, message):
    path = reference_file({'segmentation': 13, 'depth': 1, 'normal': 3})
    assert main(['import', path, '--tasks', 'segmentation:13,depth:1,normal:3',
                 '--out', str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith('mtan import: error: ') and message in error
    assert [item.name for item in out.parent.iterdir()] == ['ckpt.pth']


def test_a_task_that_nothing_else_uses_is_named(reference_file, out, capsys):
    """It may be meant: such weights can be trained and evaluated."""
    assert main(['import', reference_file({'segmentation': 13, 'dpeth': 1}), '--tasks',
                 'segmentation:13,dpeth:1', '--out', str(out)]) == 0
    assert ("'dpeth': none of segmentation, depth, normal; predict, export and the node do not "
            'use it') in capsys.readouterr().out
    assert read_card(out).tasks == {'segmentation': 13, 'dpeth': 1}


def test_the_checkpoint_is_never_written_over(reference_file, tmp_path, capsys):
    """Nor anything that is no name for weights, nor what is no place for them."""
    path = reference_file({'segmentation': 13})
    (tmp_path / 'link.safetensors').symlink_to(path)
    before = open(path, 'rb').read()
    for out, words in ((path, f'--out: {path} is the checkpoint itself; give another'),
                       (tmp_path / 'link.safetensors', 'is the checkpoint itself'),
                       (tmp_path / 'w.pth', 'w.pth; a weights file ends in .safetensors'),
                       (f'{path}/w.safetensors', f'--out: cannot write to {path}, because')):
        assert main(['import', path, '--tasks', 'segmentation:13', '--out', str(out)]) == 2
        assert words in capsys.readouterr().err
    assert open(path, 'rb').read() == before
    assert {item.name for item in tmp_path.iterdir()} == {'ckpt.pth', 'link.safetensors'}


def test_a_checkpoint_of_another_network_is_called_that(reference_file, out, tmp_path, capsys):
    """Not its tasks are blamed; a backbone of another depth is still listed."""
    other = tmp_path / 'other.pth'
    torch.save({'backbone.conv1.weight': torch.zeros(1), 'fc.weight': torch.zeros(1)}, other)
    options = ['--tasks', 'segmentation:13', '--out', str(out)]
    assert main(['import', str(other), *options]) == 2
    error = capsys.readouterr().err
    assert f'{other}: is a checkpoint of another network' in error and '--tasks' not in error
    assert 'backbone.conv1.weight' in error and 'shared_conv.0.weight' in error
    assert main(['import', reference_file({'segmentation': 13}), *options,
                 '--backbone', 'resnet101']) == 2
    assert 'Check --tasks (names, order, channels) and --backbone' in capsys.readouterr().err


def test_a_weights_file_needs_no_import(out, tmp_path, capsys):
    save_checkpoint(tmp_path / 'own.safetensors', *load_network('random'))
    assert main(['import', str(tmp_path / 'own.safetensors'), '--tasks', 'segmentation:13',
                 '--out', str(out)]) == 2
    assert 'own.safetensors: is a weights file already; use it as --weights' in \
        capsys.readouterr().err


def test_info_prints_the_card(tmp_path, capsys):
    network, card = load_network('random')
    save_checkpoint(tmp_path / 'w.safetensors', network, card)
    assert main(['info', str(tmp_path / 'w.safetensors')]) == 0
    printed = capsys.readouterr().out
    for text in ('segmentation:13, depth:1, normal:3', 'resnet18', '288x384', 'bed, books',
                 'metre', 'optical'):
        assert text in printed


def test_info_prints_tables_by_their_names(tmp_path, capsys):
    """Figures and configuration of a training, each name once, on lines that fit a screen."""
    network, card = load_network('random')
    card = replace(card, training={
        'steps': 5, 'validation': {'depth': {'rel': 0.15, 'abs': 0.34}},
        'configuration': {**{f'option_{i}': i for i in range(30)}, 'losses': {'depth': 'huber'}}})
    save_checkpoint(tmp_path / 'w.safetensors', network, card)
    assert main(['info', str(tmp_path / 'w.safetensors')]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [' '.join(line.split()) for line in lines]
    for text in ('training steps 5', 'training validation depth rel=0.15, abs=0.34',
                 'training configuration losses depth=huber'):
        assert text in said
    assert max(map(len, lines)) <= 120 and 'option_29=29' in '\n'.join(lines)


def test_info_of_a_missing_file_is_one_line_and_exit_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'mtan_perception.cli', 'info', str(tmp_path / 'none.safetensors')],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith('mtan info: error: ') and done.stderr.count('\n') == 1
    assert 'none.safetensors' in done.stderr


def test_help_comes_without_importing_torch():
    code = ('import sys; from mtan_perception.cli.main import main\n'
            'try: main(["import", "--help"])\n'
            'except SystemExit as end: print(end.code, "torch" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout.rstrip().endswith('0 False')
    assert '--input-scaling' in done.stdout
