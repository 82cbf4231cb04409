# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of ``mtan benchmark --node`` by hand, and the log line that they come from."""

import json

import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from mtan_perception.node.benchmark.cost import NodeCost, table
from mtan_perception.node.diagnostics import describe_stages, read_stages

Time = pytest.importorskip('builtin_interfaces.msg').Time

STAGES = {'latency': 0.090, 'wait': 0.001, 'preprocess': 0.004, 'network': 0.060,
          'postprocess': 0.006, 'fill': 0.010, 'publish': 0.005}


def cost() -> NodeCost:
    result = NodeCost((480, 640), 'bgr8', ('segmentation/mask', 'points'), 3_660_000)
    for node, relay in [(0.100, 0.020), (0.130, 0.024), (0.094, 0.100)]:
        result.add(node, relay, STAGES)
    return result


def test_the_ratio_is_that_of_medians_without_the_engine():
    result = cost()
    assert result.engine == pytest.approx([0.070] * 3)
    assert result.overhead == pytest.approx([0.030, 0.060, 0.024])
    assert result.ratio == pytest.approx(0.030 / 0.024)
    assert result.stages['deliver'] == pytest.approx([0.010, 0.040, 0.004])
    assert result.stages['rest'] == pytest.approx([0.004] * 3)
    for index, whole in enumerate(result.node):
        assert sum(stage[index] for stage in result.stages.values()) == pytest.approx(whole)
    assert json.loads(json.dumps(result.to_json()))['overhead_to_relay'] == result.ratio


def test_the_table_is_markdown():
    title, rule, *rows = table([cost(), cost()], {'points': [0.002, 0.004, 0.003]}).splitlines()
    assert title.count('| 640×480, 2 output(s), 3.7 MB') == 2 and rule == '|---|---|---|'
    cells = {row.split('|')[1].strip(): row.split('|')[2].strip() for row in rows if '|' in row}
    assert cells['message to message'] == '100.0 (94.0..130.0)'
    assert cells['· fill images'] == '10.0 (10.0..10.0)' and '· fill clouds' not in cells
    assert cells['not the engine ÷ relay (aim for all outputs: ≤ 1.3)'] == '1.25'
    assert rows[-1] == 'points: 3.0 (2.0..4.0) ms of one core'


def test_a_frame_is_read_back_from_the_log():
    line = describe_stages(Time(sec=12, nanosec=34), 0.25, {'wait': 0.001, 'network': 0.2})
    stamp, stages = read_stages(f'[DEBUG] [1.2] [mtan]: {line}')
    assert stamp == '12.000000034'
    assert stages == pytest.approx({'latency': 0.25, 'wait': 0.001, 'network': 0.2})
    assert read_stages('[INFO] [1.2] [mtan]: something else') is None
