# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's figures by hand, and its processes with a contender that is quick."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mtan_perception.inference.benchmark import comparison
from mtan_perception.inference.benchmark.comparison import compare, Measurement, table


def test_agreement_by_hand():
    """One of four classes differs, one depth is 10 % off, one normal is turned by 90 degrees."""
    theirs = {'label': np.array([[[0, 1], [2, 3]]], np.uint8),
              'depth': np.array([[[1.0, 2.0], [4.0, -8.0]]], np.float32),
              'normal': np.array([[[[0, 0, -1], [1, 0, 0]]]], np.float32)}
    ours = {name: array.copy() for name, array in theirs.items()}
    assert compare(ours, theirs) == {'label': 1, 'depth': 0, 'normal': 0}
    ours['label'][0, 1, 1] = 5
    ours['depth'][0, 0, 1] = 2.2
    ours['normal'][0, 0, 0] = (0, 1, 0)
    assert compare(ours, theirs) == pytest.approx(
        {'label': 0.75, 'depth': 0.1 / 4, 'normal': 45}, rel=1e-6)
    assert list(compare({'depth': ours['depth']}, theirs)) == ['depth']


def test_the_table_names_what_failed_and_divides_medians():
    tasks = 'depth',
    results = [Measurement('original/eager', (8, 8), tasks, [3.0, 2.0, 9.0], 4.0, 100.0),
               Measurement('original/openvino', (8, 8), tasks, problem='not installed'),
               Measurement('ours/torch', (8, 8), tasks, [1.0, 2.0], 1.0, None, {'depth': 0.001},
                           [4.0, 2.0])]
    text = table(results)
    title, *_, eager, openvino, ours = text.splitlines()
    assert title == '8x8, depth' and openvino.endswith('not installed')
    assert eager.split()[1:4] == ['3000.0', '2000.0..9000.0', '1.00']
    assert ours.split()[1:5] == ['1500.0', '1000.0..2000.0', '2.00', '0.62'] and '1.0e-03' in ours


def test_contenders_run_in_processes_of_their_own(tmp_path):
    """Each answers in its turn; one that cannot run says why and the others go on."""
    started = []

    class Process:

        def __init__(self, name, *_):
            self.name, self.calls = name, []
            started.append(self)

        def ask(self, method, *arguments, patience=0):
            self.calls.append(method)
            if self.name == 'ours/broken':
                raise RuntimeError('BackendError: no such runtime')
            if method == 'save':
                np.savez(tmp_path / arguments[0], depth=np.ones((1, 8, 8), np.float32))
            return 0.5
    monkey = pytest.MonkeyPatch()
    monkey.setattr(comparison, '_Process', Process)
    said = []
    results = comparison.measure(
        ['original/eager', 'ours/broken', 'ours/torch'], tmp_path,
        np.zeros((1, 3, 8, 8), np.float32), ['depth'], {}, 3, 'cpu', 'fp32', said.append)
    monkey.undo()
    eager, broken, ours = results
    assert broken.problem == 'BackendError: no such runtime' and not broken.seconds
    assert eager.seconds == ours.seconds == [0.5] * 3 and ours.agreement == {'depth': 0}
    assert [process.calls for process in started] == [
        ['prepare', 'save', *['measure'] * 3, 'memory'], ['prepare'],
        ['prepare', 'save', *['measure'] * 3, 'memory']]
    assert 'ours/broken: BackendError: no such runtime' in said


def test_some_tasks_are_measured_in_turn_with_all(tmp_path):
    """A machine that slows down slows both, and the share of one in the other stays."""
    order = []

    class Process:

        def __init__(self, name):
            self.name = name

        def ask(self, method, *arguments, patience=0):
            order.append((self.name, method))
            return len(order)
    result, = comparison.measure(
        ['ours/torch'], tmp_path, np.zeros((1, 3, 8, 8), np.float32), ['depth'],
        {'ours/torch': Process('some')}, 2, 'cpu', 'fp32', order.append,
        all_tasks=Process('all'))
    assert [step for step in order if 'measure' in step] == [
        ('all', 'measure'), ('some', 'measure')] * 2
    (first, second), (first_all, second_all) = result.seconds, result.all_tasks
    assert result.share == pytest.approx((first / first_all + second / second_all) / 2)


def test_a_worker_answers_line_by_line(tmp_path):
    """An error is an answer: the process goes on, and ends with its input."""
    requests = '\n'.join([json.dumps(['prepare', ['missing.npy', ['depth']]]),
                          json.dumps(['memory', []])])
    result = subprocess.run(
        [sys.executable, '-m', 'mtan_perception.inference.benchmark.worker', 'ours/torch',
         str(tmp_path), 'cpu', 'fp32'], input=requests, capture_output=True, text=True,
        timeout=100)
    error, memory = map(json.loads, result.stdout.splitlines())
    assert result.returncode == 0 and 'missing.npy' in error['error']
    assert 50 < memory['result'] < 4000


def test_a_process_that_takes_too_long_is_ended(tmp_path):
    """The next one is not kept waiting; what it was at is said."""
    process = comparison._Process('ours/torch', tmp_path, 'cpu', 'fp32')
    with pytest.raises(RuntimeError, match='not done after 0 s'):
        process.ask('memory', patience=0.01)  # Python alone takes longer to start
    process.close()


def test_the_arithmetic_of_the_network():
    """192 GMAC at 288x384, less the rows of taps at rate 36 that see no row of the map."""
    flops, weights = comparison.arithmetic((288, 384), ['segmentation', 'depth', 'normal'])
    assert flops / 2e9 == pytest.approx(192 - 16.3, rel=0.01)
    assert weights / 2 == pytest.approx(92.3e6, rel=0.01)
    assert comparison.arithmetic((288, 384), ['depth'])[0] < 0.55 * flops
