# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What clouds need and do not get: each time one message that says so, and the rest goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from truth import (
    camera_info_of,
    CEILING,
    FLOOR,
    known_room,
    OUTPUT,
    pixels,
    read_cloud,
    start,
    voxels,
    xyz,
)

pytestmark = pytest.mark.usefixtures('in_room')


@pytest.fixture
def transform(tmp_path):
    """Give a function that says what TF knows, and the environment in which the node finds it."""
    path = tmp_path / 'transform.json'

    def write(**content):
        path.write_text(json.dumps(content))

    write()
    stand_ins = Path(__file__).parent
    write.env = {'TRANSFORM': str(path), 'PYTHONPATH': f'{stand_ins}:{stand_ins / "stand_ins"}'}
    return write


def warned(robot, child, text: str) -> bool:
    """Tell whether the diagnostics hold the warning, and the log has it, but not every time."""
    assert robot.spin_until(lambda: robot.says('last warning', text)), robot.values()
    lines = [line for line in child.lines if text in line]
    assert 1 <= len(lines) <= 2, 'warnings are throttled, not silent'
    return True


def test_without_a_clock_the_diagnostics_still_come(robot):
    """A bag that is paused, or played without --clock, is when they are needed."""
    robot.start(use_sim_time=True)
    assert robot.spin_until(lambda: robot.says('last warning', 'no image has come'), 15.0)


def test_no_camera_info(robot, room, collect):
    clouds, depth = collect(PointCloud2, '/mtan/points'), collect(Image, '/mtan/depth/image_rect')
    robot.camera_info = None
    child = start(robot)
    robot.exchange(depth)
    robot.send_until(lambda: robot.says('last warning', 'none has come'))
    robot.exchange(depth)
    assert warned(robot, child, "none has come on topic '/camera_info'")
    assert not clouds
    robot.camera_info = camera_info_of(room)
    robot.exchange(clouds)


def test_camera_info_without_a_calibration(robot, room, collect):
    clouds, depth = collect(PointCloud2, '/mtan/points'), collect(Image, '/mtan/depth/image_rect')
    robot.camera_info.k = np.zeros(9)
    start(robot)
    robot.exchange(depth)
    robot.send_until(lambda: robot.says('last error', 'focal lengths in K are 0 and 0'))
    robot.camera_info = camera_info_of(room)
    robot.camera_info.p[5] = 0.0
    robot.send_until(lambda: robot.says('last error', 'focal lengths in P are .* and 0'))
    robot.camera_info = camera_info_of(room)
    robot.camera_info.k[0] = np.inf
    robot.send_until(lambda: robot.says('last error', 'focal lengths in K are inf and'))
    robot.camera_info = camera_info_of(room)
    robot.camera_info.k[2] = np.nan
    robot.send_until(lambda: robot.says('last error', r'the principal point in K is \(nan, '))
    robot.camera_info.k[2] = 1e300
    robot.send_until(lambda: robot.says('last error', r'the principal point in K is \(1e\+300, '))
    robot.camera_info.k[[0, 2]] = 1e-300, 0
    robot.send_until(lambda: robot.says('last error', 'focal lengths in K are 1e-300 and'))
    robot.camera_info = camera_info_of(room)
    robot.camera_info.p[[0, 5, 10]] = 100, 100, 1
    robot.camera_info.p[3] = np.nan
    robot.send_until(lambda: robot.says('last error', r'P has values that are no numbers, .*nan'))
    robot.exchange(depth)
    assert not clouds
    robot.camera_info = camera_info_of(room)
    robot.exchange(clouds)


def test_a_camera_that_changes_its_resolution(robot, room, collect):
    clouds = collect(PointCloud2, '/mtan/points')
    depth = collect(Image, '/mtan/depth/image_rect')
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    child = start(robot)
    before = robot.exchange(clouds)
    # First only the image is smaller: its CameraInfo does not fit, and depth goes on without it.
    small = known_room(OUTPUT)
    robot.image = small.image
    robot.send_until(lambda: robot.says('last error', '320×240 differs from the image, 160×120'))
    number = len(clouds)
    robot.exchange(depth)
    assert len(clouds) == number
    robot.camera_info = camera_info_of(small)
    robot.exchange(clouds)
    assert warned(robot, child, 'changed from 320×240')
    after = robot.exchange(clouds)
    assert (after.height, after.width) == (before.height, before.width) == OUTPUT
    np.testing.assert_allclose(infos[-1].k, small.intrinsics.ravel())
    # Half a pixel lies between the two cameras' centres, so the same room is seen shifted by it.
    points = [xyz(read_cloud(message)) for message in (before, after)]
    assert np.nanmedian(np.abs(points[0] - points[1])) < 0.02


def test_depth_that_is_switched_off(robot, collect):
    clouds, mask = collect(PointCloud2, '/mtan/points'), collect(Image, '/mtan/segmentation/mask')
    child = start(robot, tasks='[segmentation]')
    robot.exchange(mask)
    assert warned(robot, child, "need depth, which parameter 'tasks' leaves out")
    assert not clouds
    assert robot.set(tasks=['segmentation', 'depth']).successful
    cloud = read_cloud(robot.exchange(clouds))
    assert np.isnan(cloud['normal_z']).all() and np.isfinite(cloud['z']).mean() > 0.9
    assert robot.set(tasks=['depth']).successful
    robot.send_until(lambda: (read_cloud(clouds[-1])['label'] == 255).all())


