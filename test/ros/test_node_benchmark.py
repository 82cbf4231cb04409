# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan benchmark --node`` with its processes, on an image that is quick."""

import array
import os
import signal

import numpy as np
import pytest
from rclpy.context import Context
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from mtan_perception.node.benchmark import client as client_module
from mtan_perception.node.benchmark import measurement
from mtan_perception.node.benchmark.client import Client, NodeBenchmarkError
from mtan_perception.node.benchmark.measurement import ALL, measure_node, ONE, Shot, time_clouds
from mtan_perception.node.benchmark.relay import OUTPUT_TYPES, save_answer

SIZE, OUTPUT_PIXELS = (120, 160), 60 * 80
SMALL = {'weights': 'random', 'input_height': '60', 'input_width': '80'}
# A pixel's bytes: mask, confidence, depth, normals; three pictures; a point.
BYTES_PER_PIXEL = 1 + 1 + 4 + 12 + 3 * 3 + 32


@pytest.fixture
def shot():
    return Shot(SIZE)


@pytest.fixture
def relay(ros_domain, ros_node, start_process, tmp_path):
    """Give the relay's process, which looks for its answers in tmp_path, and its client."""
    child = start_process('mtan_perception.node.benchmark.relay', '--ros-args', '-r',
                          'image:=/relay/image', '-r', 'camera_info:=/relay/camera_info', '--',
                          tmp_path)
    return child, Client('relay', child, ros_node.context)


def test_every_part_is_measured(ros_domain, shot, monkeypatch):
    """
    The parts add up; the relay's process is quicker; what was set for the run is unset.

    Frames of several starts count together.
    """
    monkeypatch.setattr(measurement, 'WARM_UP', (2, 0.0))
    monkeypatch.delenv('ROS_DOMAIN_ID')
    said = []
    one, every = measure_node([shot], 6, SMALL, said.append)
    assert 'ROS_DOMAIN_ID' not in os.environ
    assert (one.outputs, every.outputs) == (ONE, ALL) and len(ALL) == 12
    assert one.answer_bytes == OUTPUT_PIXELS
    assert 0 <= every.answer_bytes - BYTES_PER_PIXEL * OUTPUT_PIXELS < 12 * OUTPUT_PIXELS
    for cost in (one, every):
        assert len(cost.node) == len(cost.relay) == 6
        np.testing.assert_allclose(
            sum(map(np.array, cost.stages.values())), cost.node, atol=1e-4)
        assert all(0 < engine < whole
                   for engine, whole in zip(cost.engine, cost.node, strict=True))
        assert min(cost.relay) < min(cost.node)
    assert every.stages.keys() - one.stages.keys() == {'clouds'}
    assert one.stages.keys() == {'wait', 'decode', 'camera_info', 'preprocess', 'network',
                                 'postprocess', 'fill', 'publish', 'rest', 'deliver'}
    assert said[:2] == ['start 1 of 2:', 'starting mtan_node ...']
    assert said.count('starting the relay ...') == 2 and said[-1] == '160x120, 12 output(s) ...'


def test_the_relay_repeats_what_it_is_given(relay, shot, tmp_path):
    """The same messages under the image's header; nothing for a topic that nobody reads."""
    mask = Image(height=2, width=3, encoding='mono8', step=3, data=array.array('B', b'abcdef'))
    info = CameraInfo(height=2, width=3, k=np.arange(9.0))
    points = PointCloud2(height=1, width=2, point_step=4, data=array.array('B', bytes(8)))
    answer = {'segmentation/mask': mask, 'depth/camera_info': info, 'points': points}
    save_answer(tmp_path, SIZE, answer)
    _, client = relay
    client.listen(('segmentation/mask', 'depth/camera_info'))
    assert 0 < client.ask(shot.image, shot.camera_info) < 20
    stamp = client.answer['segmentation/mask'].header.stamp
    assert f'{stamp.sec}.{stamp.nanosec:09d}' == client.stamp
    for topic, message in client.answer.items():
        assert message.header == shot.image.header
        message.header = answer[topic].header
        assert message == answer[topic]
    client.listen(OUTPUT_TYPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, 'FIRST_TIMEOUT', 1.0)
        with pytest.raises(NodeBenchmarkError) as error:
            client.ask(shot.image, shot.camera_info)
    assert '/relay/obstacles' in str(error.value) and '/relay/points' not in str(error.value)


def test_a_process_that_does_not_answer_or_ends_is_named(relay, shot, monkeypatch):
    monkeypatch.setattr(client_module, 'FIRST_TIMEOUT', 0.2)
    child, client = relay
    client.listen(ONE)
    with pytest.raises(NodeBenchmarkError, match='relay answered none of 4 images on '
                                                 '/relay/segmentation/mask; its last lines'):
        client.ask(shot.image, shot.camera_info)
    with pytest.raises(NodeBenchmarkError, match='relay has not logged what its stages took'):
        client.stages([client.stamp])
    monkeypatch.setattr(client_module, 'FIRST_TIMEOUT', 20.0)
    child.send_signal(signal.SIGINT)
    with pytest.raises(NodeBenchmarkError, match='relay ended by itself with exit code 0'):
        client.ask(shot.image, shot.camera_info)
    assert 'Traceback' not in child.output


@pytest.mark.parametrize('parameters, words', [
    ({'weights': '/absent.safetensors'}, r'(?s)mtan_node cannot start; .*configure: .*absent'),
    ({'precision': 'fp8'}, r"(?s)mtan_node ended by itself with exit code 1; .*'precision' is"),
])
def test_a_node_that_does_not_start_says_why(ros_domain, shot, parameters, words):
    with pytest.raises(NodeBenchmarkError, match=words):
        measure_node([shot], 3, SMALL | parameters, str)


def test_a_process_that_never_subscribes_is_given_up(ros_domain, start_process, monkeypatch):
    monkeypatch.setattr(client_module, 'START_TIMEOUT', 0.2)
    child = start_process(
        'mtan_perception.node.mtan_node', '--ros-args', '-p', 'autostart:=false')
    context = Context()
    context.init(domain_id=ros_domain)
    try:
        with pytest.raises(NodeBenchmarkError, match='has not subscribed to /mtan/image'):
            Client('mtan', child, context)
    finally:
        context.try_shutdown()


def test_the_clouds_are_filled_in_time(capsys):
    """The aim is 8 ms for the points; a test machine may be several times slower."""
    seconds = time_clouds()
    assert list(seconds) == ['points of 288x384 filled', 'obstacles of 288x384 filled']
    medians = {name: 1000 * np.median(values) for name, values in seconds.items()}
    with capsys.disabled():
        print(f'\n{medians} ms of one core')
    assert all(0.1 < median < 60 for median in medians.values())
