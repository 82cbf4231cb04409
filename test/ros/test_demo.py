# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The demo as a process of its own, with the two that it starts."""

import os
from pathlib import Path
import re
import signal
import time

import cv2
import numpy as np
import pytest

from mtan_perception.node.demo import sheet_row
from mtan_perception.node.demo_monitor import Accuracy, Album, Moment
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

MODULE = 'mtan_perception.node.demo'
TOPICS = ('/mtan/segmentation/mask', '/mtan/depth/image_rect', '/mtan/normal/image')


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'room: 1.png'  # a name that YAML would read as a mapping
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(
        0, 255, (120, 160, 3), dtype=np.uint8))
    return path


def children_of(pid):
    return [int(child) for child in
            Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def frames(output, topic):
    """Return the number of frames in the table's line of a topic."""
    return int(re.search(rf'^{topic} +(\d+) ', output, re.MULTILINE).group(1))


def test_synthetic_demo_ends_with_a_table_and_a_sheet(start_process, tmp_path):
    out = tmp_path / 'new' / 'sheet.png'
    demo = start_process(MODULE, '--duration', 5, '--weights', 'random', '--out', out)
    assert demo.wait(150) == 0
    assert "'random': the network is untrained" in demo.output
    for topic in ('/camera/image_raw', *TOPICS):
        assert frames(demo.output, topic) >= 2
    assert re.search(r'mIoU \d+\.\d %', demo.output)
    assert re.search(r'depth error \d+\.\d\d m', demo.output)
    assert re.search(r'normals off by \d+\.\d deg', demo.output)
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] > 7 * 288  # the input, three outputs, three truths
    assert sheet.shape[0] > 216 and sheet.std() > 20


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_everything(start_process, image, tmp_path, number):
    out = tmp_path / 'sheet.png'
    demo = start_process(
        MODULE, '--source', image, '--rate', 10, '--weights', 'random', '--out', out)
    assert demo.wait_for_line(' ms', 100)
    time.sleep(1.5)  # a frame for the sheet
    children = children_of(demo.pid)
    assert len(children) == 2
    demo.send_signal(number)
    assert demo.wait(15) == 0
    assert not any(os.path.exists(f'/proc/{child}') for child in children)
    assert all(frames(demo.output, topic) for topic in TOPICS)
    assert 'Traceback' not in demo.output and 'truth' not in demo.output
    assert cv2.imread(str(out)).shape[1] > 4 * 160


def test_process_that_dies_is_reported(start_process, image, tmp_path):
    demo = start_process(
        MODULE, '--source', image, '--weights', 'random', '--out', tmp_path / 'sheet.png')
    assert demo.wait_for_line('waiting for the first', 60)
    children = children_of(demo.pid)
    node = next(child for child in children
                if b'mtan_node' in Path(f'/proc/{child}/cmdline').read_bytes())
    os.kill(node, signal.SIGKILL)
    assert demo.wait(20) == 1
    assert 'mtan_node ended by itself with exit code -9' in demo.output
    assert not any(os.path.exists(f'/proc/{child}') for child in children)


@pytest.mark.parametrize('arguments, code, message', [
    (('--device', 'tpu'), 1, "cannot configure: device: 'tpu' is not known"),
    (('--source', '/absent.mp4'), 1, "source '/absent.mp4': no such file"),
    (('--weights', '/absent.safetensors'), 2, '/absent.safetensors'),
])
def test_unusable_argument_is_named(start_process, tmp_path, arguments, code, message):
    demo = start_process(MODULE, '--weights', 'random', *arguments, '--out', tmp_path / 'a.png')
    assert demo.wait(60) == code
    assert message in demo.output and 'Traceback' not in demo.output


def moment(value=1.0):
    mask = np.full((6, 8), 3, np.uint8)
    depth = np.full((6, 8), 2.0, np.float32)
    normal = np.zeros((6, 8, 3), np.float32)
    normal[..., 2] = -1
    tilted = normal.copy()
    tilted[..., 1] = 1
    image = np.full((12, 16, 3), value, np.uint8)
    return Moment(image, {SEGMENTATION: mask, DEPTH: depth * 1.5, NORMAL: tilted},
                  {SEGMENTATION: mask, DEPTH: depth, NORMAL: normal})


def test_accuracy():
    accuracy = Accuracy((SEGMENTATION, DEPTH, NORMAL), 13)
    assert accuracy.summary() == {}
    accuracy.update(moment())
    assert accuracy.summary() == {
        SEGMENTATION: 'mIoU 100.0 %', DEPTH: 'depth error 1.00 m (50 %)',
        NORMAL: 'normals off by 45.0 deg'}


def test_album_spreads_over_any_length():
    for length in (0, 1, 3, 4, 50, 199):
        album = Album(4)
        for value in range(length):
            album.offer(moment(value))
        values = [int(kept.image[0, 0, 0]) for kept in album.moments()]
        assert len(values) == min(4, length)
        assert values == sorted(set(values))
        if length >= 50:
            assert values[0] == 0 and values[-1] > 0.7 * length
            assert min(np.diff(values)) > 0.15 * length


def test_sheet_row_has_the_truth_beside_each_output():
    captions = [caption for caption, _ in sheet_row(moment(), np.zeros((256, 3), np.uint8))]
    depth = 'depth 2.0-2.1 m'  # the truth's
    assert captions == ['input', 'segmentation', 'segmentation: truth', depth, f'{depth}: truth',
                        'normals', 'normals: truth']
