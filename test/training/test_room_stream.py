# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The stream of rendered rooms: who sees which rooms, and that a run repeats."""

from contextlib import ExitStack
import os
from threading import Timer

import pytest
import torch

from mtan_perception.synthetic import render
from mtan_perception.training import rooms
from mtan_perception.training.config import Stage
from mtan_perception.training.rooms import (
    FramePool,
    mirror,
    render_packed,
    RoomStream,
    TEST_SEEDS,
    training_seeds,
    unpack,
    VALIDATION_SEEDS,
)

SIZE = (24, 32)
STAGES = (Stage(0.5, 16, 24, 2, 1.0), Stage(1.0, 24, 32, 2, 2.0))


def open_stream(folder, fresh=True):
    return RoomStream(STAGES, 3, 24.0, torch.device('cpu'), folder, 1e6, fresh=fresh)


def test_training_never_sees_the_rooms_of_validation_and_test():
    assert not set(TEST_SEEDS) & set(VALIDATION_SEEDS)
    for seed in (0, 1, 1000):
        seeds = training_seeds(seed, 0, 1_000_000)
        assert seeds.start > max(*TEST_SEEDS, *VALIDATION_SEEDS)
    # Nor does one run see the rooms of another.
    assert training_seeds(0, 999_999_999, 1).stop <= training_seeds(1, 0, 1).start


def test_packed_frames_hold_what_was_rendered_at_the_canonical_focal_length():
    frames = render([5], *SIZE)
    batch = unpack(render_packed([5], SIZE, 30.0))
    assert (batch['image'] - frames.rgb).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(batch['segmentation'], frames.label)
    expected = frames.depth * 30 / frames.intrinsics[0, 0, 0]
    torch.testing.assert_close(batch['depth'], expected, rtol=1e-3, atol=0)
    cosine = (batch['normal'] * frames.normal).sum(1)
    assert cosine.min() > 0.9999


def test_a_mirrored_frame_is_the_view_of_the_mirrored_room():
    batch = unpack(render_packed([7, 8], SIZE, 30.0))
    flipped = mirror(batch, torch.tensor([True, False]))
    for name, value in batch.items():
        assert torch.equal(flipped[name][1], value[1])
        assert torch.equal(flipped[name][0].abs(), value[0].flip(-1).abs())
    assert torch.equal(flipped['normal'][0, 0], -batch['normal'][0, 0].flip(-1))
    assert torch.equal(flipped['normal'][0, 1:], batch['normal'][0, 1:].flip(-1))


def test_a_full_pool_holds_the_newest_frames():
    pool = FramePool(4, torch.device('cpu'))
    for value in (1, 2, 3):
        pool.put({'image': torch.full((2, 3, 5, 5), value, dtype=torch.uint8),
                  'segmentation': torch.zeros(2, 1, 5, 5, dtype=torch.uint8),
                  'depth': torch.ones(2, 1, 5, 5).half(),
                  'normal': torch.ones(2, 3, 5, 5, dtype=torch.int8)})
    batch = pool.draw(64, (3, 4), torch.Generator().manual_seed(0))
    assert batch['image'].shape == (64, 3, 3, 4)
    assert sorted((255 * batch['image']).round().unique().tolist()) == [2, 3]


def test_depth_is_for_one_focal_length_in_images_of_any_size(tmp_path):
    stream = open_stream(tmp_path / 'frames')
    try:
        for index, stage in enumerate(STAGES):
            seeds = training_seeds(3 * 64 + index, 0, 4)
            rendered = render_packed(seeds, (stage.height + 16, stage.width + 16), 24.0)
            drawn = stream.batch(index, 0)['depth'].unique()
            assert torch.isin(drawn, unpack(rendered)['depth']).all()
    finally:
        stream.close()


def test_a_stream_repeats_and_resumes_from_its_files(tmp_path):
    stream = open_stream(tmp_path / 'frames')
    try:
        first = [stream.batch(0, step) for step in range(3)]
        second = stream.batch(1, 0)
        assert stream.ready(1)
    finally:
        stream.close(keep=True)
    path = tmp_path / 'frames' / '0-16x24-0' / '000000.safetensors'
    written = path.stat().st_mtime_ns
    again = open_stream(tmp_path / 'frames', fresh=False)
    try:
        assert torch.equal(again.batch(0, 2)['depth'], first[2]['depth'])
        assert torch.equal(again.batch(1, 0)['image'], second['image'])
        assert first[0]['image'].shape == (2, 3, 16, 24)
        assert path.stat().st_mtime_ns == written
        assert not torch.equal(first[0]['image'], first[1]['image'])
    finally:
        again.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_over_holds_no_memory(tmp_path):
    """And begins again where it was, as after a resume with a longer budget."""
    stream = open_stream(tmp_path / 'frames')
    try:
        first = stream.batch(0, 2)
        stream.batch(1, 0)
        assert stream._pools[0]._store == {}
        assert torch.equal(stream.batch(0, 2)['depth'], first['depth'])
    finally:
        stream.close()


def test_frames_wait_for_room_on_the_disk_and_for_nothing_else(tmp_path, monkeypatch, capsys,
                                                               full_disk):
    monkeypatch.setattr(rooms, '_RETRY', 0.2)
    frames = {'depth': torch.rand(1, 1, 600, 600)}  # more than a MiB
    with ExitStack() as stack:
        stack.enter_context(full_disk())
        timer = Timer(0.5, stack.close)
        timer.start()
        rooms._write(tmp_path / 'a' / '0.safetensors', frames, os.getppid())
        timer.join()
    assert torch.equal(rooms._read(tmp_path / 'a' / '0.safetensors')['depth'], frames['depth'])
    assert 'a/0.safetensors: cannot be written (File too large); make room' in \
        capsys.readouterr().err
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError):
        rooms._write(tmp_path / 'file' / 'b' / '0.safetensors', frames, os.getppid())


def test_a_damaged_file_is_rendered_anew(tmp_path):
    stream = open_stream(tmp_path / 'frames')
    try:
        first = stream.batch(0, 0)
    finally:
        stream.close(keep=True)
    path = tmp_path / 'frames' / '0-16x24-0' / '000000.safetensors'
    path.write_bytes(path.read_bytes()[:1000])
    again = open_stream(tmp_path / 'frames', fresh=False)
    try:
        assert torch.equal(again.batch(0, 0)['depth'], first['depth'])
    finally:
        again.close()
