# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Surface normals from a depth image: a plane fitted around each pixel."""

import numpy as np

# Fewer pixels, or pixels in one line (variances in pixels, multiplied), hold no plane.
_MIN_PIXELS = 6
_MIN_SPREAD = 0.05
# Rows fitted at once: few enough that all sums stay in the processor's cache.
_STRIP = 32


def fit_normals(depth: np.ndarray, intrinsics: np.ndarray, radius: int = 7,
                edge: float = 0.05, offset: float = 0.01) -> np.ndarray:
    """
    Return unit normals (H, W, 3) in the optical frame, toward the camera; zeros where unknown.

    On a plane the inverse depth is a linear function of the pixel, 1/z = gx u + gy v + c, so the
    fit is a linear least-squares one; and the noise of a structured-light or stereo camera is
    even in inverse depth. Two fits: one of the pixels whose depth is like the centre's, then one
    of those among them that lie on the first plane, so that a second surface that meets the
    first one at a crease loses its vote.

    :param depth: (H, W), along z, 0 where it is unknown.
    :param intrinsics: (3, 3), pixel centres at whole numbers.
    :param radius: half the window's width in pixels; the noisier the depth, the larger.
    :param edge: relative difference of depth from the centre's beyond which a pixel belongs to
        something else.
    :param offset: relative distance from the first plane beyond which a pixel does.
    """
    known = depth > 0
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    padded = np.pad(inverse, radius)
    strips = []
    for top in range(0, len(depth), _STRIP):
        part = padded[top:top + _STRIP + 2 * radius]
        gx, gy, c, _ = _fit(part, radius, edge)
        strips.append(_fit(part, radius, edge, (gx, gy, c), offset))
    gx, gy, c, valid = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    fx, fy, cx, cy = (np.float32(intrinsics[row][column]) for row, column in
                      ((0, 0), (1, 1), (0, 2), (1, 2)))
    u, v = np.arange(depth.shape[1]), np.arange(depth.shape[0])[:, None]
    # 1/z = g . (x, y, 1) for the ray (x, y, 1) of a pixel; where that is positive, the plane's
    # normal -g looks at the camera.
    normal = -np.stack((gx * fx, gy * fy, inverse + c - gx * (u - cx) - gy * (v - cy)), -1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    valid = (valid & known)[..., None] & (length > 0)
    return np.where(valid, normal / np.where(valid, length, 1), 0).astype(np.float32)


def _fit(padded, radius, edge, plane=None, offset=0.0):
    """
    Fit a plane around each pixel to the differences of inverse depth from the pixel's own.

    `padded` has `radius` more pixels on each side than the result. Return gx, gy, c and where
    they are determined, each (H, W). Unknown pixels have inverse depth 0: they differ from any
    centre by all of its value, and so never count.
    """
    inverse = padded[radius:-radius, radius:-radius]
    height, width = inverse.shape
    near, on_plane = edge * inverse, offset * inverse
    # Sums over the window of the pixels' weights times powers of dx, dy and the difference d.
    n, sx, sy, sxx, sxy, syy, sd, sxd, syd = np.zeros((9, height, width), np.float32)
    for dy in range(-radius, radius + 1):
        row = np.zeros((5, height, width), np.float32)
        for dx in range(-radius, radius + 1):
            d = padded[radius + dy:, radius + dx:][:height, :width] - inverse
            counts = np.abs(d) < near
            if plane is not None:
                gx, gy, c = plane
                counts &= np.abs(d - (gx * dx + gy * dy + c)) < on_plane
            weight = counts.astype(np.float32)
            d *= weight
            for total, value in zip(row, (weight, dx * weight, dx * dx * weight, d, dx * d),
                                    strict=True):
                total += value
        for total, value in ((n, row[0]), (sx, row[1]), (sxx, row[2]), (sd, row[3]),
                             (sxd, row[4]), (sy, dy * row[0]), (sxy, dy * row[1]),
                             (syy, dy * dy * row[0]), (syd, dy * row[3])):
            total += value
    count = np.maximum(n, 1)
    mx, my, md = sx / count, sy / count, sd / count
    xx, xy, yy = sxx / count - mx * mx, sxy / count - mx * my, syy / count - my * my
    xd, yd = sxd / count - mx * md, syd / count - my * md
    spread = xx * yy - xy * xy
    determined = (n >= _MIN_PIXELS) & (spread > _MIN_SPREAD)
    spread = np.where(determined, spread, 1)
    gx, gy = (yy * xd - xy * yd) / spread, (xx * yd - xy * xd) / spread
    return gx, gy, md - gx * mx - gy * my, determined
