# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan render``: the files it writes are the frames, in the layout of NYUv2."""

import cv2
import numpy as np
import torch

from mtan_perception.cli.main import main
from mtan_perception.synthetic import render


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
    assert cv2.imread(str(tmp_path / 'contact_sheet.png')).shape[1] > 4 * 48


def test_a_bad_range_of_seeds_is_said_in_one_line(tmp_path, capsys):
    assert main(['render', '--seeds', '5', '--out', str(tmp_path / 'none')]) == 2
    assert "mtan render: error: --seeds: '5'; write START:COUNT" in capsys.readouterr().err
    assert not (tmp_path / 'none').exists()
