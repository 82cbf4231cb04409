# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""One node and one engine for several cameras, over DDS."""

import numpy as np
import pytest
from robot import Robot, stamp
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from truth import CAMERA, camera_info_of, known_room, OUTPUT, read_image, start

# Twice the size of the outputs, and their size: they need not be alike.
SIZES = {'front': CAMERA, 'left': OUTPUT}


@pytest.fixture(scope='module')
def rooms():
    return {name: known_room(size) for name, size in SIZES.items()}


@pytest.fixture
def cameras(ros_node, spin_until, start_process, rooms):
    cameras = {}
    for name, room in rooms.items():
        camera = cameras[name] = Robot(ros_node, spin_until, start_process, name)
        camera.image, camera.camera_info = room.image, camera_info_of(room)
        camera.frame_id = f'{name}_optical'
    cameras['left'].count = 5000  # Its stamps tell whose frame it was.
    return cameras


def launch(cameras, **parameters):
    child = start(cameras['front'], cameras='[front, left]', **parameters)
    cameras['left'].wait_until_active(child)
    return child


def test_each_camera_has_its_own_stamps_intrinsics_and_clouds(cameras, rooms, collect):
    received = {name: [collect(kind, f'/mtan/{name}/{topic}') for kind, topic in (
        (Image, 'depth/image_rect'), (CameraInfo, 'depth/camera_info'), (PointCloud2, 'points'))]
        for name in cameras}
    launch(cameras)
    for name, camera in cameras.items():
        camera.send_until(lambda m=received[name]: all(m) and len(
            {stamp(messages[-1]) for messages in m}) == 1)
        depth, info, cloud = (messages[-1] for messages in received[name])
        assert stamp(depth) > (6000 if name == 'left' else 1000)
        assert {m.header.frame_id for m in (depth, info, cloud)} == {f'{name}_optical'}
        assert {(m.height, m.width) for m in (depth, info, cloud)} == {OUTPUT}
        scale = OUTPUT[0] / SIZES[name][0]
        assert info.k[2] == pytest.approx(rooms[name].intrinsics[0, 2] * scale)
    assert stamp(received['front'][0][-1]) < 6000, 'only answers to its own frames'
    # Half a pixel lies between the two; apart from that it is the same room.
    depths = [read_image(received[name][0][-1]) for name in cameras]
    assert np.nanmedian(np.abs(depths[0] - depths[1])) < 0.02
    topics = {name for name, _ in cameras['front'].node.get_topic_names_and_types()}
    assert '/mtan/depth/image_rect' not in topics and '/mtan/segmentation/labels' in topics


def test_frames_that_wait_together_go_through_the_engine_together(cameras, collect, spin_until):
    """The stand-in engine gives the size of a batch as the seconds that it took."""
    depth = {name: collect(Image, f'/mtan/{name}/depth/image_rect') for name in cameras}
    launch(cameras, max_rate=2.0)
    both = cameras.values()

    def together():
        for camera in both:
            camera.send()
        spin_until(lambda: False, 0.3)
        return all(camera.says('batch (ms)', '^2.0$') for camera in both)

    assert spin_until(together, 30.0)
    assert all(depth.values())


def test_a_fast_camera_leaves_the_slow_one_its_turn(cameras, collect, spin_until):
    depth = {name: collect(Image, f'/mtan/{name}/depth/image_rect') for name in cameras}
    launch(cameras, max_rate=10.0)
    front, left = cameras.values()
    left.exchange(depth['left'])
    left.pause(2.5)  # for what the start has left on its way, and for diagnostics of it
    answered, dropped = len(depth['left']), left.values()['frames dropped for newer ones']
    timer = front.node.create_timer(1 / 40, front.send)
    for sent in range(1, 9):
        left.send()
        assert spin_until(lambda n=answered + sent: len(depth['left']) >= n, 5.0), sent
    timer.cancel()
    assert spin_until(lambda: front.counts('frames dropped for newer ones', 5))
    assert left.says('frames dropped for newer ones', f'^{dropped}$')


def test_a_camera_that_stops_and_one_that_fails_leave_the_other_alone(
        cameras, collect, spin_until):
    depth = {name: collect(Image, f'/mtan/{name}/depth/image_rect') for name in cameras}
    launch(cameras)
    front, left = cameras.values()
    for name, camera in cameras.items():
        camera.exchange(depth[name])

    def messages():
        latest = front.diagnostics[-1].status if front.diagnostics else []
        return {status.name: status.message for status in latest}

    def left_is_missed():
        front.send()
        spin_until(lambda: False, 0.2)
        return messages() == {'mtan: front: inference': 'running',
                              'mtan: left: inference': 'no image arrives'}

    assert spin_until(left_is_missed)

    def left_is_reported():
        front.send()
        spin_until(lambda: False, 0.2)
        return left.says('last warning', "no image has come on topic '/left/image' for 5 s, "
                         r'which has 1 publisher\(s\); see whether they publish')

    assert spin_until(left_is_reported)
    assert 'last warning' not in front.values()
    left.send(step=1)
    front.exchange(depth['front'])
    assert spin_until(lambda: left.says('last error', "topic '/left/image'.*step 1"))
    assert 'last error' not in front.values()
    left.camera_info = None
    left.exchange(depth['left'])
    front.exchange(depth['front'])


def test_more_sets_of_tasks_than_models_are_kept(ros_node, spin_until, start_process, collect):
    """Each has to be built again and again: slow, but nobody goes without."""
    pytest.importorskip('onnxruntime')
    topics = ['segmentation/mask'], ['depth/image_rect'], ['normal/image'], [
        'depth/image_rect', 'normal/image']
    cameras = [Robot(ros_node, spin_until, start_process, name) for name in 'abcd']
    images = [collect(Image, f'/mtan/{camera}/{topic}')
              for camera, some in zip('abcd', topics, strict=True) for topic in some]
    child = cameras[0].start(cameras='[a, b, c, d]', backend='onnxruntime')
    for camera in cameras:
        camera.wait_until_active(child)
    ros_node.create_timer(0.2, lambda: [camera.send() for camera in cameras])
    assert spin_until(lambda: all(images), 40), [len(some) for some in images]


def test_the_network_itself_serves_both(cameras, collect):
    """Two images of two shapes, through the real engine: each output has its own image's."""
    clouds = {name: collect(PointCloud2, f'/mtan/{name}/points') for name in cameras}
    left = cameras['left']
    left.image, left.camera_info.width = left.image[:, :120], 120
    child = cameras['front'].start(cameras='[front, left]')
    for name, camera in cameras.items():
        camera.wait_until_active(child)
        message = camera.exchange(clouds[name])
        assert (message.height, message.width) == (60, 80 if name == 'front' else 60)
        assert message.header.frame_id == f'{name}_optical'
