# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Charts of figures for people: every function returns uint8 (H, W, 3) RGB."""

from collections.abc import Sequence
import math

import cv2
import numpy as np

Color = tuple[int, int, int]

_PAPER: Color = (255, 255, 255)
_INK: Color = (45, 48, 54)
_GRID: Color = (228, 230, 234)
_MAIN: Color = (31, 97, 171)
_SOFT: Color = (186, 211, 238)
_MARK: Color = (200, 70, 30)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_SIZE = (520, 880)
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 52, 64
# Beyond so many classes there is no room for a number in a cell of the confusion matrix.
_NUMBERED = 30


def confusion_matrix(counts: np.ndarray, names: Sequence[str],
                     colors: Sequence[Color]) -> np.ndarray:
    """
    Draw which class (row) was taken for which (column), as shares of the row in percent.

    :param counts: pixels, (N, N) or (N, N + 1) with a last column for no class at all, which is
        drawn only if it is used.
    :param names: and colours of the N classes. A class without a pixel has an empty row.
    """
    missed = counts.shape[1] > len(names) and counts[:, -1].any()
    columns = [*names, 'none'] if missed else [*names]
    counts = np.asarray(counts, np.float64)[:, :len(columns)]
    pixels = counts.sum(1, keepdims=True)
    shares = np.divide(counts, pixels, out=np.zeros_like(counts), where=pixels > 0)
    cell = 46 if len(names) <= _NUMBERED else 18
    longest = max(_text_width(name, 0.5) for name in columns)
    top = _TOP + longest + 42
    left = longest + 118
    height, width = top + cell * len(names) + 24, left + cell * len(columns) + 24
    picture = _paper(height, max(width, 640))
    _write(picture, 'What each class is taken for, in % of its pixels', (24, 32), 0.62)
    _write(picture, 'truth', (24, top - 10), 0.5, _MARK)
    _write(picture, 'pixels', (left - 60, top - 10), 0.42)
    _write(picture, 'prediction', (left, _TOP + 10), 0.5, _MARK)
    for column, name in enumerate(columns):
        _write_upward(picture, name, (left + cell * column + cell // 2 + 5, top - 8))
    for row, (name, color) in enumerate(zip(names, colors, strict=True)):
        y = top + cell * row
        swatch = (20, y + cell // 2 - 5), (30, y + cell // 2 + 5)
        cv2.rectangle(picture, *swatch, color, -1)
        cv2.rectangle(picture, *swatch, _INK, 1)
        _write(picture, name, (40, y + cell // 2 + 5), 0.5)
        of_all = 100 * pixels[row, 0] / max(pixels.sum(), 1)
        _write(picture, f'{of_all:.1f} %' if pixels[row, 0] else '-',
               (left - 60, y + cell // 2 + 5), 0.42)
        for column, share in enumerate(shares[row]):
            corner = left + cell * column, y
            _cell(picture, corner, cell, share, len(names) <= _NUMBERED)
    return picture


def band_chart(x: np.ndarray, low: np.ndarray, middle: np.ndarray, high: np.ndarray, *,
               title: str, x_label: str, y_label: str) -> np.ndarray:
    """
    Draw the curve `middle` over `x` in a band from `low` to `high`; a NaN leaves a gap.

    All four are (N,). The y axis holds 0. Without a single value the chart is empty.
    """
    known = np.isfinite(middle)
    if not known.any():
        return _empty(title)
    axes = _Axes((float(x[known].min()), float(x[known].max())),
                 (min(0.0, float(low[known].min())), max(0.0, float(high[known].max()))),
                 title, x_label, y_label)
    starts = np.flatnonzero(known & ~np.r_[False, known[:-1]])
    ends = np.flatnonzero(known & ~np.r_[known[1:], False]) + 1
    runs = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    for run in runs:
        outline = np.r_[axes.points(x[run], low[run]), axes.points(x[run], high[run])[::-1]]
        cv2.fillPoly(axes.picture, [outline], _SOFT, cv2.LINE_AA)
    axes.line((axes.x_range[0], 0), (axes.x_range[1], 0), _INK)
    for run in runs:
        points = axes.points(x[run], middle[run])
        cv2.polylines(axes.picture, [points], False, _MAIN, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(axes.picture, point.tolist(), 3, _MAIN, -1, cv2.LINE_AA)
    return axes.picture


def histogram(edges: np.ndarray, shares: np.ndarray, marks: Sequence[tuple[float, str]] = (), *,
              title: str, x_label: str, y_label: str) -> np.ndarray:
    """
    Draw bars of height `shares` (N,) between `edges` (N + 1,), and lines at the named marks.

    Without a bar above 0 the chart is empty.
    """
    shares = np.nan_to_num(shares)
    if not shares.sum() > 0:
        return _empty(title)
    marks = [mark for mark in marks if edges[0] <= mark[0] <= edges[-1]]
    # The texts of the marks stand above the bars.
    top = float(np.max(shares)) * (1 + 0.07 * len(marks))
    axes = _Axes((float(edges[0]), float(edges[-1])), (0.0, top), title, x_label, y_label)
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        corner, opposite = axes.points(np.array([left, right]), np.array([0.0, share]))
        if share > 0:
            cv2.rectangle(axes.picture, corner.tolist(), (opposite - (1, 0)).tolist(), _MAIN, -1)
    for value, _ in marks:
        axes.line((value, 0), (value, axes.y_range[1]), _MARK)
    for number, (value, text) in enumerate(marks):
        x, y = axes.points(np.array([value]), np.array([axes.y_range[1]]))[0]
        # Every text lower than the one before, for marks that lie close together.
        at = int(x) + 6, int(y) + 18 + 22 * number
        strip = axes.picture[at[1] - 14:at[1] + 5, at[0] - 3:at[0] + _text_width(text, 0.46) + 3]
        strip[:] = _PAPER
        _write(axes.picture, text, at, 0.46, _MARK)
    return axes.picture


class _Axes:
    """A frame with grid, numbers and titles; knows where in the picture a value lies."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float],
                 title: str, x_label: str, y_label: str) -> None:
        self.picture = _paper(*_SIZE)
        height, width = _SIZE
        x_ticks, y_ticks = _ticks(*x_range), _ticks(*y_range)
        self.x_range = x_range if x_range[1] > x_range[0] else (x_ticks[0], x_ticks[-1])
        # The y axis ends at whole ticks, so that nothing touches the frame.
        self.y_range = y_ticks[0], y_ticks[-1]
        self._origin = np.array([_LEFT, height - _BOTTOM])
        self._pixels = np.array([width - _LEFT - _RIGHT, -(height - _BOTTOM - _TOP)])
        for tick in x_ticks:
            if self.x_range[0] <= tick <= self.x_range[1]:
                self.line((tick, self.y_range[0]), (tick, self.y_range[1]), _GRID)
                self._number(tick, (tick, self.y_range[0]), down=20)
        for tick in y_ticks:
            self.line((self.x_range[0], tick), (self.x_range[1], tick), _GRID)
            self._number(tick, (self.x_range[0], tick), left=10)
        _write(self.picture, title, (_LEFT, 32), 0.62)
        _write(self.picture, x_label, (width - _RIGHT - _text_width(x_label, 0.5), height - 16),
               0.5)
        _write_upward(self.picture, y_label, (22, _TOP + _text_width(y_label, 0.5)))

    def points(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the pixels (N, 2) int32 of values x, y (N,)."""
        share = np.stack([(x - self.x_range[0]) / (self.x_range[1] - self.x_range[0]),
                          (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])], 1)
        return (self._origin + share * self._pixels).round().astype(np.int32)

    def line(self, start: tuple[float, float], end: tuple[float, float], color: Color) -> None:
        """Draw a thin line between two values."""
        ends = self.points(np.array([start[0], end[0]]), np.array([start[1], end[1]]))
        cv2.line(self.picture, ends[0].tolist(), ends[1].tolist(), color, 1)

    def _number(self, value: float, at: tuple[float, float], down: int = 0, left: int = 0) -> None:
        text = f'{value:.6g}'
        x, y = self.points(np.array([at[0]]), np.array([at[1]]))[0]
        width = _text_width(text, 0.45)
        x = x - left - width if left else x - width // 2
        _write(self.picture, text, (int(x), int(y) + (down or 5)), 0.45)


def _ticks(low: float, high: float) -> list[float]:
    """Return about six round numbers from at most `low` to at least `high`."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _cell(picture: np.ndarray, corner: tuple[int, int], size: int, share: float,
          numbered: bool) -> None:
    x, y = corner
    color = np.array(_PAPER) + share ** 0.6 * (np.array(_MAIN) - _PAPER)
    cv2.rectangle(picture, corner, (x + size - 2, y + size - 2), color.tolist(), -1)
    if size > 2:
        cv2.rectangle(picture, (x - 1, y - 1), (x + size - 1, y + size - 1), _GRID, 1)
    text = f'{100 * share:.0f}'
    if numbered and text != '0':
        at = x + (size - _text_width(text, 0.45)) // 2, y + size // 2 + 5
        _write(picture, text, at, 0.45, _PAPER if share > 0.4 else _INK)


def _empty(title: str) -> np.ndarray:
    picture = _paper(*_SIZE)
    _write(picture, title, (_LEFT, 32), 0.62)
    _write(picture, 'no pixel to show', (_LEFT, _SIZE[0] // 2), 0.62)
    return picture


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _write(picture: np.ndarray, text: str, at: tuple[int, int], scale: float,
           color: Color = _INK) -> None:
    cv2.putText(picture, text, at, _FONT, scale, color, 1, cv2.LINE_AA)


def _write_upward(picture: np.ndarray, text: str, at: tuple[int, int]) -> None:
    """Write from bottom to top, starting at `at`."""
    strip = _paper(24, _text_width(text, 0.5) + 4)
    _write(strip, text, (0, 17), 0.5)
    strip = np.rot90(strip)
    bottom, left = at[1], at[0] - 17
    region = picture[max(0, bottom - strip.shape[0]):bottom, left:left + 24]
    region[:] = strip[-region.shape[0]:, :region.shape[1]]


def _text_width(text: str, scale: float) -> int:
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]
