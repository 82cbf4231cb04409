# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Sources read real files that the tests write; a camera is one that the tests act out."""

import itertools
import math
from pathlib import Path
import threading
import time

import cv2
import numpy as np
import pytest

from mtan_perception.node import camera_sources
from mtan_perception.node.camera_sources import (
    camera_frames,
    fit,
    intrinsics_from_fov,
    open_source,
    pinhole,
    read_calibration,
    SourceError,
    SourceOptions,
    synthetic_threads,
)
from mtan_perception.synthetic import render

ONCE = SourceOptions(loop=False)


def flat(value, height=24, width=32):
    return np.full((height, width, 3), value, np.uint8)


def opened(name, options=ONCE, report=None):
    return open_source(str(name), options, threading.Event(), report or pytest.fail)


def values(frames):
    """Tell flat frames apart by their grey value, in steps of 10 so that JPEG does not blur it."""
    return [int(round(frame.image.mean() / 10)) for frame in frames]


@pytest.fixture
def folder(tmp_path):
    for i in (3, 1, 2):
        assert cv2.imwrite(str(tmp_path / f'{i}.png'), flat(10 * i))
    (tmp_path / 'notes.txt').write_text('not an image')
    return tmp_path


@pytest.fixture
def video(tmp_path):
    path = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 20.0, (32, 24))
    assert writer.isOpened()
    for i in range(10):
        writer.write(flat(20 * i))
    writer.release()
    return path


def test_folder_is_sorted_and_ends(folder):
    source = opened(folder)
    frames = list(source.frames)
    assert values(frames) == [1, 2, 3]
    assert frames[0].encoding == 'bgr8' and frames[0].truth is None
    assert source.rate == 10.0 and not source.live


@pytest.mark.parametrize('cores, rate, threads', [(1, 1, 1), (2, 2, 1), (16, 5, 8)])
def test_rooms_leave_the_network_its_cores(monkeypatch, cores, rate, threads):
    monkeypatch.setattr(camera_sources, 'usable_cores', lambda: cores)
    assert (opened('synthetic').rate, synthetic_threads()) == (rate, threads)
    assert opened('synthetic', SourceOptions(rate=12.0)).rate == 12.0


def test_folder_loops(folder):
    frames = opened(folder, SourceOptions(loop=True)).frames
    assert values(itertools.islice(frames, 7)) == [1, 2, 3, 1, 2, 3, 1]


def test_corrupt_image_is_named_once_and_skipped(folder):
    (folder / '2.png').write_bytes(b'\x89PNG\r\n\x1a\n cut off')
    reports = []
    frames = opened(folder, SourceOptions(loop=True), reports.append).frames
    assert values(itertools.islice(frames, 5)) == [1, 3, 1, 3, 1]
    assert len(reports) == 1
    assert str(folder / '2.png') in reports[0] and '1 of 3 images' in reports[0]


