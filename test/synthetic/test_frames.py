# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Rendered frames: exact, consistent, the same everywhere, varied and fast enough."""

import time

import pytest
import torch

from mtan_perception.synthetic import render
from mtan_perception.synthetic.frames import _smooth_edges

CLASSES = ('bed', 'books', 'ceiling', 'chair', 'floor', 'furniture', 'objects', 'picture', 'sofa',
           'table', 'tv', 'wall', 'window')
FLOOR, CEILING, WALL = 4, 2, 11


@pytest.fixture(scope='module')
def frames():
    return render(range(300, 312), 96, 128)


@pytest.fixture(scope='module')
def many():
    return render(range(7000, 7128), 36, 48)


def points_of(frames):
    """Return back-projected points (N, 3, H, W)."""
    _, _, height, width = frames.depth.shape
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    k = frames.intrinsics[:, :, :, None, None]
    x, y = (u - k[:, 0, 2]) / k[:, 0, 0], (v - k[:, 1, 2]) / k[:, 1, 1]
    return torch.stack((x, y, torch.ones_like(x)), 1) * frames.depth


def test_shapes_types_and_ranges(frames):
    assert frames.rgb.shape == (12, 3, 96, 128) and frames.rgb.dtype == torch.float32
    assert frames.label.shape == (12, 96, 128) and frames.label.dtype == torch.int64
    assert frames.depth.shape == (12, 1, 96, 128) and frames.normal.shape == (12, 3, 96, 128)
    assert frames.rgb.min() >= 0 and frames.rgb.max() <= 1
    assert frames.label.min() >= 0 and frames.label.max() <= 12
    assert frames.depth.min() > 0.1 and frames.depth.max() < 12
    assert all(torch.isfinite(field).all() for field in frames)


def test_intrinsics_have_square_pixels_and_a_centred_axis(frames):
    k = frames.intrinsics
    assert torch.equal(k[:, 0, 0], k[:, 1, 1])
    assert (k[:, 0, 2] == 63.5).all() and (k[:, 1, 2] == 47.5).all()
    fov = torch.rad2deg(2 * torch.atan(64 / k[:, 0, 0]))
    assert fov.min() >= 45 and fov.max() <= 100


def test_normals_are_unit_vectors_toward_the_camera(frames):
    assert (frames.normal.norm(dim=1) - 1).abs().max() < 1e-4
    assert (frames.normal * points_of(frames)).sum(1).max() < 0


def test_depth_and_normals_describe_the_same_planes(frames):
    points, normal = points_of(frames), frames.normal
    flat = 0
    for axis in (2, 3):
        size = points.shape[axis] - 1
        p, n = points.diff(dim=axis), normal.narrow(axis, 0, size)
        label = frames.label.narrow(axis - 1, 0, size)
        same = (n == normal.narrow(axis, 1, size)).all(1)
        same &= label == frames.label.narrow(axis - 1, 1, size)
        same &= (label == WALL) | (label == FLOOR) | (label == CEILING)
        # A neighbour with the same normal lies in the plane, but for steps from one plane to a
        # parallel one, such as the corner of an L-shaped room.
        off = (p * n).sum(1).abs()[same]
        flat += len(off)
        assert (off < 1e-3).float().mean() > 0.99
    assert flat > 100_000


def test_floor_is_below_and_ceiling_above(frames):
    # All but the edges of rugs.
    assert (frames.normal[:, 1][frames.label == FLOOR] < -0.5).float().mean() > 0.99
    assert (frames.normal[:, 1][frames.label == CEILING] > 0.5).float().mean() > 0.9


def test_a_scene_does_not_depend_on_its_batch():
    seeds = range(40, 48)
    together = render(seeds, 48, 64)
    for i, seed in enumerate(seeds):
        for one, all_ in zip(render([seed], 48, 64), together, strict=True):
            assert (one[0].float() - all_[i].float()).abs().max() < 1e-4


def test_the_same_call_gives_the_same_frames(frames):
    again = render(range(300, 312), 96, 128)
    assert all(torch.equal(a, b) for a, b in zip(frames, again, strict=True))


def test_another_size_shows_the_same_view(frames):
    big = render(range(300, 304), 192, 256)
    # Pixel centres of the small image lie between four of the big one.
    depth = big.depth.unflatten(2, (96, 2)).unflatten(4, (128, 2)).mean((3, 5))
    small = frames.depth[:4]
    assert ((depth - small).abs() / small < 0.02).float().mean() > 0.93
    assert (big.intrinsics[:, 0, 0] / frames.intrinsics[:4, 0, 0] - 2).abs().max() < 1e-4
    assert (big.label[:, ::2, ::2] == frames.label[:4]).float().mean() > 0.9


def test_time_moves_the_camera_a_little_at_a_time():
    here, soon, later = (render([5], 60, 80, time=t) for t in (1.0, 1.0 + 1 / 30, 6.0))
    change = (soon.depth - here.depth).abs() / here.depth
    assert 0 < change.median() < 0.02
    assert ((later.depth - here.depth).abs() / here.depth).median() > change.median()


def test_every_class_has_its_share(many):
    share = torch.bincount(many.label.flatten(), minlength=13) / many.label.numel()
    by_name = dict(zip(CLASSES, share.tolist(), strict=True))
    assert min(share) > 0.008, by_name
    assert share[WALL] < 0.42, by_name


def test_views_show_furnished_rooms(many):
    shares = torch.stack([(many.label == c).float().mean((1, 2)) for c in range(13)], 1)
    assert (shares > 0.002).sum(1).float().mean() > 6.5
    # A camera glued to a wall would see one class only.
    assert (shares.max(1).values > 0.85).float().mean() < 0.04
    assert many.depth.flatten(1).median(1).values.min() > 0.6


def test_images_are_exposed_and_varied(many):
    mean = many.rgb.mean((1, 2, 3))
    assert mean.min() > 0.15 and mean.max() < 0.8 and mean.std() > 0.04
    # Colour does not give a class away: mean hues of sofas and walls spread over all channels.
    for c in (FLOOR, WALL):
        colours = torch.stack([rgb[:, label == c].mean(1) for rgb, label in
                               zip(many.rgb, many.label, strict=True) if (label == c).sum() > 20])
        assert colours.std(0).min() > 0.08


def test_edges_mix_the_colours_of_both_sides():
    """A pixel cut by an edge takes from each side by the share of its sub-samples there."""
    height, width, edge = 6, 9, 4.2
    u = torch.arange(float(width)).expand(1, height, width)
    surface = (u > edge).long()
    light = (u > edge).float()[:, None].expand(1, 3, -1, -1).contiguous()

    def trace(frame, y, x, u, v):
        return (u > edge).float()

    smooth = _smooth_edges(light, surface, trace)
    # Sub-samples at +0.31 of pixel 4 lie beyond the edge at 4.2; of pixel 5, all do.
    assert torch.allclose(smooth[0, 0, 3], torch.tensor([0.0, 0, 0, 0, 0.25, 1, 1, 1, 1]))


def test_rejects_nothing_to_render():
    with pytest.raises(ValueError, match='needs seeds'):
        render([], 10, 10)
    with pytest.raises(ValueError, match='0 x 10'):
        render([1], 0, 10)


def test_is_fast_enough_to_be_a_camera():
    seeds = list(range(50, 58))
    render(seeds, 144, 192)
    start = time.process_time()
    render(seeds, 144, 192, time=1.0)
    # About 0.08 s of processor time on an idle machine; the bound allows for busy ones.
    assert (time.process_time() - start) / len(seeds) < 0.6
