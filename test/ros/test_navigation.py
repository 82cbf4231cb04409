# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The outputs against the rules of their consumers, over DDS.

The truth of a synthetic room stands in the place of the network (truth_node.py), so that every
number is known: what is tested is all that lies between the network and the messages.
"""

from itertools import pairwise
import re

import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from robot import stamp
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from truth import (
    BOXES,
    CEILING,
    DATATYPES,
    FLOOR,
    OBJECTS,
    OUTPUT,
    pixels,
    read_cloud,
    read_image,
    start,
    voxels,
    WALL,
    xyz,
)

FIELDS = {'x': 'f4', 'y': 'f4', 'z': 'f4', 'rgb': 'f4', 'normal_x': 'f4', 'normal_y': 'f4',
          'normal_z': 'f4', 'label': 'u1', 'confidence': 'u1'}
# What RViz's Image display takes (8UC1 and 16UC1 apart, which the node does not publish).
RVIZ_ENCODINGS = {'rgb8', 'bgr8', 'mono8', '32FC1'}
IMAGES = ('segmentation/mask', 'segmentation/confidence', 'segmentation/color',
          'depth/image_rect', 'depth/color', 'normal/image', 'normal/color')
INFOS = tuple(f'{task}/camera_info' for task in ('segmentation', 'depth', 'normal'))
CLOUDS = ('points', 'obstacles')

pytestmark = pytest.mark.usefixtures('in_room')


@pytest.fixture
def frame(robot, collect):
    """Give a function that returns every output of one frame, by topic."""
    received = {topic: collect(kind, f'/mtan/{topic}')
                for kind, topics in ((Image, IMAGES), (CameraInfo, INFOS), (PointCloud2, CLOUDS))
                for topic in topics}

    def take():
        for messages in received.values():
            messages.clear()
        robot.send_until(lambda: all(received.values()) and len(
            {stamp(messages[-1]) for messages in received.values()}) == 1)
        return {topic: messages[-1] for topic, messages in received.items()}

    return take


@pytest.mark.parametrize('stride', [1, 2], ids='obstacles.stride {}'.format)
def test_one_frame_in_the_eyes_of_every_consumer(robot, room, frame, stride):
    start(robot)
    assert robot.set(**{'obstacles.stride': stride}).successful
    outputs = frame()
    same_stamp_frame_and_size(outputs)
    rviz_shows_images(outputs)
    rep_118_depth(outputs)
    depth_image_proc_gives_our_points(outputs)
    semantic_layer_indexes_the_cloud(outputs, room)
    pcl_reads_the_fields(outputs)
    points_lie_on_the_rooms_planes(outputs, room)
    looked_at = (slice(None, None, stride),) * 2
    obstacles_are_no_floor_and_miss_nothing(outputs, room, looked_at)
    every_box_above_5_cm_is_an_obstacle(outputs, room, looked_at)


def same_stamp_frame_and_size(outputs):
    """Every output has the image's header; all but the thinned obstacles its size, too."""
    assert len({(m.header.stamp.sec, m.header.stamp.nanosec) for m in outputs.values()}) == 1
    assert outputs['points'].header.stamp.nanosec == 123456789, "the camera's, not the clock's"
    assert {message.header.frame_id for message in outputs.values()} == {'front_optical'}
    sizes = {topic: (m.height, m.width) for topic, m in outputs.items() if topic != 'obstacles'}
    assert set(sizes.values()) == {OUTPUT}


def rviz_shows_images(outputs):
    """8-bit encodings and 32FC1 without +Inf, rows without padding; 32FC3 has an 8-bit twin."""
    for topic in IMAGES:
        message = outputs[topic]
        if topic != 'normal/image':
            assert message.encoding in RVIZ_ENCODINGS
        assert message.step * message.height == len(message.data) == read_image(message).nbytes
    assert outputs['normal/color'].encoding == 'rgb8'
    # DepthCloud wants a colour image, a depth image and a CameraInfo of one size.
    assert outputs['depth/camera_info'].p[0] > 0