def test_a_frame_id_that_is_empty_or_changes(robot, collect):
    clouds = collect(PointCloud2, '/mtan/points')
    child = start(robot)
    robot.exchange(clouds)
    robot.frame_id = ''
    assert robot.exchange(clouds).header.frame_id == ''
    assert warned(robot, child, "topic '/image': the frame_id is empty")
    robot.pause(5.0)
    robot.frame_id = 'rear_optical'
    assert robot.exchange(clouds).header.frame_id == 'rear_optical'
    assert warned(robot, child, "the frame_id changed from 'front_optical' to 'rear_optical'")


def quaternion(rotation: np.ndarray) -> list[float]:
    """Return x, y, z, w of a rotation matrix: the eigenvector of its fourfold average."""
    a = rotation
    k = np.array([
        [a[0, 0] - a[1, 1] - a[2, 2], 0, 0, 0],
        [a[1, 0] + a[0, 1], a[1, 1] - a[0, 0] - a[2, 2], 0, 0],
        [a[2, 0] + a[0, 2], a[2, 1] + a[1, 2], a[2, 2] - a[0, 0] - a[1, 1], 0],
        [a[2, 1] - a[1, 2], a[0, 2] - a[2, 0], a[1, 0] - a[0, 1], np.trace(a)]])
    return np.linalg.eigh(k)[1][:, 3].tolist()


def floor_share(message, info, cloud) -> float:
    """Return which share of the obstacles is floor."""
    found = xyz(read_cloud(message))[0]
    return float(np.isin(cloud['label'][pixels(found, info)], (FLOOR, CEILING)).mean())


def test_a_transform_that_is_missing_wrong_or_late(robot, room, collect, transform):
    obstacles, clouds = (collect(PointCloud2, f'/mtan/{name}') for name in ('obstacles', 'points'))
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    child = start(robot, env=transform.env)
    message, cloud = robot.exchange(obstacles), read_cloud(robot.exchange(clouds))
    robot.exchange(infos)
    robot.send_until(lambda: robot.says('last warning', 'no transform'))
    assert warned(robot, child, "no transform from 'front_optical' to 'base_link'")
    assert floor_share(message, infos[-1], cloud) == 0, 'the floor is fitted'

    down = (room.rotation @ -room.position).tolist()
    # A base that lies on its side is believed: then the floor is a wall.
    transform(transform=[0.0, 0, 0, 1, *down], late=False)
    robot.send_until(lambda: floor_share(obstacles[-1], infos[-1], cloud) > 0.05)
    robot.pause(5.0)
    transform(transform=[*quaternion(room.rotation), *down], late=True)
    robot.send_until(lambda: floor_share(obstacles[-1], infos[-1], cloud) == 0)
    assert warned(robot, child, 'is not there at the stamp of the image, so the latest is used')
    transform(transform=[*quaternion(room.rotation), *down], late=False)
    robot.exchange(obstacles)
    assert floor_share(robot.exchange(obstacles), infos[-1], cloud) == 0
    assert robot.set(**{'obstacles.base_frame': ''}).successful
    transform()
    warnings = robot.values()['warnings: tf']
    robot.exchange(obstacles)
    robot.pause(1.5)
    assert robot.values()['warnings: tf'] == warnings


def test_no_floor_and_no_transform(robot, room, collect):
    """By class alone, with a word about it: the box in view is level and yet no floor."""
    obstacles, clouds = (collect(PointCloud2, f'/mtan/{name}') for name in ('obstacles', 'points'))
    # The floor in view begins one centimetre behind this.
    child = start(robot, **{
        'obstacles.base_frame': "''", 'max_depth': 1.77, 'obstacles.stride': 1})
    found, cloud = (robot.exchange(messages) for messages in (obstacles, clouds))
    assert warned(robot, child, 'no floor is in view')
    points, label = xyz(read_cloud(cloud)), read_cloud(cloud)['label']
    known = np.isfinite(points[..., 2])
    level = known & (room.normal[::2, ::2] @ room.rotation[:, 2] > 0.9)
    assert level.sum() > 50 and not (known & (label == FLOOR)).any()
    assert voxels(points[known & (label != CEILING)]) <= voxels(xyz(read_cloud(found))[0])


def test_a_frame_without_a_single_known_depth(robot, collect):
    """Clouds of nothing: one without numbers, one without points; no error."""
    obstacles, clouds = (collect(PointCloud2, f'/mtan/{name}') for name in ('obstacles', 'points'))
    start(robot, **{'obstacles.base_frame': "''", 'min_depth': 0.1, 'max_depth': 0.2})
    message = robot.exchange(obstacles)
    assert (message.height, message.width, len(message.data)) == (1, 0, 0)
    assert message.point_step == 12 and message.is_dense
    robot.exchange(clouds)
    assert (clouds[-1].height, clouds[-1].width) == OUTPUT
    assert np.isnan(read_cloud(clouds[-1])['z']).all()
    robot.pause(1.5)
    assert 'last error' not in robot.values()
