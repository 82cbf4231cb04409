# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Geometry: hand-computed sizes, intrinsics and points."""

import numpy as np
import pytest

from mtan_perception.geometry import (
    back_project,
    correct_depth,
    Fit,
    fit_image,
    NORMAL_SIGNS,
    scale_intrinsics,
)


@pytest.mark.parametrize('size, target, expected', [
    ((480, 640), (288, 384), Fit(0.6, 288, 384, 288, 384)),
    ((288, 384), (288, 384), Fit(1.0, 288, 384, 288, 384)),
    ((100, 200), (288, 384), Fit(1.92, 192, 384, 192, 384)),
    ((500, 640), (288, 384), Fit(0.576, 288, 368, 288, 368)),
    ((97, 129), (97, 129), Fit(1.0, 97, 129, 104, 136)),
    ((2, 4000), (64, 64), Fit(0.016, 1, 64, 8, 64)),
])
def test_fit_uses_one_scale_and_pads_to_eight(size, target, expected):
    """The tight axis fills the target; the other follows with the same scale."""
    assert fit_image(size, target) == expected


def test_fit_stays_inside_the_target_for_any_size():
    """No combination of sizes leaves the target or pads by a whole multiple."""
    rng = np.random.default_rng(0)
    for height, width, rows, columns in rng.integers(1, 3000, (500, 4)).tolist():
        fit = fit_image((height, width), (rows, columns), 32)
        assert 1 <= fit.height <= rows and 1 <= fit.width <= columns
        assert fit.height == rows or fit.width == columns
        assert 0 <= fit.padded_height - fit.height < 32 and fit.padded_height % 32 == 0
        assert 0 <= fit.padded_width - fit.width < 32 and fit.padded_width % 32 == 0


def test_fit_refuses_an_empty_image():
    """The error names the size."""
    with pytest.raises(ValueError, match=r'\(0, 640\)'):
        fit_image((0, 640), (288, 384))
    with pytest.raises(ValueError, match=r'into \(288, 0\)'):
        fit_image((480, 640), (288, 0))
    with pytest.raises(ValueError, match='multiples of 0'):
        fit_image((480, 640), (288, 384), 0)


def test_intrinsics_scale_as_in_image_proc():
    """The focal lengths and the principal point are multiplied, the last row is not."""
    matrix = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
    assert scale_intrinsics(matrix, 0.6).tolist() == [[300, 0, 192], [0, 306, 144], [0, 0, 1]]
    assert matrix[0, 0] == 500


def test_depth_grows_with_the_focal_length():
    """At 600 px what looked 2 m away to a network that learnt at 300 px is 4 m away."""
    depth = correct_depth(np.array([[2.0, np.nan]], np.float32), np.float64(600), 300.0)
    assert depth.dtype == np.float32 and depth[0, 0] == 4 and np.isnan(depth[0, 1])


def test_back_projection_by_hand():
    """A pixel 2 right of and 1 above the principal point, at 4 m with focal lengths 2 and 8."""
    depth = np.full((3, 4), 4.0, np.float32)
    depth[2, 0] = np.nan
    points = back_project(depth, np.array([[2.0, 0, 1], [0, 8, 1], [0, 0, 1]]))
    turned = back_project(depth.T, np.array([[8.0, 0, 1], [0, 2, 1.5], [0, 0, 1]]))
    np.testing.assert_allclose(turned[:, 3, 0], [-0.5, 3.0, 4.0])
    assert points.dtype == np.float32 and points.shape == (3, 3, 4)
    assert points[:, 0, 3].tolist() == [4.0, -0.5, 4.0]
    assert points[:, 1, 1].tolist() == [0.0, 0.0, 4.0]
    assert np.isnan(points[:, 2, 0]).all() and np.isfinite(points).sum() == 33


def test_nyu_normals_point_toward_the_camera():
    """A wall that faces the camera is +z in NYU's axes and -z in the optical frame."""
    assert (np.array([0, 0, 1]) * NORMAL_SIGNS['nyu']).tolist() == [0, 0, -1]
    assert (np.array([0, 0, -1]) * NORMAL_SIGNS['optical']).tolist() == [0, 0, -1]
