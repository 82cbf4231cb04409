# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Eight scenes, learnt by heart: from files in NYUv2's layout to the figures, by the commands."""

import json

import numpy as np
import pytest

from mtan_perception.cli.main import main
from mtan_perception.labels import NYUV2_13
from mtan_perception.tasks import NYUV2_TASKS

HEIGHT, WIDTH, FOCAL = 48, 64, 55.0
FLOOR, WALL = (NYUV2_13.names.index(name) for name in ('floor', 'wall'))
THINGS = [NYUV2_13.names.index(name) for name in ('bed', 'sofa', 'table', 'furniture')]
# Toward the camera, with the axes that the files have: y down and z forward as in the optical
# frame, but a positive z for what faces the camera.
UP, FACING, RIGHT = (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)


def make_scene(rng):
    """Return a floor, a wall behind, one to the left, and a cupboard's front: (image, ...)."""
    x = (np.arange(WIDTH) - (WIDTH - 1) / 2)[None] / FOCAL
    y = (np.arange(HEIGHT) - (HEIGHT - 1) / 2)[:, None] / FOCAL
    x, y = np.broadcast_arrays(x, y)
    back, left = rng.uniform(2.5, 4.0), rng.uniform(1.2, 1.5)
    front, middle = back - 0.5, rng.uniform(0.2, 0.8)
    with np.errstate(divide='ignore'):
        surfaces = [  # depth along the pixel's ray, class, normal, colour
            (np.full_like(x, back), WALL, FACING, (0.8, 0.8, 0.7)),
            (np.where(x < 0, -left / x, np.inf), WALL, RIGHT, (0.5, 0.6, 0.7)),
            (np.where(y > 0, 1.0 / y, np.inf), FLOOR, UP, (0.5, 0.3, 0.2)),
            (np.where((abs(x * front - middle) < 0.6) & (y * front > -0.6), front, np.inf),
             int(rng.choice(THINGS)), FACING, rng.uniform(0, 1, 3))]
    depths = np.stack([surface[0] for surface in surfaces])
    nearest = depths.argmin(axis=0)
    label, normal, color = (np.array([surface[part] for surface in surfaces], np.float32)[nearest]
                            for part in (1, 2, 3))
    image = np.clip(color + rng.normal(0, 0.05, color.shape), 0, 1).astype(np.float32)
    depth = np.take_along_axis(depths, nearest[None], axis=0)[0, ..., None].astype(np.float32)
    return {'image': image, 'label': label, 'depth': depth, 'normal': normal}


@pytest.fixture
def scenes(tmp_path):
    """Write nine of them: one is kept back for validation, as always."""
    rng = np.random.default_rng(3)
    for index in range(9):
        for name, array in make_scene(rng).items():
            folder = tmp_path / 'nyuv2' / 'train' / name
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f'{index}.npy', array)
    return tmp_path / 'nyuv2'


@pytest.mark.timeout(400)
def test_eight_scenes_are_learnt_by_heart(scenes, tmp_path):
    run, figures = tmp_path / 'run', tmp_path / 'figures.json'
    assert main(['train', '--data', 'nyuv2', '--root', str(scenes), '--device', 'cpu',
                 '--steps', '160', '--out', str(run), 'backbone=resnet18', 'output_stride=8',
                 'head_channels=64', 'aspp_rates=1,2,3', f'stages=1:{HEIGHT}x{WIDTH}:8',
                 'scales=1', 'flip=0', 'dropout=0', 'ema=0', 'weight_decay=0',
                 'learning_rate=0.004', 'weighting=fixed', 'losses=depth=relative,normal=chord',
                 'loss_weights=segmentation=1,depth=4,normal=2', 'validate_every=1e9']) == 0
    assert main(['evaluate', '--data', 'nyuv2', '--root', str(scenes), '--split', 'train',
                 '--device', 'cpu', '--weights', str(run / 'last.safetensors'),
                 '--json', str(figures)]) == 0
    report = json.loads(figures.read_text())
    assert report['run']['count'] == 8 and set(NYUV2_TASKS) < set(report)
    assert report['segmentation']['miou'] > 0.95
    assert report['depth']['rel'] < 0.03
    assert report['normal']['mean'] < 4
