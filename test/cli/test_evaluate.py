# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan evaluate`` on a few small scenes and files."""

from dataclasses import replace
import json

import cv2
import numpy as np
import pytest
import torch

from mtan_perception.checkpoint import build_network, save_checkpoint
from mtan_perception.cli.main import main
from mtan_perception.labels import CITYSCAPES_7
from mtan_perception.model_card import COMPACT
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

SMALL = replace(COMPACT, head_channels=8, input_size=(48, 64), focal_length=50.0)


def save(folder, name, card):
    """Write random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build_network(card)
    if DEPTH in card.tasks:
        torch.nn.init.constant_(network.decoders[DEPTH][-1].bias, 2.0)
    path = folder / name
    save_checkpoint(path, network, card)
    return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Write weights of all three tasks for small images."""
    return save(tmp_path_factory.mktemp('weights'), 'small.safetensors', SMALL)


def evaluate(weights, *arguments):
    """Run the command; return its exit code."""
    return main(['evaluate', '--weights', str(weights), '--device', 'cpu',
                 *map(str, arguments)])


def test_synthetic_scenes_from_the_command_line_to_the_files(weights, tmp_path, capsys):
    """The table, the JSON with its exact keys, the pictures; a second run gives the same."""
    out = tmp_path / 'made'
    arguments = ('--data', 'synthetic', '--seeds', '3:2', '--input-size', '40x64', '--backend',
                 'torch')
    assert evaluate(weights, *arguments, '--json', out / 'a.json', '--pictures', out / 'p') == 0
    printed = capsys.readouterr().out
    assert 'synthetic: 2 frames of 48x64' in printed and 'mean IoU' in printed
    report = json.loads((out / 'a.json').read_text())
    assert {task: set(report[task]) for task in report if task != 'run'} == {
        'segmentation': {'miou', 'pixel_accuracy', 'per_class'}, 'depth': {'abs', 'rel'},
        'normal': {'mean', 'median', 'within_11.25', 'within_22.5', 'within_30'}}
    run = report['run']
    assert run['seeds'] == '3:2' and run['split'] is None and run['count'] == 2
    assert run['input_size'] == [40, 64] and run['image_size'] == [48, 64]
    assert run['focal_length_corrected'] is True and run['depth_known'] == 1
    assert run['classes'][0] == 'bed' and run['device'] == 'cpu' and run['precision'] == 'fp32'
    assert run['backend'] == 'torch'
    assert {path.name for path in (out / 'p').iterdir()} == {
        'confusion_matrix.png', 'depth_error.png', 'normal_angle.png', 'worst_frames.png'}
    assert cv2.imread(str(out / 'p' / 'worst_frames.png')).shape[1] == 7 * 72 + 8
    assert evaluate(weights, *arguments, '--json', out / 'b.json') == 0
    again = json.loads((out / 'b.json').read_text())
    assert again[DEPTH] == report[DEPTH] and again[SEGMENTATION] == report[SEGMENTATION]
    capsys.readouterr()
    assert main(['evaluate', '--compare', str(out / 'a.json'), str(out / 'b.json')]) == 0
    printed = capsys.readouterr().out
    assert printed.count(' =\n') + printed.endswith(' =') >= 9 and 'weights:' not in printed


def test_weights_without_a_task_are_judged_by_the_others(tmp_path, capsys):
    """What is absent is said, and is not in the JSON."""
    weights = save(tmp_path, 'depth.safetensors', replace(SMALL, tasks={DEPTH: 1}, labels=None))
    assert evaluate(weights, '--data', 'synthetic', '--split', 'val', '--limit', '1',
                    '--json', tmp_path / 'a.json') == 0
    report = json.loads((tmp_path / 'a.json').read_text())
    assert set(report) == {DEPTH, 'run'} and report['run']['seeds'] == '500000:1'
    assert report['run']['split'] == 'val' and report['run']['classes'] == []
    printed = capsys.readouterr().out
    for task in (SEGMENTATION, NORMAL):
        assert f'{task}: not judged, because the weights have none' in printed


