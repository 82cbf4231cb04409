# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the class ids mean, over DDS: as JSON, and as vision_msgs where there is one."""

import importlib
import importlib.util
import json
import os
import sys

from interfaces import build_interfaces, NotBuildable
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from mtan_perception.labels import NYUV2_13

# The fields of vision_msgs 4, which Humble and all later distributions have.
MESSAGES = {
    'VisionClass': 'uint16 class_id\nstring class_name\n',
    'LabelInfo': 'std_msgs/Header header\nvision_msgs/VisionClass[] class_map\n'
                 'float32 threshold\n'}
# As Nav2's semantic layer subscribes.
LATCHED = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope='module')
def vision_msgs(tmp_path_factory):
    """Return the folder of a vision_msgs package, built for the tests where none is installed."""
    if importlib.util.find_spec('vision_msgs') is not None:
        yield ''
        return
    try:
        folder = build_interfaces(tmp_path_factory.mktemp('interfaces'), 'vision_msgs', MESSAGES,
                                  ('std_msgs', 'builtin_interfaces'))
    except NotBuildable as error:
        pytest.skip(f'vision_msgs is not installed and cannot be built here: {error}')
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield str(folder)
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'vision_msgs']:
        del sys.modules[name]


def test_a_late_subscriber_is_told_the_classes_as_json(robot, collect, spin_until):
    child = robot.start(confidence_threshold=0.25)
    texts = collect(String, '/mtan/segmentation/labels', LATCHED)
    assert spin_until(lambda: texts)
    content = json.loads(texts[-1].data)
    assert (content['name'], content['threshold']) == ('nyuv2_13', 0.25)
    assert content['class_map'] == [
        {'class_id': index, 'class_name': name, 'color': list(NYUV2_13.colors[index])}
        for index, name in enumerate(NYUV2_13.names)]
    assert robot.set(confidence_threshold=0.5).successful
    assert spin_until(lambda: json.loads(texts[-1].data)['threshold'] == 0.5)
    if importlib.util.find_spec('vision_msgs') is None:
        lines = [line for line in child.lines if 'vision_msgs is not installed' in line]
        assert len(lines) == 1


def test_a_late_subscriber_is_given_the_label_info(robot, collect, spin_until, vision_msgs):
    from vision_msgs.msg import LabelInfo
    path = os.pathsep.join(filter(None, (vision_msgs, os.environ.get('PYTHONPATH'))))
    child = robot.start(env={'PYTHONPATH': path}, confidence_threshold=0.25)
    infos = collect(LabelInfo, '/mtan/segmentation/label_info', LATCHED)
    texts = collect(String, '/mtan/segmentation/labels', LATCHED)
    assert spin_until(lambda: infos and texts), child.output
    message = infos[-1]
    assert [(entry.class_id, entry.class_name) for entry in message.class_map] == list(
        enumerate(NYUV2_13.names)), 'and nothing for 255, which is no class'
    assert message.threshold == 0.25 and message.header.stamp.sec > 0
    (publisher,) = robot.node.get_publishers_info_by_topic('/mtan/segmentation/label_info')
    assert publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    assert publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert robot.change('deactivate') and robot.change('activate')
    assert spin_until(lambda: len(infos) >= 2), 'an activation may bring other weights'
