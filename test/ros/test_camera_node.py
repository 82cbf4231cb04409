# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""camera_node as a process of its own, seen over DDS."""

import signal
import time

import cv2
import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtan_perception.node.image_codec import decode_compressed, decode_image

MODULE = 'mtan_perception.node.camera_node'


def stamp(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def parameters(**values):
    arguments = ['--ros-args']
    for name, value in values.items():
        arguments += ['-p', f'{name}:={value}']
    return arguments


def values(message, dtype, channels):
    array = np.frombuffer(message.data, dtype)
    return array.reshape(message.height, message.width, channels)


@pytest.fixture
def folder(tmp_path):
    """Give a folder of six flat images and, in their middle, one that cannot be decoded."""
    path = tmp_path / 'images'
    path.mkdir()
    for i in range(6):
        image = np.empty((48, 64, 3), np.uint8)
        image[:] = (40 * i, 0, 255)  # blue says which; red says that the order is BGR
        assert cv2.imwrite(str(path / f'{i}.png'), image)
    (path / '2b.png').write_bytes(b'cut off')
    return path


def test_synthetic_camera_publishes_image_and_truth(start_process, collect, spin_until):
    topics = {
        '/robot/image_raw': (Image, 'rgb8', 3), '/robot/truth/mask': (Image, 'mono8', 1),
        '/robot/truth/depth': (Image, '32FC1', 4), '/robot/truth/normal': (Image, '32FC3', 12)}
    received = {topic: collect(kind, topic) for topic, (kind, _, _) in topics.items()}
    infos = collect(CameraInfo, '/robot/camera_info')
    start_process(MODULE, *parameters(width=96, height=72, rate=4.0, frame_id='eye', seed=3),
                  '-r', '__ns:=/robot')
    assert spin_until(lambda: len(infos) > 3 and all(len(m) > 3 for m in received.values()), 40)
    by_stamp = [{stamp(m): m for m in messages} for messages in (*received.values(), infos)]
    common = set.intersection(*(set(messages) for messages in by_stamp))
    assert len(common) >= 3
    image, mask, depth, normal, info = (messages[max(common)] for messages in by_stamp)
    for message, (_, encoding, pixel) in zip(
            (image, mask, depth, normal), topics.values(), strict=True):
        assert message.header.frame_id == 'eye'
        assert (message.width, message.height) == (96, 72)
        assert message.encoding == encoding
        assert message.step == 96 * pixel and len(message.data) == 72 * message.step
    assert (info.width, info.height) == (96, 72) and info.header.frame_id == 'eye'
    assert 0 < info.k[0] == info.k[4] and info.p[0] == info.k[0]
    assert info.k[2] == pytest.approx(47.5, abs=1) and info.k[5] == pytest.approx(35.5, abs=1)
    assert values(mask, np.uint8, 1).max() < 13
    z, n = values(depth, np.float32, 1), values(normal, np.float32, 3)
    assert 0.05 < z.min() and z.max() < 50
    np.testing.assert_allclose(np.linalg.norm(n, axis=-1), 1, atol=1e-3)
    v, u = np.mgrid[:72, :96]
    rays = np.dstack(((u - info.k[2]) / info.k[0], (v - info.k[5]) / info.k[4], np.ones_like(u)))
    assert ((n * rays).sum(-1) < 0.02).mean() > 0.99  # toward the camera
    frames = [decode_image(m).astype(int) for m in received['/robot/image_raw']]
    assert frames[-1].std() > 5 and np.abs(frames[-1] - frames[0]).max() > 20  # it moves


def test_folder_in_order_at_its_rate(folder, start_process, collect, spin_until):
    images = collect(Image, '/image_raw')
    infos = collect(CameraInfo, '/camera_info')
    jpegs = collect(CompressedImage, '/image_raw/compressed')
    camera = start_process(MODULE, *parameters(source=folder, rate=20.0, hfov=90.0))
    assert spin_until(lambda: len(images) > 40 and len(jpegs) > 2)
    first = images[0]
    assert (first.encoding, first.width, first.height) == ('bgr8', 64, 48)
    shown = [round(decode_image(m)[0, 0, 2] / 40) for m in images]
    assert shown[:12] == [(shown[0] + i) % 6 for i in range(12)]
    assert (decode_image(first)[..., 0] == 255).all()
    period = np.median(np.diff([stamp(m) for m in images])) / 1e9
    assert period == pytest.approx(0.05, rel=0.1)
    assert {stamp(m) for m in images[5:15]} <= {stamp(m) for m in infos}
    assert infos[0].k[0] == pytest.approx(32) and infos[0].k[2] == 31.5
    assert (infos[0].width, infos[0].height) == (64, 48)
    assert 'jpeg' in jpegs[0].format
    assert np.abs(decode_compressed(jpegs[0])[..., 0].astype(int) - 255).max() <= 3
    skipped = [line for line in camera.lines if '2b.png' in line]
    assert len(skipped) == 1 and 'cannot be decoded' in skipped[0]


def test_large_images_get_through(tmp_path, start_process, collect, spin_until):
    """Though nobody has named a profile of Fast DDS, whose defaults have no room for them."""
    assert cv2.imwrite(str(tmp_path / 'large.png'), np.zeros((960, 1280, 3), np.uint8))
    images = collect(Image, '/image_raw', qos_profile_sensor_data)
    start_process(MODULE, *parameters(source=tmp_path / 'large.png', rate=10.0), env={
        f'{name}_DEFAULT_PROFILES_FILE': '' for name in ('FASTDDS', 'FASTRTPS')})
    assert spin_until(lambda: len(images) >= 20, 20), len(images)


def test_ended_source_ends_the_node(folder, start_process, collect, spin_until):
    """Which waits for somebody to see it."""
    camera = start_process(MODULE, *parameters(source=folder, rate=50.0, loop='false'))
    assert camera.wait_for_line('waiting for a subscriber', 20)
    images = collect(Image, '/image_raw')
    assert spin_until(lambda: images)
    assert camera.wait(20) == 0
    assert 'the source has ended' in camera.output and 'Traceback' not in camera.output


@pytest.mark.parametrize('overrides, message', [
    ({'source': '/absent.mp4'}, "source '/absent.mp4': no such file"),
    ({'rate': -1.0}, 'rate'),
    ({'width': 'wide'}, 'width'),
    ({'camera_info_url': '/absent.yaml'}, "camera_info_url '/absent.yaml': No such file"),
])
def test_unusable_parameter_ends_with_its_name(start_process, overrides, message):
    camera = start_process(MODULE, *parameters(**overrides))
    assert camera.wait(20) == 1
    assert message in camera.output and 'Traceback' not in camera.output


def test_calibration_of_another_size_is_not_published(
        folder, tmp_path, start_process, collect, spin_until):
    calibration = tmp_path / 'camera.yaml'
    calibration.write_text(
        'image_width: 64\nimage_height: 64\n'
        'camera_matrix: {data: [50, 0, 32, 0, 50, 32, 0, 0, 1]}\n'
        'distortion_coefficients: {data: [0.1, 0, 0, 0, 0]}\n'
        'rectification_matrix: {data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}\n'
        'projection_matrix: {data: [50, 0, 32, 0, 0, 50, 32, 0, 0, 0, 1, 0]}\n')
    images, infos = collect(Image, '/image_raw'), collect(CameraInfo, '/camera_info')
    wrong = start_process(MODULE, *parameters(source=folder, camera_info_url=calibration))
    assert spin_until(lambda: len(images) > 3)
    assert not infos
    assert 'is for 64×64 but the images are 64×48' in wrong.output
    assert wrong.output.count('is for 64×64') == 1
    wrong.stop()
    start_process(MODULE, *parameters(
        source=folder, camera_info_url=calibration, width=64, height=64))
    assert spin_until(lambda: infos)
    assert infos[0].k[0] == 50 and infos[0].d[0] == 0.1 and infos[0].height == 64


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('source', ['synthetic', 'absent camera'])
def test_signal_ends_the_node(start_process, collect, spin_until, number, source):
    if source == 'synthetic':
        images = collect(Image, '/image_raw')
        camera = start_process(MODULE, *parameters(width=96, height=72))
        assert spin_until(lambda: images, 40)
    else:
        camera = start_process(MODULE, *parameters(source='/dev/video99'))
        assert camera.wait_for_line('gives no images', 20)
    camera.send_signal(number)
    start = time.monotonic()
    assert camera.wait(5) == 0
    assert time.monotonic() - start < 2
    assert 'Traceback' not in camera.output
