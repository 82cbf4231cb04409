# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A small data set in memory, and a training on it that torchrun can start."""

from dataclasses import replace
import os
import sys

import torch
from torch import nn
from torch.utils.data import Dataset

from mtan_perception.tasks import NYUV2_TASKS
from mtan_perception.training import distributed
from mtan_perception.training.config import TrainConfig
from mtan_perception.training.layouts import DEFAULT_KINDS
from mtan_perception.training.sources import FileSource
from mtan_perception.training.trainer import Trainer
from mtan_perception.training.weighting import combine_gradients, pcgrad

SIZE = (32, 48)
LOSSES = {'segmentation': 'cross_entropy', 'depth': 'l1', 'normal': 'cosine'}


class Samples(Dataset):
    """Blocks whose colour tells class, depth and normal; the k-th has k blocks without truth."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        classes = torch.randint(13, (count, 6), generator=generator)
        known = torch.arange(6) >= torch.arange(count)[:, None] % 5
        self.classes, self.known = (
            blocks.view(count, 2, 3).repeat_interleave(16, 1).repeat_interleave(16, 2)
            for blocks in (classes, known))

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        label, known = self.classes[index], self.known[index]
        x = label / 12
        normal = torch.stack((x, 1 - x, -torch.ones_like(x)))
        return {'image': torch.stack((x, x * x, 1 - x)), 'segmentation': label.where(known, -1),
                'depth': (1 + 3 * x).where(known, 0)[None],
                'normal': (normal / normal.norm(dim=0)).where(known, 0)}


def make_source(count=8):
    return FileSource(Samples(count), Samples(2), NYUV2_TASKS, DEFAULT_KINDS, LOSSES, SIZE)


def make_config(out, **keys):
    usual = {'out': str(out), 'device': 'cpu', 'steps': 6, 'stages': '1:32x48:4',
             'head_channels': 16, 'log_every': 0.0, 'threads': 1}
    return replace(TrainConfig(), **{**usual, **keys})


def train_both(out):
    """
    Train by both ways to average over processes.

    One sums its losses and leaves the gradients to DistributedDataParallel, the other has to
    average them itself. Dropout is off: it differs between processes.
    """
    for weighting, architecture in (('gls', 'mtan'), ('pcgrad', 'split')):
        Trainer(make_config(f'{out}/{weighting}', steps=3, weighting=weighting,
                            architecture=architecture, dropout=0.0, ema=0.0, class_balance=0.5,
                            precision='fp64', validation_frames=1), make_source()).train()


def train_mixed(out):
    """Train in bfloat16 where that is safe."""
    Trainer(make_config(f'{out}/bf16', steps=1, precision='bf16', validation_frames=1),
            make_source()).train()


def combine_conflicting(out):
    """Write the gradients that a process gets from three tasks that conflict, step by step."""
    rank, _, _ = distributed.start()
    torch.manual_seed(0)
    directions = torch.randn(20, 3, 6)
    directions[:, 1] -= directions[:, 0]
    directions[:, 2] -= directions[:, 0] + directions[:, 1]
    torch.manual_seed(1 + rank)
    parameter, gradients = nn.Parameter(torch.zeros(6)), []
    for step in directions:
        combine_gradients([parameter @ direction for direction in step], [parameter], pcgrad)
        gradients.append(parameter.grad)
    torch.save(torch.stack(gradients), f'{out}/gradients_{rank}.pt')
    distributed.stop()


if __name__ == '__main__':
    train_both(sys.argv[1])
    train_mixed(sys.argv[1])
    combine_conflicting(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)  # In the interpreter's own way out a thread of torch's may abort.
