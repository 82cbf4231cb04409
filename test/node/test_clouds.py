# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Point clouds as arrays: hand-computed points, and the time that it takes to fill one."""

import array
import time

import numpy as np
import pytest

from mtan_perception.inference import Prediction
from mtan_perception.labels import NYUV2_13
from mtan_perception.node.clouds import (
    cloud_size,
    CloudOptions,
    fill_cloud,
    POINT,
    select_classes,
)

pytest.importorskip('sensor_msgs', reason='the node needs the ROS message packages')

from mtan_perception.node.image_codec import append_zeros

INTRINSICS = np.array([[50.0, 0, 3], [0, 25.0, 2], [0, 0, 1]])


def prediction(height=5, width=7, **replaced) -> Prediction:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(height, width, 3)).astype(np.float32)
    values = {
        'image': rng.integers(0, 256, (height, width, 3), np.uint8), 'scale': 1.0,
        'label': rng.integers(0, 13, (height, width)).astype(np.uint8),
        'confidence': rng.integers(0, 256, (height, width)).astype(np.uint8),
        'depth': rng.uniform(1, 5, (height, width)).astype(np.float32),
        'normal': normal / np.linalg.norm(normal, axis=2, keepdims=True)}
    return Prediction(**values | replaced)


def test_a_point_has_every_output_of_its_pixel():
    p = prediction()
    cloud = fill_cloud(p, INTRINSICS, CloudOptions())
    assert cloud.shape == (5, 7) and cloud.flags.c_contiguous
    v, u = 4, 1
    point, z = cloud[v, u], p.depth[v, u]
    np.testing.assert_allclose(
        [point['x'], point['y'], point['z']], [(u - 3) / 50 * z, (v - 2) / 25 * z, z], rtol=1e-6)
    for axis, name in enumerate(('normal_x', 'normal_y', 'normal_z')):
        np.testing.assert_array_equal(cloud[name], p.normal[..., axis])
    np.testing.assert_array_equal(cloud['label'], p.label)
    np.testing.assert_array_equal(cloud['confidence'], p.confidence)
    packed = np.ascontiguousarray(cloud['rgb']).view(np.uint32)
    red, green, blue = (p.image[..., channel].astype(np.uint32) for channel in range(3))
    np.testing.assert_array_equal(packed, red << 16 | green << 8 | blue)


def test_fields_lie_where_their_types_want_them():
    """A field of four bytes starts at a multiple of four, and so does a point."""
    for name, (kind, offset, *_) in POINT.fields.items():
        assert offset % kind.itemsize == 0, name
    assert POINT.itemsize == 32


def test_stride_takes_whole_rows_and_columns():
    p = prediction(7, 9, depth=np.full((7, 9), 2, np.float32))
    cloud, thinned = (fill_cloud(p, INTRINSICS, CloudOptions(stride, max_edge_angle=80.0))
                      for stride in (1, 2))
    assert thinned.shape == cloud_size(p, CloudOptions(2)) == (4, 5)
    assert 0 < np.isnan(thinned['z']).mean() < 1
    for name in POINT.names:
        np.testing.assert_allclose(thinned[name].view('u1' if POINT[name] == 'u1' else '<f4'),
                                   cloud[::2, ::2][name], rtol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
def test_the_memory_of_a_message_is_filled_in_place(stride):
    p, options = prediction(6, 9), CloudOptions(stride)
    height, width = cloud_size(p, options)
    memory = array.array('B')
    append_zeros(memory, height * width * POINT.itemsize)
    np.frombuffer(memory, np.uint8)[:] = 0xa5  # of an earlier frame
    cloud = fill_cloud(p, INTRINSICS, options, memory)
    expected = fill_cloud(p, INTRINSICS, options)
    assert cloud.shape == expected.shape == (height, width)
    assert memory.tobytes() == cloud.tobytes() == expected.tobytes()


def test_what_is_left_out_is_not_a_number_and_keeps_its_place():
    depth = np.full((5, 7), 2.0, np.float32)
    depth[0, 0] = np.nan
    p = prediction(depth=depth)
    p.label[1] = 255
    kept = select_classes(['-floor'], NYUV2_13.names)
    kept[255] = False
    cloud = fill_cloud(p, INTRINSICS, CloudOptions(kept=kept))
    left_out = (p.label == NYUV2_13.names.index('floor')) | (p.label == 255) | np.isnan(depth)
    assert left_out.any() and not left_out.all()
    for axis in 'xyz':
        np.testing.assert_array_equal(np.isnan(cloud[axis]), left_out)
    np.testing.assert_array_equal(cloud['label'], p.label)


def test_points_seen_edge_on_are_left_out():
    """The angle is the one at which the ray meets the surface, not that to the optical axis."""
    wide = INTRINSICS / [[10], [10], [1]] + [[0, 0, 2.7], [0, 0, 1.8], [0, 0, 0]]
    ray = np.array([(6 - 3) / 5, (0 - 2) / 2.5, 1])
    toward = -ray / np.linalg.norm(ray)
    across = np.cross(toward, [0, 1, 0])
    across /= np.linalg.norm(across)
    for angle, kept in [(59, True), (61, False), (120, False)]:
        normal = np.zeros((5, 7, 3), np.float32)
        normal[...] = (0, 0, -1)
        normal[0, 6] = np.cos(np.radians(angle)) * toward + np.sin(np.radians(angle)) * across
        p = prediction(normal=normal)
        cloud = fill_cloud(p, wide, CloudOptions(max_edge_angle=60.0))
        assert np.isfinite(cloud['z'][0, 6]) == kept
        assert np.isfinite(cloud['z']).sum() == 34 + kept
        assert np.isfinite(fill_cloud(p, wide, CloudOptions())['z']).all()


def test_tasks_that_did_not_run_are_unlabelled_and_without_direction():
    cloud = fill_cloud(
        prediction(label=None, confidence=None, normal=None), INTRINSICS, CloudOptions())
    assert (cloud['label'] == 255).all() and (cloud['confidence'] == 0).all()
    assert np.isnan(cloud['normal_x']).all() and np.isfinite(cloud['z']).all()


@pytest.mark.parametrize('entries, ids', [
    (['all'], {0, 1, 2, 255}),
    (['a'], {0}),
    (['c', 'a'], {0, 2}),
    (['-b'], {0, 2, 255}),
    (['all', '-b'], {0, 2, 255}),
    (['a', 'b', '-b'], {0}),
])
def test_classes_by_name(entries, ids):
    chosen = select_classes(entries, ('a', 'b', 'c'))
    assert {index for index in (0, 1, 2, 255) if chosen[index]} == ids


@pytest.mark.parametrize('entries', [['a', 'flor'], ['-flor'], []])
def test_an_unknown_class_is_named_with_the_choices(entries):
    with pytest.raises(ValueError, match=r'(flor|nothing).* is no class.*all, a, b'):
        select_classes(entries, ('a', 'b'))


def test_filling_a_cloud_of_the_default_size_is_quick(capsys):
    """The aim is 8 ms on a core of its own; a test machine may be several times slower."""
    p = prediction(288, 384)
    for options in (CloudOptions(), CloudOptions(max_edge_angle=80.0)):
        times = []
        for _ in range(15):
            start = time.thread_time()
            fill_cloud(p, INTRINSICS, options)
            times.append(1000 * (time.thread_time() - start))
        with capsys.disabled():
            print(f'\n288×384 cloud, edges up to {options.max_edge_angle:g}°: '
                  f'{np.median(times):.1f} ms of one core')
        assert np.median(times) < 40