def rep_118_depth(outputs):
    """Metres along z as 32FC1; what is unknown is NaN, never 0 and never infinite."""
    depth = read_image(outputs['depth/image_rect'])
    assert outputs['depth/image_rect'].encoding == '32FC1'
    known = depth[~np.isnan(depth)]
    assert known.size > 0.9 * depth.size and np.isfinite(known).all()
    assert known.min() > 0.1 and known.max() < 10


def depth_image_proc_gives_our_points(outputs):
    """point_cloud_xyz computes x = (u - cx) z / fx from P, for every pixel."""
    info, depth = outputs['depth/camera_info'], read_image(outputs['depth/image_rect'])
    fx, cx, fy, cy = info.p[0], info.p[2], info.p[5], info.p[6]
    v, u = np.indices(depth.shape)
    expected = np.stack([(u - cx) * depth / fx, (v - cy) * depth / fy, depth], axis=-1)
    np.testing.assert_allclose(xyz(read_cloud(outputs['points'])), expected, atol=1e-4)


def semantic_layer_indexes_the_cloud(outputs, room):
    """Nav2's layer takes data[v * width + u] of mask, confidence and cloud for one pixel."""
    mask, confidence, cloud = (outputs[topic] for topic in (
        'segmentation/mask', 'segmentation/confidence', 'points'))
    assert mask.encoding == confidence.encoding == 'mono8'
    assert cloud.height * cloud.width == mask.height * mask.width
    offsets = {field.name: field.offset for field in cloud.fields}
    label, depth = room.label[::2, ::2], room.depth[::2, ::2]
    rng = np.random.default_rng(0)
    for u, v in zip(rng.integers(0, OUTPUT[1], 300), rng.integers(0, OUTPUT[0], 300), strict=True):
        index = v * mask.width + u
        start = index * cloud.point_step
        assert mask.data[index] == label[v, u] == cloud.data[start + offsets['label']]
        expected = (17 * int(label[v, u]) + 5 * v + u) % 256
        assert confidence.data[index] == expected == cloud.data[start + offsets['confidence']]
        z = np.frombuffer(bytes(cloud.data[start + offsets['z']:start + offsets['z'] + 4]), '<f4')
        assert z == pytest.approx(float(depth[v, u]), abs=1e-5)


def pcl_reads_the_fields(outputs):
    """PCL maps by name and type; rgb is a float32 whose bytes are blue, green, red, 0."""
    message = outputs['points']
    assert {f.name: DATATYPES[f.datatype] for f in message.fields} == FIELDS
    assert all(field.count == 1 for field in message.fields)
    places = sorted((f.offset, np.dtype(FIELDS[f.name]).itemsize) for f in message.fields)
    for (offset, size), (following, _) in pairwise([*places, (message.point_step, 0)]):
        assert offset + size <= following
    assert not message.is_bigendian and not message.is_dense
    cloud = read_cloud(message)
    packed = np.ascontiguousarray(cloud['rgb']).view(np.uint32)
    color = np.stack([packed >> shift & 255 for shift in (16, 8, 0)], axis=-1)
    depth = read_image(outputs['depth/image_rect'])
    assert color.reshape(*depth.shape, 3).std() > 10
    normal = np.stack([cloud[f'normal_{axis}'] for axis in 'xyz'], axis=-1)
    np.testing.assert_array_equal(normal, read_image(outputs['normal/image']))
    assert [(f.name, f.offset, DATATYPES[f.datatype]) for f in outputs['obstacles'].fields] == [
        ('x', 0, 'f4'), ('y', 4, 'f4'), ('z', 8, 'f4')]


