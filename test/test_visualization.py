# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Colour pictures: known pixels, and a sheet that shows every image unstretched."""

import numpy as np
import pytest

from mtan_perception.labels import NYUV2_13
from mtan_perception.visualization import (
    color_depth,
    color_mask,
    color_normal,
    contact_sheet,
    depth_range,
    overlay,
)

PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:2] = [[200, 100, 0], [0, 50, 250]]


def test_mask_takes_the_palette():
    """Each class has its colour, unlabelled is black."""
    picture = color_mask(np.array([[0, 1, 255]], np.uint8), PALETTE)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[200, 100, 0], [0, 50, 250], [0, 0, 0]]]


def test_overlay_blends_and_leaves_unlabelled_pixels():
    """The weight is that of the colours; where no class is known the image stays."""
    image = np.full((1, 2, 3), 100, np.uint8)
    label = np.array([[0, 255]], np.uint8)
    assert overlay(image, label, PALETTE, 0.25).tolist() == [[[125, 100, 75], [100, 100, 100]]]
    assert overlay(image, label, PALETTE, 0.0).tolist() == image.tolist()
    assert overlay(image, label, PALETTE, 1.0)[0, 0].tolist() == [200, 100, 0]


def test_near_is_warm_far_is_cold_and_unknown_is_black():
    """Turbo runs from dark blue to dark red; depth past an end keeps that end's colour."""
    depth = np.array([[1.0, 0.5, 9.0, 20.0, 3.0, np.nan]], np.float32)
    near, nearer, far, farther, warm, unknown = color_depth(depth, 1.0, 9.0)[0].astype(int)
    assert near.tolist() == nearer.tolist() and far.tolist() == farther.tolist()
    assert near[0] > 100 > near[2] and warm[0] > 200 > warm[2] and far[2] > far[0]
    assert unknown.tolist() == [0, 0, 0] and far.sum() > 0


def test_normal_colours():
    """A wall that faces the camera has no blue, a floor is green."""
    normal = np.array([[[0, 0, -1], [0, 1, 0], [-1, 0, 0]]], np.float32)
    assert color_normal(normal)[0].tolist() == [[128, 128, 0], [128, 255, 128], [0, 128, 128]]


def test_sheet_shows_every_image():
    """Images of other sizes are fitted, the wide one without stretching; captions leave ink."""
    red = np.full((60, 80, 3), (255, 0, 0), np.uint8)
    grey = np.full((30, 40), 77, np.uint8)
    wide = np.full((10, 80, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet([[('red', red), ('grey', grey)], [('wide', wide)]])
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 120 and sheet.shape[1] > 160
    assert (sheet == (255, 0, 0)).all(-1).sum() == 60 * 80
    assert (sheet == 77).all(-1).sum() == 60 * 80
    assert (sheet == (0, 0, 255)).all(-1).sum() == 10 * 80
    blank = contact_sheet([[('', red), ('', grey)], [('', wide)]])
    assert blank.shape == sheet.shape and (blank != sheet).any()


def test_the_legend_shows_every_class_below_the_images():
    """Each colour once more than in the images, in as many lines as it takes."""
    red = np.full((60, 80, 3), (255, 0, 0), np.uint8)
    plain = contact_sheet([[('red', red)]])
    sheet = contact_sheet([[('red', red)]], NYUV2_13)
    assert (sheet[:len(plain)] == plain).all() and sheet.shape[1] == plain.shape[1]
    legend = sheet[len(plain):]
    for color in NYUV2_13.colors:
        assert (legend == color).all(-1).sum() >= 200
    wide = contact_sheet([[('red', red)] * 20], NYUV2_13)
    assert len(wide) - len(contact_sheet([[('red', red)] * 20])) < len(legend) / 4


def test_sheet_without_images_is_refused():
    """The error says what is missing."""
    with pytest.raises(ValueError, match='at least one image'):
        contact_sheet([[]])


def test_the_range_of_a_depth_leaves_out_its_ends():
    """And what is unknown; it is never empty, even of a depth that has nothing known."""
    depth = np.concatenate([np.linspace(1, 2, 101), [np.nan, np.inf, 0.0, -5.0]])
    assert depth_range(depth) == pytest.approx((1.01, 1.99))
    assert depth_range(np.full((2, 2), np.nan)) == (0.0, 10.0)
    assert depth_range(np.full((2, 2), 3.0)) == pytest.approx((3.0, 3.1))
