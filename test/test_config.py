# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The files in config/ agree with the code."""

from pathlib import Path
import xml.etree.ElementTree as ElementTree

import pytest
import yaml

from mtan_perception.labels import NYUV2_13, read_label_set

CONFIG = Path(__file__).resolve().parent.parent / 'config'


def test_mtan_yaml_holds_every_parameter_with_its_default():
    pytest.importorskip('rclpy', reason='the parameter table is part of the node, which needs ROS')
    from mtan_perception.node.parameters import SPECIFICATIONS
    content = yaml.safe_load((CONFIG / 'mtan.yaml').read_text(encoding='utf-8'))
    assert list(content) == ['/**']
    expected = {name: specification.default for name, specification in SPECIFICATIONS.items()}
    values = content['/**']['ros__parameters']
    assert values == expected
    # 1 == 1.0 == True, but not for ROS.
    assert {name: type(value) for name, value in values.items()} \
        == {name: type(value) for name, value in expected.items()}


def test_mtan_yaml_explains_every_parameter():
    lines = (CONFIG / 'mtan.yaml').read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines):
        if line.startswith('    ') and not line.lstrip().startswith('#'):
            shares_a_comment = line.split(':')[0].strip() in ('input_width', 'max_depth')
            assert shares_a_comment or lines[number - 1].startswith('    # '), line


@pytest.mark.parametrize('path', sorted((CONFIG / 'labels').glob('*.yaml')), ids=lambda p: p.name)
def test_label_files_are_readable(path):
    labels = read_label_set(path)
    assert len(set(labels.names)) == len(labels.names)
    assert len(set(labels.colors)) == len(labels.colors)


def test_nav2_costmap_reads_topics_that_there_are_and_knows_every_class():
    pytest.importorskip('rclpy', reason='the table of topics is part of the node')
    from mtan_perception.node.outputs import IMAGE_OUTPUTS
    content = yaml.safe_load((CONFIG / 'nav2_costmap.yaml').read_text(encoding='utf-8'))
    costmap = content['local_costmap']['local_costmap']['ros__parameters']
    assert set(costmap['plugins']) <= set(costmap)
    published = {*IMAGE_OUTPUTS, 'points', 'obstacles', 'segmentation/label_info'}
    voxels, semantic = costmap['voxel_layer'], costmap['semantic_segmentation_layer']
    for layer in (voxels, semantic):
        for source in layer['observation_sources'].split():
            topics = [value for key, value in layer[source].items() if key.endswith('topic')]
            assert topics and {topic.removeprefix('/mtan/') for topic in topics} <= published
    for source in (voxels, voxels['obstacles'], voxels['points']):
        assert source['max_obstacle_height'] > 0, 'the default takes nothing'
    assert voxels['z_voxels'] <= 16, "the layer's limit"
    camera = semantic['camera']
    classes = [name for kind in camera['class_types'] for name in camera[kind]['classes']]
    assert sorted(classes) == sorted(NYUV2_13.names), 'each in one type'
    costs = {name: camera[kind]['max_cost']
             for kind in camera['class_types'] for name in camera[kind]['classes']}
    assert costs['floor'] == 0 and costs['wall'] == 254


def test_fastdds_profile_has_room_for_images_and_reaches_other_machines():
    name = '{http://www.eprosima.com}'
    root = ElementTree.parse(CONFIG / 'fastdds.xml').getroot()
    transports = {
        item.findtext(f'{name}transport_id'): item
        for item in root.iter(f'{name}transport_descriptor')}
    used = [item.text for item in root.find(f'.//{name}userTransports')]
    assert [transports[item].findtext(f'{name}type') for item in used] == ['SHM', 'UDPv4']
    assert int(transports[used[0]].findtext(f'{name}segment_size')) == 32 * 1024 ** 2
    assert int(transports[used[0]].findtext(f'{name}maxMessageSize')) == 8 * 1024 ** 2
    assert root.findtext(f'.//{name}useBuiltinTransports') == 'false'
    assert root.find(f'.//{name}participant').get('is_default_profile') == 'true'


def test_rviz_view_shows_input_images_and_cloud():
    content = yaml.safe_load((CONFIG / 'mtan.rviz').read_text(encoding='utf-8'))
    view = content['Visualization Manager']
    displays = [(item['Class'].rpartition('/')[2], item) for item in view['Displays']]
    assert [item['Topic']['Value'] for kind, item in displays if kind == 'Image'] == [
        '/image', '/mtan/segmentation/color', '/mtan/depth/color', '/mtan/normal/color']
    cloud = dict(displays)['DepthCloud']
    assert cloud['Depth Map Topic'] == '/mtan/depth/image_rect'
    assert cloud['Color Image Topic'] == '/mtan/segmentation/color'
    clouds = [item for kind, item in displays if kind == 'PointCloud2']
    assert [item['Topic']['Value'] for item in clouds] == ['/mtan/points', '/mtan/obstacles']
    assert not any(item['Enabled'] for item in clouds), 'what nobody looks at costs nothing'
    assert view['Global Options']['Fixed Frame'] == 'camera_optical_frame'