def points_lie_on_the_rooms_planes(outputs, room):
    """To 1 mm: the floor at 0, ceiling and walls where the room ends, the faces of the boxes."""
    cloud = read_cloud(outputs['points'])
    placed, label = room.place(xyz(cloud)), cloud['label']
    floor, ceiling, wall = (placed[label == index] for index in (FLOOR, CEILING, WALL))
    assert min(map(len, (floor, ceiling, wall))) > 200
    assert np.abs(floor[:, 2]).max() < 1e-3
    assert np.abs(ceiling[:, 2] - room.height).max() < 1e-3
    assert np.abs(np.abs(wall[:, :2]) - room.half).min(axis=1).max() < 1e-3
    for box in BOXES:
        outside = box.outside(placed)[label == OBJECTS]
        near = np.abs(outside[outside < 0.02])
        assert len(near) > 20 and near.max() < 1e-3


def obstacles_are_no_floor_and_miss_nothing(outputs, room, looked_at):
    """Of a voxel grid of 5 cm; whatever is looked at above 5 cm has an obstacle in its voxel."""
    cloud = read_cloud(outputs['points'])
    points, label = xyz(cloud), cloud['label']
    message = outputs['obstacles']
    found = xyz(read_cloud(message))[0]
    assert message.height == 1 and message.is_dense and np.isfinite(found).all()
    shown = pixels(found, outputs['depth/camera_info'])
    np.testing.assert_allclose(points[shown], found, atol=1e-5)
    assert not np.isin(label[shown], (FLOOR, CEILING)).any()
    level = room.normal[::2, ::2][shown] @ room.rotation[:, 2] > 0.9
    assert room.place(found)[level, 2].min() > 0.05, 'by its place, too, none is floor'
    high = (room.place(points)[..., 2] > 0.05) & ~np.isin(label, (FLOOR, CEILING))
    assert high.sum() > 5000

    assert voxels(points[looked_at][high[looked_at]]) <= voxels(found)
    assert len(found) == len(voxels(found)) < high.sum() / 2


def every_box_above_5_cm_is_an_obstacle(outputs, room, looked_at):
    """Not just its sides, which could not be floor, but its top, as near the floor as it is."""
    cloud, found = (xyz(read_cloud(outputs[topic])) for topic in ('points', 'obstacles'))
    for box in BOXES:
        on_top = box.has_on_top(room.place(cloud))
        assert on_top.sum() > 10, 'it is in view'
        seen = cloud[looked_at][on_top[looked_at]]
        if box.height > 0.05:
            assert voxels(seen) <= voxels(found[0]), box
            assert box.has_on_top(room.place(found[0])).any(), box


def test_camera_info_is_scaled_whole(robot, frame):
    """K, P, region of interest and size by one factor; distortion and R as they are."""
    info = robot.camera_info
    info.k, info.d = [200.0, 0, 150, 0, 210, 110, 0, 0, 1], [0.1, -0.2, 0.01, 0.02, 0.3]
    info.p = [190.0, 0, 140, -9.5, 0, 195, 105, 0, 0, 0, 1, 0]
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 20, 10, 200, 100
    child = start(robot)
    outputs = frame()
    for topic in INFOS:
        scaled = outputs[topic]
        np.testing.assert_allclose(scaled.k, [100, 0, 75, 0, 105, 55, 0, 0, 1])
        np.testing.assert_allclose(scaled.p, [95, 0, 70, -4.75, 0, 97.5, 52.5, 0, 0, 0, 1, 0])
        assert (scaled.roi.x_offset, scaled.roi.y_offset) == (10, 5)
        assert (scaled.roi.width, scaled.roi.height) == (100, 50)
        assert scaled.distortion_model == 'plumb_bob' and list(scaled.d) == list(info.d)
        np.testing.assert_array_equal(scaled.r, info.r)
    # The cloud is that of the rectified image: by P. Depth is corrected by its focal length.
    depth_image_proc_gives_our_points(outputs)
    frame()
    warnings = [line for line in child.lines if 'image_proc' in line]
    assert len(warnings) == 1 and "'/camera_info'" in warnings[0] and "'/image'" in warnings[0]