@pytest.fixture
def nyuv2(tmp_path):
    """Write two test frames in the layout of NYUv2, the second one corrupt."""
    rng = np.random.default_rng(0)
    normal = np.zeros((48, 64, 3), np.float32)
    normal[..., 2] = 1
    arrays = {'image': rng.random((48, 64, 3), np.float32), 'depth': np.full((48, 64, 1), 2.0),
              'label': rng.integers(-1, 13, (48, 64)).astype(np.float32), 'normal': normal}
    for index in range(2):
        for name, array in arrays.items():
            folder = tmp_path / 'nyuv2' / 'val' / name
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f'{index}.npy', array)
    (tmp_path / 'nyuv2' / 'val' / 'depth' / '1.npy').write_bytes(b'\x93NUMPY')
    return tmp_path / 'nyuv2'


def test_a_data_set_on_disk(weights, nyuv2, tmp_path, capsys):
    """Its normals are brought to the optical frame; the corrupt frame is skipped and named."""
    assert evaluate(weights, '--data', 'nyuv2', '--root', nyuv2,
                    '--json', tmp_path / 'a.json') == 0
    report = json.loads((tmp_path / 'a.json').read_text())
    run = report['run']
    assert (run['count'], run['skipped'], run['data'], run['split']) == (1, 1, 'nyuv2', 'test')
    assert run['focal_length_corrected'] is False
    assert 0 < report[NORMAL]['mean'] < 180 and report[DEPTH]['abs'] < 2
    output = capsys.readouterr()
    assert '1 frames, 1 skipped, in' in output.out and '1.npy' in output.err
    assert 'focal length of the data unknown: depth is compared as it is\n' in output.out


def test_a_known_camera_is_no_matter_to_remark(weights, nyuv2, capsys):
    np.save(nyuv2 / 'intrinsics.npy', np.diag((60.0, 60.0, 1.0)))
    assert evaluate(weights, '--data', 'nyuv2', '--root', nyuv2) == 0
    assert 'focal length' not in capsys.readouterr().out


def test_why_each_frame_is_skipped_is_said_where_none_is_left(weights, nyuv2, capsys):
    (nyuv2 / 'val' / 'depth' / '0.npy').write_bytes(b'')
    assert evaluate(weights, '--data', 'nyuv2', '--root', nyuv2) == 2
    *skipped, error = capsys.readouterr().err.splitlines()
    assert [line.partition(':')[0] for line in skipped] == 2 * ['frame skipped']
    assert 'depth/0.npy' in skipped[0] and error.startswith('mtan evaluate: error: ')


@pytest.mark.parametrize('arguments, words', [
    (['--data', 'synthetic', '--limit', '0'], '--limit: 0'),
    (['--data', 'synthetic', '--seeds', '5'], "--seeds: '5'; write START:COUNT"),
    (['--data', 'synthetic', '--seeds', '0:0'], "--seeds: '0:0'"),
    (['--data', 'synthetic', '--seeds', '0:1', '--split', 'val'], 'give one of them'),
    (['--data', 'synthetic', '--root', '.'], '--root'),
    (['--data', 'synthetic', '--tasks', 'edge'], "'edge'"),
    (['--data', 'synthetic', '--device', 'tpu'], 'tpu'),
    (['--data', 'synthetic', '--json', '.'], '--json: . is a folder'),
    (['--data', 'synthetic', '--pictures', '/dev/null/p'], '--pictures: cannot write'),
    (['--data', 'nyuv2'], '--data nyuv2 needs --root'),
    (['--data', 'nyuv2', '--root', '/absent'], '/absent'),
    (['--data', 'nyuv2', '--root', '/absent', '--seeds', '0:1'], 'only synthetic'),
    (['--compare', '/absent/a.json', '/absent/b.json'],
     '--compare: /absent/a.json cannot be read (No such file or directory); give a file that'),
])
def test_a_bad_argument_is_one_line(weights, capsys, arguments, words):
    """Exit code 2, the option and the value named, no traceback."""
    assert evaluate(weights, *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith('mtan evaluate: error: ') and words in error[0]


def test_weights_for_other_classes_are_refused(tmp_path, capsys):
    """Seven classes cannot be compared with thirteen; depth and normals still can."""
    card = replace(SMALL, tasks={SEGMENTATION: 7, DEPTH: 1}, labels=CITYSCAPES_7)
    weights = save(tmp_path, 'seven.safetensors', card)
    assert evaluate(weights, '--data', 'synthetic', '--limit', '1') == 2
    error = capsys.readouterr().err
    assert '7 classes (cityscapes_7)' in error and '13 (nyuv2_13)' in error
    assert '--tasks depth' in error
    assert evaluate(weights, '--data', 'synthetic', '--limit', '1', '--tasks', 'depth') == 0
