# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The figures, through the whole path from a predictor to the report and the pictures."""

from dataclasses import replace
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtan_perception.geometry import correct_depth
from mtan_perception.inference import Prediction
from mtan_perception.labels import CITYSCAPES_7, LabelSet, NYUV2_13
from mtan_perception.model_card import COMPACT
from mtan_perception.synthetic import render
from mtan_perception.tasks import DEPTH, NORMAL, NYUV2_TASKS, SEGMENTATION
from mtan_perception.training.datasets import DatasetError
from mtan_perception.training.evaluation import (
    choose_tasks,
    dataset_frames,
    evaluate,
    Evaluation,
    SPLIT_SEEDS,
    synthetic_frames,
)
from mtan_perception.training.evaluation_pictures import draw, SHEET_WIDTH
from mtan_perception.training.report import (
    comparison,
    make_report,
    read_report,
    table,
    write_report,
)
from mtan_perception.training.rooms import render_packed

TWO = {SEGMENTATION: 2, DEPTH: 1, NORMAL: 3}
TWO_LABELS = LabelSet('two', ('left', 'right'), ((255, 0, 0), (0, 0, 255)))


def sample(labels, depth, normal=(0.0, 0.0, -1.0), focal=None):
    """Return a sample of the shape of `labels` with one depth and one normal everywhere."""
    label = torch.tensor(labels)
    shape = label.shape
    made = {'image': torch.full((3, *shape), 0.5), SEGMENTATION: label,
            DEPTH: torch.full((1, *shape), float(depth)),
            NORMAL: torch.tensor(normal).view(3, 1, 1).expand(3, *shape).clone()}
    if focal is not None:
        made['intrinsics'] = torch.tensor([[focal, 0, 1.0], [0, focal, 1], [0, 0, 1]])
    return made


class Predictor:
    """Stands for an engine: gives prepared predictions, one after the other."""

    def __init__(self, predictions, card=COMPACT):
        self.card = card
        self.images, self.focal_lengths = [], []
        self._predictions = iter(predictions)

    def infer(self, image, tasks, focal_length=None):
        self.images.append(image)
        self.focal_lengths.append(focal_length)
        self.tasks = tasks
        return next(self._predictions)


def truth_of(sample, **changes):
    """Return the Prediction that equals the truth, apart from `changes`."""
    label = sample[SEGMENTATION]
    perfect = Prediction(
        image=np.zeros((*label.shape, 3), np.uint8), scale=1.0,
        label=label.where(label >= 0, 0).byte().numpy(), depth=sample[DEPTH][0].numpy(),
        normal=np.ascontiguousarray(sample[NORMAL].permute(1, 2, 0).numpy()))
    return replace(perfect, **changes)


def tilted(degrees, shape):
    """Return normals that lie so many degrees away from (0, 0, -1)."""
    angle = math.radians(degrees)
    return np.full((*shape, 3), (math.sin(angle), 0, -math.cos(angle)), np.float32)


@pytest.fixture(scope='module')
def rooms():
    """Return two small rooms with their names."""
    return list(synthetic_frames(range(7, 9), (24, 32), 'cpu'))


def test_the_truth_scores_perfectly(rooms):
    """Every figure is at its best; a class that no room has is NaN."""
    predictor = Predictor([truth_of(room) for _, room in rooms])
    result = evaluate(predictor, rooms, NYUV2_TASKS).result()
    assert result[SEGMENTATION]['miou'] == result[SEGMENTATION]['pixel_accuracy'] == 1
    present = set(torch.cat([room[SEGMENTATION] for _, room in rooms]).unique().tolist())
    assert [index for index, value in enumerate(result[SEGMENTATION]['per_class'])
            if value == 1] == sorted(present)
    assert result[DEPTH] == {'abs': 0, 'rel': 0}
    assert result[NORMAL]['mean'] < 1e-3 and result[NORMAL]['within_11.25'] == 1
    assert predictor.tasks == tuple(NYUV2_TASKS)
    image = predictor.images[0]
    assert image.dtype == np.uint8 and image.shape == (24, 32, 3)
    assert image == pytest.approx(255 * rooms[0][1]['image'].permute(1, 2, 0).numpy(), abs=0.51)


