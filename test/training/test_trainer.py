# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on a small data set in memory: it learns, repeats, resumes, and loses nothing."""

import csv
from dataclasses import replace
import errno

import pytest
import torch
from torch.utils.data import Dataset

from mtan_perception.checkpoint import CheckpointError, load_network
from mtan_perception.tasks import NYUV2_TASKS
from mtan_perception.training.config import TrainConfig
from mtan_perception.training.layouts import DEFAULT_KINDS
from mtan_perception.training.sources import FileSource
from mtan_perception.training import trainer as trainer_module
from mtan_perception.training.trainer import Trainer

SIZE = (32, 48)
LOSSES = {'segmentation': 'cross_entropy', 'depth': 'l1', 'normal': 'cosine'}


class Samples(Dataset):
    """Coloured rectangles whose colour tells class, depth and normal."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        classes = torch.randint(13, (count, 2, 3), generator=generator)
        self.label = classes.repeat_interleave(16, 1).repeat_interleave(16, 2)

    def __len__(self):
        return len(self.label)

    def __getitem__(self, index):
        label = self.label[index]
        x = label / 12
        normal = torch.stack((x, 1 - x, -torch.ones_like(x)))
        return {'image': torch.stack((x, x * x, 1 - x)), 'segmentation': label,
                'depth': (1 + 3 * x)[None], 'normal': normal / normal.norm(dim=0)}


def make_source(count=8, seed=0):
    return FileSource(Samples(count), Samples(2), NYUV2_TASKS, DEFAULT_KINDS, LOSSES, SIZE,
                      seed=seed)


def make_config(out, **keys):
    usual = {'out': str(out), 'device': 'cpu', 'steps': 6, 'stages': '1:32x48:4',
             'head_channels': 16, 'log_every': 0.0, 'threads': 1}
    return replace(TrainConfig(), **{**usual, **keys})


def read_losses(out):
    with open(out / 'train.csv', newline='') as file:
        return [[float(row[name]) for name in NYUV2_TASKS] for row in csv.DictReader(file)]


def test_a_run_repeats_resumes_and_ends_with_weights(tmp_path):
    whole = Trainer(make_config(tmp_path / 'whole'), make_source())
    figures = whole.train()
    losses = read_losses(tmp_path / 'whole')
    assert len(losses) == 6
    assert set(figures) == set(NYUV2_TASKS)
    network, card = load_network(tmp_path / 'whole' / 'last.safetensors')
    assert card.training['steps'] == 6
    for name, value in whole.average.network.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-3,
                                   check_dtype=False)

    class Killed(Exception):
        pass

    class Dying(Trainer):
        def train_step(self, batch, progress):
            if self.step == 4:
                raise Killed
            return super().train_step(batch, progress)

    config = make_config(tmp_path / 'parts', checkpoint_every=0.0)
    with pytest.raises(Killed):
        Dying(config, make_source()).train()
    rest = Trainer(config, make_source())
    rest.resume()
    assert rest.step == 4
    rest.train()
    assert read_losses(tmp_path / 'parts') == losses
    for ours, theirs in zip(rest.network.state_dict().values(),
                            whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