def test_a_camera_that_joins_its_pixels(robot, frame):
    """Its CameraInfo is of the full resolution; the outputs' is of theirs, and the cloud too."""
    info = robot.camera_info
    expected = np.array(info.k) / 2  # the node's own factor
    info.k, info.p = 2 * np.array(info.k) - [0, 0, 0, 0, 0, 0, 0, 0, 1], np.zeros(12)
    info.height, info.width = info.roi.height, info.roi.width = 2 * info.height, 2 * info.width
    info.binning_x = info.binning_y = 2
    child = start(robot)
    outputs = frame()
    for topic in INFOS:
        scaled = outputs[topic]
        np.testing.assert_allclose(scaled.k[:6], expected[:6])
        assert (scaled.binning_x, scaled.binning_y) == (0, 0)
    depth_image_proc_gives_our_points(outputs)
    assert 'differs from the image' not in child.output


def test_a_rectified_image_has_the_distortion_of_its_lens_beside_it(robot, collect):
    """As image_proc publishes it: no word about rectifying what says that it is rectified."""
    robot.images = robot.node.create_publisher(Image, 'image_rect', 1)
    robot.camera_info.d = [0.1, -0.2, 0.01, 0.02, 0.3]
    child = start(robot, '-r', 'image:=image_rect')
    robot.exchange(collect(PointCloud2, '/mtan/points'))
    assert 'image_proc' not in child.output


def test_depth_is_corrected_by_the_focal_length_and_scaled(robot, room, collect):
    depth = collect(Image, '/mtan/depth/image_rect')
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    start(robot, max_depth=40.0)
    robot.exchange(infos)  # An image may overtake the first CameraInfo.
    truth = np.nanmedian(read_image(robot.exchange(depth)))
    robot.camera_info.p[0] = robot.camera_info.p[5] = 2 * robot.camera_info.p[0]
    robot.send_until(lambda: np.nanmedian(read_image(robot.exchange(depth))) > 1.9 * truth)
    assert np.nanmedian(read_image(depth[-1])) == pytest.approx(2 * truth, rel=1e-4)
    assert robot.set(correct_focal_length=False).successful
    assert np.nanmedian(read_image(robot.exchange(depth))) == pytest.approx(truth, rel=1e-4)
    assert robot.set(depth_scale=1.5).successful
    assert np.nanmedian(read_image(robot.exchange(depth))) == pytest.approx(1.5 * truth, rel=1e-4)
    limit = float(1.5 * truth)
    assert robot.set(max_depth=limit).successful
    limited = read_image(robot.exchange(depth))
    assert np.nanmax(limited) <= limit * 1.0001 and 0.4 < np.isnan(limited).mean() < 0.6
    assert robot.spin_until(lambda: robot.says(
        'last warning', r'320×240 with a focal length of .* to 320×240'))


