# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan evaluate --live`` on topics with known errors, over DDS."""

import json
import threading

import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from mtan_perception.cli.main import main
from mtan_perception.labels import CITYSCAPES_19, NYUV2_13
from mtan_perception.node.demo_monitor import Monitor
from mtan_perception.node.image_codec import encode_image
from mtan_perception.node.live_moments import live_moments
from mtan_perception.tasks import NYUV2_TASKS

SHAPE = (24, 32)


@pytest.fixture(params=[NYUV2_13], ids=lambda labels: labels.name)
def graph(ros_node, request):
    """Publish, ten times a second, an image, outputs and truth as camera and node name them."""
    half = np.repeat(np.array([[11, 4]], np.uint8), SHAPE[1] // 2, 1).repeat(SHAPE[0], 0)
    down = np.full((*SHAPE, 3), (0, -1, 0), np.float32)
    depth = np.full(SHAPE, 2.0, np.float32)
    depth[0] = np.nan
    content = {
        '/camera/image_raw': (np.zeros((*SHAPE, 3), np.uint8), 'rgb8'),
        '/camera/truth/mask': (half, 'mono8'),
        '/camera/truth/depth': (np.full(SHAPE, 2.5, np.float32), '32FC1'),
        '/camera/truth/normal': (np.full((*SHAPE, 3), (0, 0, -1), np.float32), '32FC3'),
        '/mtan/segmentation/mask': (np.full(SHAPE, 11, np.uint8), 'mono8'),
        '/mtan/depth/image_rect': (depth, '32FC1'),
        '/mtan/normal/image': (down, '32FC3'),
    }
    publishers = {topic: ros_node.create_publisher(Image, topic, 10) for topic in content}
    ros_node.create_publisher(
        String, '/mtan/segmentation/labels',
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    ).publish(String(data=json.dumps({'class_map': [
        {'class_name': name} for name in request.param.names]})))
    stop = threading.Event()

    def publish():
        while not stop.wait(0.1):
            header = Header(stamp=ros_node.get_clock().now().to_msg(), frame_id='camera')
            for topic, (array, encoding) in content.items():
                publishers[topic].publish(encode_image(array, encoding, header))

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join(2.0)


def test_the_topics_of_the_node_are_judged_by_those_of_the_camera(graph, tmp_path, capsys):
    """Half the pixels of the wrong class, depth 0.5 m short, normals at a right angle."""
    code = main(['evaluate', '--live', '--limit', '3', '--json', str(tmp_path / 'a.json'),
                 '--pictures', str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / 'a.json').read_text())
    assert report['segmentation']['pixel_accuracy'] == 0.5
    assert report['segmentation']['miou'] == 0.25
    assert report['depth'] == {'abs': 0.5, 'rel': 0.2}
    assert report['normal']['mean'] == pytest.approx(90) and report['normal']['within_30'] == 0
    run = report['run']
    assert (run['data'], run['count'], run['image_size']) == ('live', 3, list(SHAPE))
    assert run['depth_known'] == pytest.approx(23 / 24)
    assert (tmp_path / 'worst_frames.png').is_file()
    assert 'Depth was predicted for 95.83 %' in capsys.readouterr().out


def test_watching_ends_with_its_time(graph):
    """Without a limit the frames come for as long as was asked for."""
    count = sum(1 for _ in live_moments(('depth',), 1.0))
    assert 3 <= count <= 12


@pytest.mark.parametrize('graph', [CITYSCAPES_19], ids=['cityscapes_19'], indirect=True)
def test_other_classes_than_those_of_the_truth_are_named(graph):
    """Their ids would be compared with ids of another meaning."""
    with pytest.raises(ValueError, match=r'tells apart road, .*of nyuv2_13.*--tasks depth'):
        list(live_moments(('segmentation', 'depth'), 1.0))
    assert sum(1 for _ in live_moments(('depth',), 1.0, limit=1)) == 1


@pytest.mark.parametrize('received, words', [
    (('input', 'segmentation', 'depth', 'normal'), 'nothing on /mtan/segmentation/labels'),
    ((), 'nothing on /camera/image_raw; start camera_node'),
    (('input', 'depth'), 'nothing on /mtan/normal/image; start mtan_node, or leave the task out'),
    (('input', 'depth', 'normal'), 'nothing on /camera/truth/'),
])
def test_what_does_not_come_is_named(ros_domain, monkeypatch, received, words):
    """Who waits in vain is told for what, and what to do."""
    tasks = [task for task in NYUV2_TASKS if task in ('depth', 'normal', *received)]
    monkeypatch.setattr(Monitor, 'received', lambda self, name: int(name in received))
    with pytest.raises(ValueError, match=words):
        next(live_moments(tuple(tasks), 1.0, patience=0.1))
