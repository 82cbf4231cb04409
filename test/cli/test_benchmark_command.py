# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan benchmark``: what it refuses; its figures are tested in test/inference."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mtan_perception.cli import benchmark
from mtan_perception.cli.main import main


@pytest.mark.parametrize('arguments, words', [
    (['--sizes', '100x128', '--quick'], '--sizes: 100x128; the original takes multiples of 8'),
    (['--sizes', '16x32'], '--sizes: 16x32; the original takes multiples of 8, at least 32'),
    (['--sizes', '0x0'], "--sizes: '0x0'; write HEIGHTxWIDTH"),
    (['--sizes', 'large'], "--sizes: 'large'"),
    (['--contenders', 'theirs/fast'], "--contenders: 'theirs/fast'; choose from original/eager"),
    (['--rounds', '0'], '--rounds: 0; give 1 to 1000'),
    (['--frames', '0', '--node'], '--frames: 0; give 1 to 1000'),
    (['--sizes', '80000x80000'], '--sizes: 80000x80000; height and width must be at most 4096'),
    (['--patience', 'nan'], '--patience: nan; give seconds, at least 0'),
    (['--patience', '-1'], '--patience: -1; give seconds, at least 0'),
    (['--json', '/proc/a/b.json'], '--json: cannot write to /proc/a, because /proc is not a '
     'folder that may be written to (No such file'),
    (['--json', '/'], '--json: / is a folder; name a file in it'),
    (['--device', 'tpu'], "device: 'tpu' is not known"),
])
def test_what_cannot_be_measured(arguments, words, capsys):
    assert main(['benchmark', *arguments]) == 2
    assert words in capsys.readouterr().err


def test_by_default_what_the_device_cannot_run_is_left_out():
    args = SimpleNamespace(contenders=None, quick=False)
    assert benchmark._names(args, 'cpu') == [
        'original/eager', 'original/compile', 'original/openvino', 'original/onnxruntime',
        'ours/torch', 'ours/compile', 'ours/openvino', 'ours/onnxruntime']
    assert benchmark._names(args, 'cuda') == [
        'original/eager', 'original/compile', 'ours/torch', 'ours/triton', 'ours/compile',
        'ours/onnxruntime']
    args.quick = True
    assert benchmark._names(args, 'cpu') == [
        'original/eager', 'original/openvino', 'original/onnxruntime', 'ours/torch',
        'ours/openvino', 'ours/onnxruntime']


def test_without_ros_the_node_is_refused_before_anything_is_measured(monkeypatch, capsys):
    module = 'mtan_perception.node.benchmark.measurement'
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, 'rclpy', None)
    assert main(['benchmark', '--network', '--node', '--sizes', '96x128']) == 2
    assert '--node needs ROS 2: import of rclpy halted' in capsys.readouterr().err


def test_the_subsets_and_other_sizes_are_measured_with_the_fastest():
    """And with the baseline; the others would take minutes to build for each size."""
    calls, limits = [], []

    def measure(names, image, tasks, rounds, processes, seconds, all_tasks=None):
        calls.append((list(names), image.shape, len(tasks), rounds))
        limits.append(seconds)
        assert (all_tasks == 'prepared for all tasks') == (len(tasks) < 3)
        for name in names:
            processes.setdefault(name, 'prepared for all tasks')
        return [SimpleNamespace(contender=name, problem='no' if 'onnx' in name else None,
                                seconds=[] if 'onnx' in name else [1.0],
                                median=2.0 - ('openvino' in name))
                for name in names]

    names = ['original/eager', 'original/openvino', 'original/onnxruntime', 'ours/torch',
             'ours/openvino', 'ours/onnxruntime']
    images = [np.empty((1, 3, 8, 16)), np.empty((1, 3, 16, 32))]
    processes = {}
    results = benchmark._measure_network(
        measure, processes, images, names, 5, with_subsets=True)
    assert set(processes) == {*names, 'ours/openvino again'}
    assert calls[0] == (names, (1, 3, 8, 16), 3, 5)
    assert [call[2:] for call in calls[1:-1]] == [(1, 15)] * 3 + [(2, 5)] * 3
    assert all(call[0] == ['ours/openvino'] for call in calls[1:-1])
    assert calls[-1] == (
        ['original/eager', 'original/openvino', 'ours/openvino'], (1, 3, 16, 32), 3, 3)
    assert len(results) == 6 + 6 + 3
    assert set(limits) == {math.inf}  # the rounds are what was asked for
    calls.clear()
    limits.clear()
    benchmark._measure_network(measure, {}, images, names, None, with_subsets=True)
    assert [call[3] for call in calls] == [8, *[24] * 3, *[8] * 3, 4]
    assert sum(limits) < 200


def test_network_and_node_share_a_file(monkeypatch, tmp_path):
    """--node alone leaves the network out; with --network both are there."""
    path, asked = tmp_path / 'a.json', []

    def measure_node(sizes, frames, parameters, say):
        asked.append((sizes, frames, parameters))
        return {'costs': []}

    monkeypatch.setattr(benchmark, '_load_node_benchmark', lambda: measure_node)

    def run_network(args):
        report = {'host': {}, 'versions': {}, 'measurements': [1]}
        benchmark._write(args.json, report)
        return report

    monkeypatch.setattr(benchmark, '_run_network', run_network)
    for options, keys in [(['--node'], {'host', 'versions', 'node'}),
                          (['--node', '--network'], {'host', 'versions', 'measurements', 'node'}),
                          ([], {'host', 'versions', 'measurements'})]:
        assert main(['benchmark', *options, '--device', 'cpu', '--json', str(path)]) == 0
        assert json.loads(path.read_text()).keys() == keys
    assert asked == [(((480, 640), (720, 1280)), 120, {'device': 'cpu', 'precision': 'auto'})] * 2