def test_known_faults_give_the_figures_computed_by_hand():
    """Pixels of both frames are pooled; what has no truth does not count."""
    first, second = sample([[0, 1], [0, -1]], 2.0), sample([[1, 1, 1, 1]], 4.0)
    first[DEPTH][0, 0, 0] = 0
    first[NORMAL][:, 1, 1] = 0
    frames = [('a', first), ('b', second)]
    predictor = Predictor([
        truth_of(first, label=np.zeros((2, 2), np.uint8), depth=np.full((2, 2), 2.5, np.float32),
                 normal=tilted(20, (2, 2))),
        truth_of(second, label=np.array([[1, 1, 0, 255]], np.uint8), normal=tilted(40, (1, 4)))])
    evaluation = evaluate(predictor, frames, TWO)
    result = evaluation.result()
    # Class 0: hits 2, union 2 + 1 + 1; class 1: hits 2, true 5. Labelled pixels: 7.
    assert result[SEGMENTATION]['per_class'] == [0.5, 0.4]
    assert result[SEGMENTATION]['miou'] == pytest.approx(0.45)
    assert result[SEGMENTATION]['pixel_accuracy'] == pytest.approx(4 / 7)
    # Three pixels with an error of 0.5 m at 2 m, four without.
    assert result[DEPTH]['abs'] == pytest.approx(1.5 / 7)
    assert result[DEPTH]['rel'] == pytest.approx(0.75 / 7)
    # Three pixels off by 20 degrees, four by 40.
    assert result[NORMAL]['mean'] == pytest.approx(220 / 7, abs=1e-3)
    assert result[NORMAL]['median'] == pytest.approx(40, abs=1e-3)
    assert [result[NORMAL][f'within_{limit}'] for limit in ('11.25', '22.5', '30')] == [
        0, pytest.approx(3 / 7), pytest.approx(3 / 7)]
    errors = {frame.name: frame.errors for frame in evaluation.worst_frames()}
    assert errors['a'] == {SEGMENTATION: pytest.approx(1 / 3), DEPTH: pytest.approx(0.25),
                           NORMAL: pytest.approx(20, abs=1e-3)}
    assert errors['b'] == {SEGMENTATION: 0.5, DEPTH: 0, NORMAL: pytest.approx(40, abs=1e-3)}


def test_the_engine_is_told_the_focal_length_where_it_is_known():
    frames = [('a', sample([[0, 1]], 2.0, focal=200.0)), ('b', sample([[0, 1]], 2.0))]
    predictor = Predictor([truth_of(frame) for _, frame in frames])
    evaluate(predictor, frames, {DEPTH: 1})
    assert predictor.focal_lengths == [200.0, None]


def test_depth_as_the_trainer_teaches_it_is_judged_right(rooms):
    """The engine's correction undoes what training does to the depth of each room."""
    learnt = render_packed(range(7, 9), (24, 32), 30.0)[DEPTH][:, 0].float().numpy()
    focals = [float(room['intrinsics'][0, 0]) for _, room in rooms]
    predictions = [
        truth_of(room, depth=correct_depth(depth, focal, 30.0))
        for (_, room), depth, focal in zip(rooms, learnt, focals, strict=True)]
    assert evaluate(Predictor(predictions), rooms, {DEPTH: 1}).result()[DEPTH]['rel'] < 1e-3
    assert abs(focals[0] / 30 - 1) > 0.05  # so there was something to correct


def test_outputs_of_another_size_are_resized_to_the_truth():
    """Classes keep their borders; depth is interpolated between them."""
    frame = sample([[0, 0, 1, 1]] * 4, 0)
    frame[DEPTH] = torch.tensor([1.0, 1.25, 1.75, 2.0]).expand(1, 4, 4)
    small = Prediction(image=np.zeros((2, 2, 3), np.uint8), scale=0.5,
                       label=np.array([[0, 1]] * 2, np.uint8),
                       depth=np.array([[1, 2]] * 2, np.float32), normal=tilted(0, (2, 2)))
    result = evaluate(Predictor([small]), [('a', frame)], TWO).result()
    assert result[SEGMENTATION]['miou'] == 1 and result[DEPTH]['abs'] == 0
    assert result[NORMAL]['mean'] == 0


def test_the_ten_worst_frames_are_kept_the_worst_first():
    """Only what is wrong in each frame counts, not what was wrong before."""
    frame = sample([[0, 1]], 1.0)
    order = np.random.default_rng(0).permutation(12)
    predictions = [truth_of(frame, depth=np.full((1, 2), 1 + 0.1 * index, np.float32),
                            normal=tilted(45, (1, 2))) for index in order]
    evaluation = evaluate(Predictor(predictions), [(f'{i}', frame) for i in order], TWO)
    assert [frame.name for frame in evaluation.worst_frames()] == [
        str(index) for index in range(11, 1, -1)]
    worst = evaluation.worst_frames()[0]
    assert worst.badness == pytest.approx((1.1 + 45 / 90) / 3, abs=1e-4)
    assert worst.truth[DEPTH].tolist() == [[1.0, 1.0]]


