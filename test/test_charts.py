# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The charts: what they show lies where its value says."""

import cv2
import numpy as np

from mtan_perception.charts import band_chart, confusion_matrix, histogram

NAMES, COLORS = ('wall', 'tv'), ((255, 0, 0), (0, 0, 255))
LABELS = {'title': 'title', 'x_label': 'x', 'y_label': 'y'}


def blue(picture):
    """Return where the picture has the strong blue of the data."""
    return np.abs(picture.astype(int) - (31, 97, 171)).max(2) < 12


def middle(mask):
    """Return the mean row and column of the marked pixels."""
    return np.argwhere(mask).mean(0)


def test_confusion_matrix_is_dark_where_the_pixels_are():
    """A whole row in one column is one dark cell; the unused column of no class is left out."""
    right = confusion_matrix(np.array([[50, 0, 0], [0, 2, 0]]), NAMES, COLORS)
    wrong = confusion_matrix(np.array([[0, 50, 0], [0, 2, 0]]), NAMES, COLORS)
    lost = confusion_matrix(np.array([[50, 0, 0], [0, 1, 1]]), NAMES, COLORS)
    assert right.dtype == np.uint8 and right.shape[2] == 3
    number, _, boxes, centres = cv2.connectedComponentsWithStats(blue(right).astype(np.uint8))
    cells = [centres[i] for i in range(number) if boxes[i, cv2.CC_STAT_AREA] > 500][1:]
    (x, y), (other_x, other_y) = cells
    assert other_x - x == other_y - y > 15
    assert blue(wrong)[int(y), int(other_x) - 15] and not blue(wrong)[int(y), int(x) - 15]
    assert lost.shape[1] >= right.shape[1]
    lower = lost.shape[0] - right.shape[0]  # by the name of that column
    assert (lost[int(other_y) - 15 + lower, int(other_x) + 46] != 255).any()


def test_a_class_without_pixels_has_an_empty_row():
    """No division by zero, and nothing but paper and lines."""
    picture = confusion_matrix(np.array([[5, 0], [0, 0]]), NAMES, COLORS)
    assert 500 < blue(picture).sum() < 46 * 46 + 200
    assert confusion_matrix(np.zeros((40, 40)), ['x'] * 40, [(0, 0, 0)] * 40).shape[0] > 40 * 18


def test_the_band_lies_around_the_curve():
    """A rising curve rises, and a NaN leaves a gap in both."""
    x = np.arange(10.0)
    curve = np.where(x == 5, np.nan, x)
    picture = band_chart(x, curve - 1, curve, curve + 1, **LABELS)
    line = blue(picture)
    columns = np.flatnonzero(line.any(0))
    rows = [np.flatnonzero(line[:, column]).mean() for column in columns]
    assert rows[0] - rows[-1] > 250 and np.corrcoef(columns, rows)[0, 1] < -0.99
    gap = np.diff(columns).argmax()
    assert columns[gap + 1] - columns[gap] > 100
    band = (picture == (186, 211, 238)).all(2).any(0)
    assert band[columns[30]] and not band[columns[gap] + 60]


def test_the_bars_are_as_high_as_their_shares():
    """Marks inside the range are drawn, others are not."""
    picture = histogram(np.arange(4), np.array([10.0, 5, 0]), [(2.5, 'here'), (9, 'far')],
                        **LABELS)
    heights = blue(picture).sum(0)
    left, right = heights[84 + 100], heights[84 + 350]
    assert abs(left - 2 * right) <= 2 and right > 50 and heights[84 + 600] == 0
    mark = (np.abs(picture.astype(int) - (200, 70, 30)).max(2) < 12)
    assert abs(mark.sum(0).argmax() - (84 + 2.5 / 3 * 772)) <= 2 and mark.sum() < 1200


def test_a_bar_of_which_nothing_is_known_is_left_out():
    edges = np.linspace(0, 1, 3)
    known = histogram(edges, np.array([0.0, 1.0]), **LABELS)
    unknown = histogram(edges, np.array([np.nan, 1.0]), **LABELS)
    assert np.array_equal(known, unknown)


def test_values_of_any_size_are_drawn():
    values = np.array([1e300, -2, 3])
    assert blue(band_chart(np.arange(3), values, values, values, **LABELS)).any()


def test_nothing_to_draw_is_said():
    """Neither chart fails for want of a value."""
    nothing = np.full(3, np.nan)
    charts = [band_chart(nothing, nothing, nothing, nothing, **LABELS),
              histogram(np.arange(4), np.zeros(3), **LABELS)]
    assert np.array_equal(*charts) and (charts[0] != 255).any()
    flat = band_chart(np.ones(1), np.zeros(1), np.zeros(1), np.zeros(1), **LABELS)
    assert blue(flat).any()
