# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark's figures by hand, and its processes with a contender that is quick."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtan_perception.inference.benchmark import comparison
from mtan_perception.inference.benchmark.comparison import compare, Measurement, table
from mtan_perception.threads import share_cores


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
    theirs['normal'][0, 0, 1] = np.nan  # as the original has it of a zero vector
    assert compare(ours, theirs)['normal'] == pytest.approx(90)


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
    assert ours.split()[1:5] == ['1500.0', '1000.0..2000.0', '2.00', '0.625'] and '1.0e-03' in ours


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


def test_a_contender_that_dies_leaves_the_others_figures(tmp_path):
    """Killed for its memory, say, in the second round."""
    class Process:

        def __init__(self, name):
            self.rounds = 0 if name == 'dies' else -9

        def ask(self, method, *arguments, patience=0):
            self.rounds += method == 'measure'
            if self.rounds == 2:
                raise RuntimeError('its process ended with exit code -9')
            return 0.5
    results = comparison.measure(
        ['dies', 'lives'], tmp_path, np.zeros((1, 3, 8, 8), np.float32), ['depth'],
        {name: Process(name) for name in ('dies', 'lives')}, 3, 'cpu', 'fp32', lambda text: None)
    dead, alive = results
    assert dead.problem == 'its process ended with exit code -9'
    assert alive.problem is None and alive.seconds == [0.5] * 3
    assert 'exit code -9' in table(results)


@pytest.mark.parametrize('seconds, rounds', [(math.inf, 9), (5.5, 6), (0, 3)])
def test_when_time_is_up_no_further_round_is_begun(seconds, rounds, tmp_path, monkeypatch):
    """Each takes a second here; the first three there are in any case."""
    passed = [0]

    class Process:

        def ask(self, method, *arguments, patience=0):
            passed[0] += method == 'measure'
            return 1.0
    monkeypatch.setattr(comparison, 'time', SimpleNamespace(
        sleep=lambda seconds: None, monotonic=lambda: passed[0]))
    said = []
    result, = comparison.measure(
        ['ours/torch'], tmp_path, np.zeros((1, 3, 8, 8), np.float32), ['depth'],
        {'ours/torch': Process()}, 9, 'cpu', 'fp32', said.append, seconds=seconds)
    assert len(result.seconds) == rounds and said[-1] == f'round {rounds} of 9'


@pytest.mark.parametrize('seconds, rounds', [(math.inf, [5] * 5), (1000, [5, 3, 5, 3, 5])])
def test_where_time_is_short_the_leading_alone_are_measured_more(seconds, rounds, tmp_path):
    """The baseline, and the fastest of the original and of ours, by three rounds of all."""
    class Process:

        def __init__(self, taken):
            self.taken = taken

        def ask(self, method, *arguments, patience=0):
            return self.taken
    processes = {'original/eager': 5.0, 'original/compile': 4.0, 'original/openvino': 3.0,
                 'ours/torch': 2.0, 'ours/openvino': 1.0}
    results = comparison.measure(
        list(processes), tmp_path, np.zeros((1, 3, 8, 8), np.float32), ['depth'],
        {name: Process(taken) for name, taken in processes.items()}, 5, 'cpu', 'fp32',
        lambda text: None, seconds=seconds)
    assert [len(result.seconds) for result in results] == rounds


@pytest.mark.parametrize('name, policy', [('original/eager', None), ('ours/torch', 'PASSIVE')])
def test_the_original_runs_in_the_environment_that_was_given(name, policy, tmp_path, monkeypatch):
    """What ours adds to its own would slow the original down."""
    for variable in ('OMP_WAIT_POLICY', 'OPENCV_FOR_THREADS_NUM'):
        monkeypatch.setenv(variable, 'restored later')
        monkeypatch.delenv(variable)
    share_cores()
    started = []
    monkeypatch.setattr(comparison.subprocess, 'Popen',
                        lambda command, env, **options: started.append((command, env)))
    comparison._Process(name, tmp_path, 'cpu', 'fp32')._log.close()
    [(command, environment)] = started
    assert name in command and environment.get('OMP_WAIT_POLICY') == policy


@pytest.fixture
def stuck(tmp_path):
    """Give a contender that waits for its input, from a pipe into which nobody writes."""
    os.mkfifo(tmp_path / 'image.npy')
    process = comparison._Process('ours/torch', tmp_path, 'cpu', 'fp32')
    yield process
    process.close()


def test_a_contender_that_takes_too_long_is_asked_no_more(stuck):
    for _ in range(2):
        with pytest.raises(RuntimeError, match='not done after 1 s'):
            stuck.ask('prepare', 'image.npy', ['depth'], patience=1)


@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_ends_a_contender_that_is_being_prepared(stuck):
    """It is in a session of its own, where a terminal's does not reach it."""
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        stuck.ask('prepare', 'image.npy', ['depth'], patience=60)
    assert stuck._process.wait(10) == -signal.SIGKILL


def test_the_report_says_on_what_it_was_measured():
    """As JSON: the processor and its generation, versions, a hash of each input."""
    images = [np.zeros((1, 3, 8, 16), np.float32), np.ones((1, 3, 16, 32), np.float32)]
    result = Measurement('ours/torch', (8, 16), ('depth',), [3.0, 1.0, 2.0])
    report = json.loads(json.dumps(comparison.report([result], images, 'cpu', 'fp32')))
    assert {'machine', 'cpu', 'cpu_family', 'cpu_model', 'threads'} <= report['host'].keys()
    assert report['versions']['torch'] == torch.__version__.partition('+')[0]
    assert report['input_sha256'].keys() == {'8x16', '16x32'}
    assert len(set(report['input_sha256'].values())) == 2
    assert report['measurements'][0]['median'] == 2.0


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
    ballast = np.ones(1 << 27)  # 1 GiB, which is not the worker's
    result = subprocess.run(
        [sys.executable, '-m', 'mtan_perception.inference.benchmark.worker', 'ours/torch',
         str(tmp_path), 'cpu', 'fp32'], input=requests, capture_output=True, text=True,
        timeout=100)
    error, memory = map(json.loads, result.stdout.splitlines())
    assert result.returncode == 0 and 'missing.npy' in error['error']
    assert 5 < memory['result'] < ballast.nbytes / 2 ** 20


def test_what_a_runtime_prints_is_no_answer(tmp_path):
    """It goes where errors go, from C++ too."""
    script = f"""if True:
        import os, sys
        from mtan_perception.inference.benchmark import worker
        worker.Worker.memory = lambda self: os.write(1, b'noise\\n') and print('more') or 5
        sys.argv = ['worker', 'ours/torch', {str(tmp_path)!r}, 'cpu', 'fp32']
        worker.main()"""
    result = subprocess.run([sys.executable, '-c', script], input='["memory", []]\n',
                            capture_output=True, text=True, timeout=100)
    assert json.loads(result.stdout) == {'result': 5}
    assert 'noise' in result.stderr and 'more' in result.stderr


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
