# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan train``: the command that makes the default weights, for a minute; and its errors."""

import csv
import math
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
import torch

from mtan_perception.checkpoint import load_network
from mtan_perception.cli.main import main
from mtan_perception.training.config import PRESETS
from mtan_perception.training.state import read_state
from mtan_perception.training.trainer import Trainer

# Training needs torch, numpy and safetensors alone: all that others may have installed is hidden.
BARE = """
import sys
for name in ('cv2', 'yaml', 'rclpy', 'torchvision', 'tensorboard', 'matplotlib', 'scipy'):
    sys.modules[name] = None
from mtan_perception.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_default_recipe_trains_for_a_minute(tmp_path):
    command = [sys.executable, '-c', BARE, 'train', '--preset', 'default', '--minutes', '1',
               '--device', 'cpu', '--out', str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                             cwd=Path(__file__).parent.parent.parent)
    try:
        output, _ = child.communicate(timeout=115)
    finally:
        child.kill()
    assert child.returncode == 0, output
    assert 'images/s' in output and 'left' in output
    _, card = load_network(tmp_path / 'last.safetensors')
    assert card.input_size == (288, 384)
    assert card.focal_length == 288
    recipe = PRESETS['default']['cpu']
    assert card.training['configuration']['stages'] == recipe['stages']
    figures = card.training['validation']
    assert 0 < figures['segmentation']['pixel_accuracy'] < 1
    assert math.isfinite(figures['depth']['rel'])
    with open(tmp_path / 'train.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    # The last validation is part of the minute, and long on a busy machine.
    assert 30 <= float(rows[-1]['seconds']) <= 65
    assert not (tmp_path / 'frames').exists()


@pytest.mark.usefixtures('interruptible')
@pytest.mark.parametrize('end', [
    lambda child: child.terminate(), lambda child: os.killpg(child.pid, signal.SIGINT)],
    ids=['SIGTERM', 'Ctrl-C'])
def test_a_run_that_is_asked_to_end_keeps_its_last_step(tmp_path, capsys, end):
    """A terminal's Ctrl-C goes to its children as well."""
    command = [sys.executable, '-m', 'mtan_perception.cli', 'train', '--data', 'synthetic',
               '--steps', '100000', '--device', 'cpu', '--out', str(tmp_path), 'log_every=0',
               'stages=1:16x16:2', 'input_height=16', 'input_width=16', 'head_channels=4',
               'checkpoint_every=1e9']
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             cwd=Path(__file__).parent.parent.parent, start_new_session=True)
    try:
        table, latest = tmp_path / 'train.csv', time.monotonic() + 100
        while not table.exists() or table.read_text().count('\n') < 6:
            assert child.poll() is None and time.monotonic() < latest
            time.sleep(0.1)
        end(child)
        output, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert 'Traceback' not in output and '; --resume goes on' in output.splitlines()[-1]
    before = (tmp_path / 'state.pt').read_bytes()
    assert read_state(tmp_path / 'state.pt')['step'] >= 5
    # Who forgets --resume loses nothing.
    assert main(['train', '--steps', '1', '--out', str(tmp_path)]) == 2
    assert 'state.pt: the folder holds a run' in capsys.readouterr().err
    assert (tmp_path / 'state.pt').read_bytes() == before


@pytest.mark.parametrize(('arguments', 'message'), (
    (['--preset', 'default'], 'length: give one of minutes, epochs and steps'),
    (['--steps', '1', 'learning_rate'], "'learning_rate' is not key=value"),
    (['--steps', '1', '--data', 'nyuv2'], 'root: where is the data set nyuv2?'),
    (['--steps', '1', 'stages=1:1x1'], "stages: cannot read '1:1x1'"),
    (['--epochs', '1'], 'epochs: synthetic rooms have no end'),
    (['--steps', '1', 'tasks=depth:1,pose:3'], "tasks: unknown 'pose'"),
    (['--steps', '1', 'tasks=segmentation:40'], 'tasks: segmentation:40, but rooms have segm'),
    (['--steps', '1', '--device', 'tpu0'], "device: 'tpu0' is not known"),
    (['--config', 'none.yaml', '--steps', '1'], 'none.yaml: cannot be opened (No such file'),
    (['--steps', '1', '--resume'], 'state.pt: cannot be opened')))
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, message):
    assert main(['train', '--out', str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith('mtan train: error: ')
    assert message in error


def test_a_length_on_the_command_line_takes_the_files_place(tmp_path, capsys):
    path = tmp_path / 'a.yaml'
    path.write_text('data: synthetic\nepochs: 200\nhead_channels: 4\n')
    assert main(['train', '--config', str(path), '--minutes', '-1', '--out', str(tmp_path)]) == 2
    assert 'minutes: -1.0; give 0 or more' in capsys.readouterr().err
    assert main(['train', '--config', str(path), '--steps', '1', '--out', str(path)]) == 2
    assert f'out: {path} cannot be made (File exists)' in capsys.readouterr().err, 'not: length'


def test_a_device_that_is_full_is_an_error_with_a_way_out(tmp_path, capsys, monkeypatch):
    """A GPU's fault, which only a GPU could have."""
    def train(self):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nSee above')

    monkeypatch.setattr(Trainer, 'train', train)
    assert main(['train', '--steps', '1', '--out', str(tmp_path), 'head_channels=4']) == 2
    error = capsys.readouterr().err
    assert error.startswith('mtan train: error: CUDA out of memory. Tried to allocate 2.00 GiB. ')
    assert 'smaller batches' in error and 'See above' not in error