def test_folder_of_corrupt_images_is_an_error(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no JPEG')
    reports = []
    with pytest.raises(SourceError, match=r'none of the 1 image'):
        next(opened(tmp_path, SourceOptions(loop=True), reports.append).frames)
    assert 'a.jpg' in reports[0]


def test_single_image(folder):
    assert values(opened(folder / '3.png').frames) == [3]
    looped = opened(folder / '3.png', SourceOptions(loop=True, rate=4.0))
    assert looped.rate == 4.0
    assert values(itertools.islice(looped.frames, 1)) == [3]
    (folder / '3.png').unlink()  # it is read once, and not at the rate of a camera
    assert values(itertools.islice(looped.frames, 2)) == [3, 3]


def test_video_ends_and_loops(video):
    source = opened(video)
    assert source.rate == pytest.approx(20.0)
    assert values(source.frames) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    looped = opened(video, SourceOptions(loop=True))
    assert values(itertools.islice(looped.frames, 12))[9:] == [18, 0, 2]


def test_video_below_its_rate_keeps_its_own_time(video):
    source = opened(video, SourceOptions(loop=False, rate=8.0))
    assert source.rate == 8.0
    assert values(source.frames) == [0, 6, 10, 16]  # frames 0, 3 (2.5), 5, 8 (7.5)
    assert opened(video, SourceOptions(loop=False, rate=60.0)).rate == pytest.approx(20.0)


@pytest.mark.parametrize('name, message', [
    ('absent.mp4', 'no such file or folder'),
    ('empty', 'holds no image'),
    ('text.mp4', 'cannot read this as a video'),
])
def test_unusable_source_names_itself(tmp_path, name, message):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.mp4').write_text('no video')
    with pytest.raises(SourceError, match=message) as raised:
        opened(tmp_path / name)
    assert name in str(raised.value)


@pytest.mark.parametrize('size, expected', [
    ((0, 0), (40, 80)), ((40, 0), (20, 40)), ((0, 20), (20, 40)), ((60, 60), (60, 60))])
def test_fit_never_stretches(size, expected):
    image = np.zeros((40, 80, 3), np.uint8)
    cv2.circle(image, (40, 20), 16, (255, 255, 255), -1)
    fitted = fit(image, *size)
    assert fitted.shape[:2] == expected
    rows, columns = np.nonzero(fitted[..., 0] > 127)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1  # a circle stays one
    assert columns.mean() == pytest.approx(expected[1] / 2, abs=1)


class Camera:
    """Acts a cv2.VideoCapture that delivers `count` frames at 200 Hz and is then unplugged."""

    def __init__(self, count):
        self.left = count
        self.settings = {}

    def isOpened(self):
        return self.left > 0

    def set(self, key, value):
        self.settings[key] = value

    def grab(self):
        time.sleep(0.005)
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, flat(self.left % 256)

    def release(self):
        self.left = 0


def test_camera_is_opened_again_after_it_was_unplugged():
    cameras = [Camera(0), Camera(3), Camera(2)]
    reports = []
    remaining = iter(cameras)
    frames = camera_frames(
        '/dev/video7', SourceOptions(width=32, height=24), threading.Event(), reports.append,
        open_capture=lambda device: next(remaining))
    start = time.monotonic()
    assert len(list(itertools.islice(frames, 5))) == 5
    assert time.monotonic() - start >= 1.0  # waited 0.5 s before each new attempt
    assert len(reports) == 2 and all("'/dev/video7'" in report for report in reports)
    assert Path('/dev/video7').exists() or all(
        'there is no /dev/video7 (found: ' in report for report in reports)
    assert cameras[1].settings == {
        cv2.CAP_PROP_FRAME_WIDTH: 32, cv2.CAP_PROP_FRAME_HEIGHT: 24}


def test_a_stream_that_is_not_there_keeps_its_password():
    reports = []
    stop = threading.Event()

    def report(text):
        reports.append(text)
        stop.set()
    frames = camera_frames('rtsp://bob:secret@host:1/x', SourceOptions(), stop, report,
                           open_capture=lambda device: Camera(0))
    assert not list(frames)
    assert reports[0].startswith("source: camera 'rtsp://host:1/x' gives no images; check its "
                                 'address')


def test_camera_drops_what_is_above_the_rate_and_stops():
    stop = threading.Event()
    frames = camera_frames(0, SourceOptions(rate=20.0), stop, pytest.fail,
                           open_capture=lambda device: Camera(10_000))
    start = time.monotonic()
    taken = [int(frame.image[0, 0, 0]) for frame in itertools.islice(frames, 7)]
    assert 0.25 < time.monotonic() - start < 1.0
    steps = [(a - b) % 256 for a, b in itertools.pairwise(taken)]
    assert sum(steps) > 12  # about ten frames of the camera for each that was taken
    stop.set()
    assert list(frames) == []


def test_intrinsics_from_fov():
    k = intrinsics_from_fov(640, 480, 90.0)
    np.testing.assert_allclose(k, [[320, 0, 319.5], [0, 320, 239.5], [0, 0, 1]])
    calibration = pinhole(640, 480, k)
    assert calibration.p[:4] == pytest.approx((320, 0, 319.5, 0))
    assert math.prod(calibration.r[::4]) == 1


CALIBRATION = """
image_width: 640
image_height: 480
camera_name: test
camera_matrix: {rows: 3, cols: 3, data: [500, 0, 320, 0, 501, 240, 0, 0, 1]}
distortion_model: rational_polynomial
distortion_coefficients: {rows: 1, cols: 8, data: [0.1, 0, 0, 0, 0, 0, 0, 0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [490, 0, 320, 0, 0, 490, 240, 0, 0, 0, 1, 0]}
"""


def test_calibration_is_read(tmp_path):
    path = tmp_path / 'camera.yaml'
    path.write_text(CALIBRATION)
    calibration = read_calibration(f'file://{path}')
    assert (calibration.width, calibration.height) == (640, 480)
    assert calibration.k[:5] == (500, 0, 320, 0, 501) and calibration.p[0] == 490
    assert calibration.distortion_model == 'rational_polynomial' and len(calibration.d) == 8


@pytest.mark.parametrize('old, new, message', [
    ('image_height: 480', '', "'image_height' is missing"),
    ('0, 0, 1]}\ndistortion_model', '0, 0]}\ndistortion_model', "'camera_matrix'.*8 numbers"),
    ('image_width: 640', 'image_width: [', 'not a YAML file'),
    (CALIBRATION, 'just text', "'image_width' is missing"),
])
def test_wrong_calibration_names_file_and_entry(tmp_path, old, new, message):
    path = tmp_path / 'camera.yaml'
    path.write_text(CALIBRATION.replace(old, new))
    with pytest.raises(SourceError, match=message) as raised:
        read_calibration(str(path))
    assert str(path) in str(raised.value)


def test_absent_calibration():
    with pytest.raises(SourceError, match=r'/absent\.yaml.*No such file'):
        read_calibration('/absent.yaml')


def test_a_room_is_shown_for_its_time_and_the_next_from_its_start():
    """Two frames of half a second of each room; the truth is in metres."""
    source = opened('synthetic', SourceOptions(32, 24, rate=2.0, seed=5, room_seconds=1.0))
    for index, frame in enumerate(itertools.islice(source.frames, 3)):
        expected = render([5 + index // 2], 24, 32, time=index % 2 / 2)
        np.testing.assert_array_equal(frame.truth.depth, expected.depth[0, 0])
        np.testing.assert_array_equal(frame.truth.mask, expected.label[0])
        np.testing.assert_array_equal(frame.truth.normal.transpose(2, 0, 1), expected.normal[0])
        np.testing.assert_allclose(frame.intrinsics, expected.intrinsics[0])
        assert np.abs(frame.image / 255 - expected.rgb[0].permute(1, 2, 0).numpy()).max() < 0.003
        assert frame.encoding == 'rgb8'
    once = opened('synthetic', SourceOptions(32, 24, rate=2.0, loop=False, room_seconds=1.0))
    assert len(list(once.frames)) == 2


def test_shrinking_averages():
    board = (np.indices((300, 400)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.ptp(fit(np.repeat(board[..., None], 3, axis=2), 80, 60)) < 20


def test_a_camera_that_stays_away_is_tried_less_and_less_often():
    """Up to every ten seconds; once it has been there, soon again. One side alone is not asked."""
    cameras = [*(Camera(0) for _ in range(6)), Camera(2), Camera(0)]
    waits, settings = [], []

    class Stop(threading.Event):

        def wait(self, timeout):
            waits.append(timeout)

    stop, remaining = Stop(), iter(cameras)

    def open_capture(device):
        camera = next(remaining)
        settings.append(camera.settings)
        return camera

    frames = camera_frames(0, SourceOptions(width=32), stop, lambda text: None, open_capture)
    with pytest.raises(RuntimeError):  # when there is no other camera
        list(frames)
    assert waits == [0.5, 1, 2, 4, 8, 10, 0.5, 1]
    assert settings == 8 * [{}]
