# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan render``: the files it writes are the frames, in the layout of NYUv2."""

import cv2
import numpy as np
import torch

from mtan_perception.cli.main import main
from mtan_perception.synthetic import render
from mtan_perception.training.datasets import open_dataset


def test_writes_the_frames_in_the_npy_layout(tmp_path):
    assert main(['render', '--seeds', '5:2', '--size', '36x48', '--out', str(tmp_path)]) == 0
    frames = render([5, 6], 36, 48)
    read = {name: np.load(tmp_path / name / '6.npy')
            for name in ('image', 'label', 'depth', 'normal', 'intrinsics')}
    assert torch.allclose(torch.from_numpy(read['image']), frames.rgb[1].permute(1, 2, 0))
    assert np.array_equal(read['label'], frames.label[1].numpy())
    assert np.allclose(read['depth'][..., 0], frames.depth[1, 0].numpy())
    # NYU axes: z toward the camera.
    optical = read['normal'] * (1, 1, -1)
    assert np.allclose(optical, frames.normal[1].permute(1, 2, 0).numpy())
    assert np.allclose(read['intrinsics'], frames.intrinsics[1].numpy())
    picture = cv2.imread(str(tmp_path / 'picture' / '6.png'))[..., ::-1]
    assert np.array_equal(picture, np.round(255 * read['image']))
    assert cv2.imread(str(tmp_path / 'contact_sheet.png')).shape[1] > 4 * 48


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, full_disk, capsys):
    with full_disk():
        assert main(['render', '--seeds', '5:1', '--out', str(tmp_path)]) == 2
    assert f'{tmp_path}/image/5.npy: cannot be written (File too large); make room' in \
        capsys.readouterr().err
    assert not list(tmp_path.rglob('*.*'))


def test_frames_are_read_as_nyuv2_but_for_their_cameras(tmp_path):
    for folder, seeds in (('val', '5:2'), ('train', '7:3')):
        assert main(['render', '--seeds', seeds, '--size', '36x48',
                     '--out', str(tmp_path / folder)]) == 0
    assert {split: open_dataset('nyuv2', tmp_path, split).ids for split in ('test', 'val')} == {
        'test': ['5', '6'], 'val': ['9']}
    data = open_dataset('nyuv2', tmp_path, 'test')
    frames = render([5, 6], 36, 48)
    assert torch.allclose(data.load(1)['normal'], frames.normal[1], atol=1e-6)
    assert data.focal_length is None


def test_an_output_that_is_no_folder_is_named(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert main(['render', '--seeds', '5:1', '--out', str(tmp_path / 'file')]) == 2
    assert f'--out: cannot write to {tmp_path}/file, because' in capsys.readouterr().err


def test_a_bad_range_of_seeds_is_said_in_one_line(tmp_path, capsys):
    assert main(['render', '--seeds', '5', '--out', str(tmp_path / 'none')]) == 2
    assert "mtan render: error: --seeds: '5'; write START:COUNT" in capsys.readouterr().err
    assert not (tmp_path / 'none').exists()