def test_the_cloud_follows_its_parameters_while_it_runs(robot, collect):
    """Only the cloud is subscribed to, as Nav2 does it: the tasks that it needs run."""
    clouds = collect(PointCloud2, '/mtan/points', qos_profile_sensor_data)
    start(robot)
    whole = read_cloud(robot.exchange(clouds))
    assert robot.spin_until(lambda: robot.says(
        'tasks with a subscriber', '^depth, normal, segmentation$'))
    assert np.isfinite(whole['z']).mean() > 0.9

    assert robot.set(**{'points.classes': ['-floor', '-ceiling']}).successful
    cloud = read_cloud(robot.exchange(clouds))
    background = np.isin(cloud['label'], (FLOOR, CEILING))
    np.testing.assert_array_equal(np.isnan(cloud['z']), background | np.isnan(whole['z']))

    assert robot.set(**{'points.classes': ['wall'], 'points.stride': 3}).successful
    message = robot.exchange(clouds)
    assert (message.height, message.width) == (40, 54)
    cloud = read_cloud(message)
    np.testing.assert_array_equal(cloud['label'], whole['label'][::3, ::3])
    assert set(cloud['label'][np.isfinite(cloud['z'])]) == {WALL}
    np.testing.assert_allclose(
        cloud['x'][cloud['label'] == WALL], whole['x'][::3, ::3][cloud['label'] == WALL],
        rtol=1e-5)

    assert robot.set(**{'points.classes': ['all'], 'points.stride': 1,
                        'confidence_threshold': 0.5}).successful
    cloud = read_cloud(robot.exchange(clouds))
    assert 0.4 < (cloud['label'] == 255).mean() < 0.6
    np.testing.assert_array_equal(np.isnan(cloud['z']), np.isnan(whole['z']))
    assert robot.set(**{'points.confident_only': True}).successful
    cloud = read_cloud(robot.exchange(clouds))
    np.testing.assert_array_equal(
        np.isnan(cloud['z']), np.isnan(whole['z']) | (cloud['label'] == 255))

    assert robot.set(**{'points.confident_only': False,
                        'points.max_edge_angle': 60.0}).successful
    cloud = read_cloud(robot.exchange(clouds))
    rays, normal = xyz(whole), np.stack([whole[f'normal_{axis}'] for axis in 'xyz'], axis=-1)
    cosine = -(rays * normal).sum(-1) / np.linalg.norm(rays, axis=-1)
    clear = np.abs(cosine - 0.5) > 1e-3
    np.testing.assert_array_equal(np.isfinite(cloud['z'])[clear], (cosine > 0.5)[clear])

    for values, reason in [
        ({'points.classes': ['flor']}, "points.classes.*'flor'.*floor"),
        ({'points.stride': 0}, 'points.stride.*range'),
        ({'obstacles.voxel_size': 0.0}, 'obstacles.voxel_size.*range'),
    ]:
        result = robot.set(**values)
        assert not result.successful
        assert re.search(reason, result.reason), result.reason


def test_the_obstacles_follow_their_parameters_while_it_runs(robot, room, collect):
    obstacles = collect(PointCloud2, '/mtan/obstacles', qos_profile_sensor_data)
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    child = start(robot)

    def found():
        return xyz(read_cloud(robot.exchange(obstacles)))[0]

    def found_from_above():
        points = room.place(found())
        return [box.height for box in BOXES if box.has_on_top(points).any()]

    whole = found()
    assert found_from_above() == [0.052, 0.10, 0.30, 0.50]
    assert robot.set(**{'obstacles.min_height': 0.2}).successful
    assert found_from_above() == [0.30, 0.50]
    assert robot.set(**{'obstacles.min_height': 0.04,
                        'obstacles.floor_classes': ['floor', 'objects']}).successful
    assert found_from_above() == [], 'floor by class and by normal'
    assert robot.set(**{'obstacles.floor_classes': ['floor'],
                        'obstacles.ceiling_classes': ['sky']}).successful
    shown = pixels(found(), infos[-1])
    assert (room.label[::2, ::2][shown] != CEILING).all(), 'it faces down and is high'

    assert not child.wait_for_line('obstacles.floor_classes', 0)
    assert robot.set(**{'obstacles.floor_classes': ['flor']}).successful
    assert child.wait_for_line(
        "parameter 'obstacles.floor_classes': none of flor is a class of these weights", 5)

    assert robot.set(**{'obstacles.voxel_size': 0.2}).successful
    assert 10 < len(found()) < len(whole) / 4
    assert robot.set(**{'points.max_edge_angle': 60.0}).successful
    points = found()
    normal = room.normal[::2, ::2][pixels(points, infos[-1])]
    assert (-(points * normal).sum(-1) > 0.499 * np.linalg.norm(points, axis=-1)).all()