def test_unknown_predictions_are_told_of():
    """A depth of NaN cannot be judged, but its share is known."""
    frame = sample([[0, 1, 0, 1]], 1.0)
    frame[DEPTH][0, 0, 3] = 0
    depth = np.array([[1.5, np.nan, 1.5, 1.0]], np.float32)
    evaluation = evaluate(Predictor([truth_of(frame, depth=depth)]), [('a', frame)], TWO)
    assert evaluation.result()[DEPTH]['abs'] == 0.5
    assert evaluation.depth_known() == pytest.approx(2 / 3)
    truth, output = np.concatenate(evaluation.depth_samples, axis=1)
    assert (truth.tolist(), output.tolist()) == ([1, 1], [1.5, 1.5])


def test_no_true_depth_is_null_in_json_and_a_dash_in_the_table(tmp_path):
    """The other tasks are judged all the same, and the pictures are drawn."""
    frame = sample([[0, 0]], 0.0)
    evaluation = evaluate(Predictor([truth_of(frame)]), [('a', frame)], TWO)
    report = make_report(evaluation.result(), {'classes': ['left', 'right']})
    write_report(tmp_path / 'a.json', report)
    report = read_report(tmp_path / 'a.json')
    assert report[DEPTH] == {'abs': None, 'rel': None}
    assert report[SEGMENTATION]['per_class'] == [1, None]
    rows = [line.split() for line in table(report).splitlines()]
    assert ['depth', 'absolute', 'error', '-'] in rows
    assert ['left', '100.00', '%', 'right', '-'] in rows
    assert math.isnan(evaluation.depth_known())
    assert set(draw(evaluation, TWO_LABELS)) == {
        'confusion_matrix', 'depth_error', 'normal_angle', 'worst_frames'}


def test_the_report_has_exactly_the_promised_keys(rooms):
    """They are what other programs read."""
    evaluation = evaluate(Predictor([truth_of(room) for _, room in rooms]), rooms, NYUV2_TASKS)
    report = json.loads(json.dumps(make_report(evaluation.result(), {'weights': 'x'})))
    assert {task: list(figures) for task, figures in report.items()} == {
        'segmentation': ['miou', 'pixel_accuracy', 'per_class'], 'depth': ['abs', 'rel'],
        'normal': ['mean', 'median', 'within_11.25', 'within_22.5', 'within_30'],
        'run': ['weights']}
    assert len(report['segmentation']['per_class']) == 13


def report_of(miou, mean=None, **run):
    figures = {SEGMENTATION: {'miou': miou, 'pixel_accuracy': 0.75, 'per_class': [miou, None]}}
    if mean is not None:
        figures[NORMAL] = {'mean': mean, 'median': mean, 'within_11.25': 0.1, 'within_22.5': 0.5,
                           'within_30': 0.6}
    return {**figures, 'run': {'classes': ['left', 'right'], **run}}


def test_comparison_says_which_is_better():
    """More IoU is better, a smaller angle is; what one lacks is not compared."""
    a = report_of(0.30, 20.0, weights='a', seeds='0:500', seconds=7)
    b = report_of(0.35, 22.5, weights='b', seeds='0:500', seconds=9)
    lines = comparison(a, b).splitlines()
    rows = {' '.join(line.split()) for line in lines}
    assert {'segmentation mean IoU 30.00 % 35.00 % +5.00 % B',
            'segmentation pixel accuracy 75.00 % 75.00 % +0.00 % =',
            'normal mean angle 20.00 ° 22.50 ° +2.50 ° A',
            'IoU of left 30.00 % 35.00 % +5.00 % B',
            'IoU of right - - -'} <= rows
    assert lines[:3] == ['weights:', '  A  a', '  B  b']
    assert not any(word in line for line in lines for word in ('seconds', 'not the same'))
    other = comparison(a, report_of(0.3, seeds='500:500'))
    assert 'The frames are not the same' in other
    assert 'normal mean angle 20.00 ° - -' in {' '.join(row.split())
                                               for row in other.splitlines()}


@pytest.mark.parametrize('content', [
    'not json', '[]', '{}', '{"run": {}}', '{"depth": {"abs": 1}, "run": {}}',
    '{"depth": {"abs": "1", "rel": 1}, "run": {}}',
    '{"segmentation": {"miou": 1, "pixel_accuracy": 1, "per_class": [1]}, '
    '"run": {"classes": ["a", "b"]}}'])
def test_a_file_that_is_no_report_is_named(content, tmp_path):
    """Whatever is wrong with it."""
    path = tmp_path / 'other.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=r'other\.json: holds no figures of mtan evaluate'):
        read_report(path)


