# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of the outputs for people: every function returns uint8 (H, W, 3) RGB."""

from collections.abc import Sequence
import functools

import cv2
import numpy as np

from mtan_perception.labels import LabelSet, UNLABELLED

_BACKGROUND = (24, 26, 30)
_INK = (222, 224, 228)
_MARGIN = 8
_FONT = cv2.FONT_HERSHEY_DUPLEX
_LEGEND_HEIGHT = 24


def color_mask(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paint class ids `label` (H, W) uint8 with `palette` (256, 3) uint8."""
    # Several times as fast as palette[label].
    return cv2.applyColorMap(label, palette.reshape(256, 1, 3))


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray,
            alpha: float = 0.5) -> np.ndarray:
    """
    Lay the class colours over `image` (H, W, 3) uint8; unlabelled pixels (255) show the image.

    `alpha` is the weight of the colours: 0 leaves the image, 1 the mask.
    """
    blended = cv2.addWeighted(image, 1 - alpha, color_mask(label, palette), alpha, 0)
    if label.max() < UNLABELLED:
        return blended
    unlabelled = cv2.compare(label, UNLABELLED, cv2.CMP_EQ)
    return cv2.copyTo(np.ascontiguousarray(image), unlabelled, blended)


def color_depth(depth: np.ndarray, min_depth: float, max_depth: float) -> np.ndarray:
    """
    Paint `depth` (H, W) in metres with the turbo map: near is warm, far is cold, NaN is black.

    Depth outside [min_depth, max_depth] takes the colour of the nearer end.
    """
    scale = 255 / (max_depth - min_depth)
    # A sum of one: it scales, rounds and keeps to 0..255 in one pass.
    level = cv2.addWeighted(depth, -scale, depth, 0, max_depth * scale, dtype=cv2.CV_8U)
    color = color_mask(level, _turbo())
    if np.isfinite(depth.min()):  # NaN where any is
        return color
    return cv2.copyTo(color, cv2.compare(depth, depth, cv2.CMP_EQ))


@functools.cache
def _turbo() -> np.ndarray:
    """Return the turbo map, (256, 3) uint8 RGB; OpenCV would make it anew for each picture."""
    levels = np.arange(256, dtype=np.uint8)[None]
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[0, :, ::-1])


def color_normal(normal: np.ndarray) -> np.ndarray:
    """Paint unit vectors `normal` (H, W, 3) as (n + 1) / 2."""
    return cv2.convertScaleAbs(normal, alpha=127.5, beta=127.5)


def contact_sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]],
                  labels: LabelSet | None = None) -> np.ndarray:
    """
    Lay out rows of (caption, image) on one sheet, each caption above its image.

    `labels`, if given, explains the colours of the classes below them.

    Images are uint8 (H, W, 3) RGB or (H, W) grey. Every cell is as large as the largest image;
    a smaller one is enlarged or shrunk into its cell without stretching. Rows may be of different
    length. Raise ValueError if there is no image.
    """
    images = [image for row in rows for _, image in row]
    if not images:
        raise ValueError('a contact sheet needs at least one image')
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    caption_height = int(np.clip(width // 14, 14, 40))
    columns = max(len(row) for row in rows)
    pitch_x, pitch_y = width + _MARGIN, height + caption_height + _MARGIN
    sheet = np.empty((len(rows) * pitch_y + _MARGIN, columns * pitch_x + _MARGIN, 3), np.uint8)
    sheet[:] = _BACKGROUND
    for i, row in enumerate(rows):
        for j, (caption, image) in enumerate(row):
            x, y = _MARGIN + j * pitch_x, _MARGIN // 2 + i * pitch_y
            _write(sheet[y:y + caption_height, x:x + width], caption)
            y += caption_height
            _place(sheet[y:y + height, x:x + width], image)
    return sheet if labels is None else np.concatenate((sheet, _legend(sheet.shape[1], labels)))


def _legend(width: int, labels: LabelSet) -> np.ndarray:
    """Return a patch of each class's colour with its name, in lines of the width given."""
    scale = 0.5 * _LEGEND_HEIGHT / cv2.getTextSize('Ag', _FONT, 1.0, 1)[0][1]
    places, x, line = [], _MARGIN, 0
    for name in labels.names:
        size = cv2.getTextSize(name, _FONT, scale, 1)[0][0] + 2 * _LEGEND_HEIGHT
        if x + size > width and x > _MARGIN:
            x, line = _MARGIN, line + 1
        places.append((x, line * _LEGEND_HEIGHT))
        x += size
    strip = np.empty(((line + 1) * _LEGEND_HEIGHT + _MARGIN, width, 3), np.uint8)
    strip[:] = _BACKGROUND
    side = 2 * _LEGEND_HEIGHT // 3
    for (x, y), name, color in zip(places, labels.names, labels.colors, strict=True):
        strip[y:y + side, x:x + side] = color
        cv2.putText(strip, name, (x + _LEGEND_HEIGHT, y + side - 2), _FONT, scale, _INK, 1,
                    cv2.LINE_AA)
    return strip


def _write(strip: np.ndarray, caption: str) -> None:
    """Write `caption` into the strip, in smaller letters if it would not fit."""
    height, width = strip.shape[:2]
    (unit_width, unit_height), _ = cv2.getTextSize(caption + 'Ag', _FONT, 1.0, 1)
    scale = min(0.6 * height / unit_height, width / unit_width)
    cv2.putText(strip, caption, (0, int(0.7 * height)), _FONT, scale, _INK, 1, cv2.LINE_AA)


def _place(cell: np.ndarray, image: np.ndarray) -> None:
    """Put the image, scaled to fit, into the middle of the cell."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    scale = min(cell.shape[0] / image.shape[0], cell.shape[1] / image.shape[1])
    if scale != 1:
        size = [max(1, round(length * scale)) for length in (image.shape[1], image.shape[0])]
        image = cv2.resize(image, size,
                           interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    y, x = ((cell.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
    cell[y:y + image.shape[0], x:x + image.shape[1]] = image


def depth_range(depth: np.ndarray) -> tuple[float, float]:
    """Return the range, in metres, that shows a depth best: all but 1 % of it at each end."""
    known = depth[(depth > 0) & np.isfinite(depth)]
    near, far = np.percentile(known, (1, 99)) if known.size else (0.0, 10.0)
    return float(near), float(max(far, near + 0.1))
