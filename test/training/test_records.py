# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a training keeps beside its weights: their average, its pace, its tables, its figures."""

from types import SimpleNamespace

import pytest
import torch

from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training import pace
from mtan_perception.training.averaging import WeightAverage
from mtan_perception.training.journal import clock, Journal
from mtan_perception.training.validation import validate


def test_the_average_is_over_the_last_share_of_the_steps():
    """Half of four steps: the last one has a half of it; counters are those of the network."""
    network = torch.nn.BatchNorm2d(1)
    average = WeightAverage(network, 0.5)
    for step, mean in enumerate((1.0, 2.0, 8 / 3, 10 / 3), 1):
        network.weight.data[:], network.running_mean[:] = step, step
        network.num_batches_tracked += 1
        average.update(network, step)
        assert average.network.weight.item() == pytest.approx(mean)
        assert average.network.running_mean.item() == pytest.approx(mean)
    assert average.network.num_batches_tracked == 4 and not average.network.training
    assert not average.network.weight.requires_grad and network.weight.item() == 4


def test_the_pace_is_of_the_steps_since_the_last_row(monkeypatch):
    """Without what is no step: a validation."""
    now = 10.0
    monkeypatch.setattr(pace, 'time', SimpleNamespace(perf_counter=lambda: now))
    meter = pace.Pace(2, torch.device('cpu'))
    for seconds, losses in ((1.0, (1.0, 4.0)), (3.0, (2.0, 8.0))):
        now += seconds
        taken = meter.lap(dict(zip('ab', map(torch.tensor, losses), strict=True)), 8)
        assert taken == seconds
        now += 60.0
        meter.reset()
    assert (meter.waited, meter.mean()) == (4.0, [1.5, 6.0])
    assert meter.due(5.0) and not meter.due(5.0)
    assert meter.take() == ([1.5, 6.0], 4.0)
    assert (meter.waited, meter.mean()) == (0.0, [0.0, 0.0])


def test_rows_after_a_step_are_dropped_and_one_that_is_cut_off(tmp_path):
    """As of a run that was killed after its last checkpoint, or of a full disk."""
    journal = Journal(tmp_path)
    for step in range(1, 4):
        journal.write('train', step, {'loss': step / 8})
    journal.rewind(2)
    path = tmp_path / 'train.csv'
    assert path.read_text().split() == ['step,loss', '1,0.125', '2,0.25']
    path.write_text(path.read_text() + '3,0.3')
    journal.write('train', 3, {'loss': 0.5})
    journal.close()
    assert path.read_text().split() == ['step,loss', '1,0.125', '2,0.25', '3,0.5']


@pytest.mark.parametrize('seconds, text', [(0, '0:00:00'), (59.6, '0:01:00'), (36065, '10:01:05')])
def test_the_time_left(seconds, text):
    assert clock(seconds) == text


def test_validation_pools_frames_and_pixels():
    """A batch of one frame and one of three: each frame's loss counts once."""
    def batch(count, depth):
        return {'image': torch.full((count, 3, 1, 2), depth), DEPTH: torch.ones(count, 1, 1, 2),
                SEGMENTATION: torch.tensor([[[1, -1]]]).expand(count, 1, 2),
                NORMAL: torch.tensor([0, 0, -1.0]).view(1, 3, 1, 1).expand(count, 3, 1, 2)}

    def network(image):
        up = torch.tensor([0, -1.0, 0]).view(1, 3, 1, 1)
        return {SEGMENTATION: image[:, :2] * torch.tensor([1, 2.0]).view(1, 2, 1, 1),
                DEPTH: image[:, :1], NORMAL: up.expand_as(image)}

    def losses(outputs, truth):
        return {name: outputs[DEPTH].mean() for name in outputs}
    figures = validate(network, [batch(1, 4.0), batch(3, 2.0)],
                       {SEGMENTATION: 2, DEPTH: 1, NORMAL: 3}, lambda image: image / 2, losses)
    assert {task: values['loss'] for task, values in figures.items()} == {
        SEGMENTATION: 1.25, DEPTH: 1.25, NORMAL: 1.25}
    assert figures[DEPTH]['rel'] == figures[DEPTH]['abs'] == 0.25
    assert figures[SEGMENTATION]['pixel_accuracy'] == 1
    assert figures[NORMAL]['mean'] == pytest.approx(90)