def test_the_tasks_in_common_are_judged():
    """Those that the weights or the data lack are left out, in the usual order."""
    card = replace(COMPACT, tasks={NORMAL: 3, DEPTH: 1}, labels=None)
    assert list(choose_tasks(card, NYUV2_TASKS, NYUV2_13)) == [DEPTH, NORMAL]
    data = {SEGMENTATION: 13, DEPTH: 1, 'edge': 1}
    assert choose_tasks(COMPACT, data, NYUV2_13) == {SEGMENTATION: 13, DEPTH: 1}
    assert choose_tasks(COMPACT, data, None, wanted=[DEPTH]) == {DEPTH: 1}
    assert choose_tasks(COMPACT, {SEGMENTATION: 13}, None) == {SEGMENTATION: 13}, 'no names'


@pytest.mark.parametrize('tasks, labels, unit, wanted, words', [
    ({SEGMENTATION: 7, DEPTH: 1}, CITYSCAPES_7, 'metre', None,
     r'13 classes \(nyuv2_13\), the data 7 \(cityscapes_7\).*--tasks depth'),
    ({SEGMENTATION: 13}, LabelSet('mine', NYUV2_13.names[::-1], NYUV2_13.colors), 'metre', None,
     r'nyuv2_13.*mine'),
    ({SEGMENTATION: 13, DEPTH: 1}, NYUV2_13, 'inverse', None, 'depth: .*metre.*inverse'),
    ({'edge': 1}, None, 'metre', None, 'no task to judge in common'),
    (NYUV2_TASKS, NYUV2_13, 'metre', ['edge'], "weights have no 'edge'"),
    ({DEPTH: 1}, None, 'metre', [NORMAL], "data have no 'normal'"),
])
def test_weights_and_data_that_do_not_fit_are_refused(tasks, labels, unit, wanted, words):
    """The error says what either has and what to do."""
    with pytest.raises(ValueError, match=words):
        choose_tasks(COMPACT, tasks, labels, unit, wanted)


def test_a_frame_that_cannot_be_judged_is_named():
    """A label beyond the classes, and no frame at all."""
    frame = sample([[0, 9]], 1.0)
    with pytest.raises(ValueError, match='frame 5: segmentation: truth holds class 9'):
        evaluate(Predictor([truth_of(frame)]), [('frame 5', frame)], TWO)
    with pytest.raises(ValueError, match='no frame to judge'):
        evaluate(Predictor([]), [], TWO)


def test_synthetic_frames_are_the_rooms_of_their_seeds(rooms):
    """Named by seed, and the same whichever were rendered together."""
    frames = render([8], 24, 32)
    name, room = rooms[1]
    assert name == 'seed 8' and torch.equal(room[SEGMENTATION], frames.label[0])
    assert torch.equal(room[DEPTH], frames.depth[0]) and room['intrinsics'].shape == (3, 3)


def test_the_first_frames_of_a_data_set_are_judged_and_bad_ones_left_out():
    def load(index):
        if index == 1:
            raise DatasetError('b: is damaged')
        return {'index': index}
    dataset, skipped = SimpleNamespace(names=['a', 'b', 'c', 'd'], load=load), []
    assert list(dataset_frames(dataset, 3, skipped)) == [('a', {'index': 0}), ('c', {'index': 2})]
    assert skipped == ['b: is damaged']
    assert len(list(dataset_frames(dataset, None, []))) == 3


def test_the_splits_have_no_scene_in_common():
    """The test seeds are those that are published."""
    assert SPLIT_SEEDS['test'] == range(500)
    assert sum(map(len, SPLIT_SEEDS.values())) == len(set().union(*SPLIT_SEEDS.values()))


def test_pictures_show_what_was_judged(rooms):
    """Every task, in the order input, output, truth; a large frame is made smaller."""
    predictions = [truth_of(room, depth=room[DEPTH][0].numpy() + 0.5) for _, room in rooms]
    pictures = draw(evaluate(Predictor(predictions), rooms, NYUV2_TASKS), NYUV2_13)
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3
               for picture in pictures.values())
    sheet = pictures['worst_frames']
    assert sheet.shape[1] == 7 * (32 + 8) + 8
    # The colours of the output and of the truth of a perfect segmentation are the same.
    assert np.array_equal(sheet[:, 48:80][18:42], sheet[:, 88:120][18:42])
    assert 'normal_angle' not in draw(Evaluation({DEPTH: 1}), None)
    large = sample([[0] * 800] * 600, 1.0)
    pictures = draw(evaluate(Predictor([truth_of(large)]), [('a', large)], TWO), TWO_LABELS)
    assert pictures['worst_frames'].shape[1] == 7 * (SHEET_WIDTH + 8) + 8
