# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Floor and obstacles: a box on a plane seen by a tilted camera, computed by hand."""

import numpy as np
import pytest

from mtan_perception.node import obstacles
from mtan_perception.node.obstacles import (
    class_ids,
    find_floor,
    find_level_floor,
    find_obstacles,
    fit_plane,
    Plane,
    thin,
)

# The camera: 0.8 m above the floor, tilted 25 degrees down and 5 degrees to the side.
HEIGHT = 0.8
SIZE, FOCAL = (96, 128), 110.0
BOX = (-0.2, 0.3, 1.5, 1.9)


def up(tilt=25.0, roll=5.0) -> np.ndarray:
    t, r = np.radians((tilt, roll))
    return np.array([np.sin(r) * np.cos(t), -np.cos(r) * np.cos(t), -np.sin(t)])


def scene(box_height: float):
    """Return points (3, H, W), normals (H, W, 3), which pixels show the box's top and front."""
    u = up()
    forward = np.array([0, 0, 1]) - u * u[2]
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, u)
    v, x = np.mgrid[:SIZE[0], :SIZE[1]]
    rays = np.stack([(x - 63.5) / FOCAL, (v - 47.5) / FOCAL, np.ones(SIZE)], -1)
    depth, normal = -HEIGHT / (rays @ u), np.broadcast_to(u, rays.shape).copy()
    depth[depth <= 0] = np.nan
    top_depth = -(HEIGHT - box_height) / (rays @ u)
    front_depth = BOX[2] / (rays @ forward)
    points = rays * top_depth[..., None]
    across, along = points @ right, points @ forward
    top = (top_depth > 0) & (BOX[0] < across) & (across < BOX[1])
    top &= (BOX[2] < along) & (along < BOX[3])
    points = rays * front_depth[..., None]
    across, height = points @ right, points @ u + HEIGHT
    front = (BOX[0] < across) & (across < BOX[1]) & (0 < height) & (height < box_height)
    depth = np.where(front, front_depth, np.where(top, top_depth, depth))
    normal[front] = -forward
    points = np.moveaxis(rays * depth[..., None], -1, 0)
    return points.astype(np.float32), normal.astype(np.float32), top, front


@pytest.mark.parametrize('known_up', [None, up()])
@pytest.mark.parametrize('by_class', [True, False])
def test_the_floor_is_found_by_class_or_by_its_normals(known_up, by_class):
    points, normal, top, front = scene(0.3)
    floor = (find_floor(points, ~top & ~front, known_up) if by_class
             else find_level_floor(points, np.ones(SIZE, bool), normal, known_up))
    assert np.degrees(np.arccos(min(1, floor.normal @ up()))) < 0.05
    assert -floor.offset == pytest.approx(HEIGHT, abs=1e-3), 'the camera is above the floor'


def test_the_fit_leaves_outliers_aside():
    rng = np.random.default_rng(0)
    points = scene(0.3)[0].reshape(3, -1).T.astype(float)
    points = points[np.isfinite(points[:, 2])][::5]
    points += rng.normal(scale=0.005, size=points.shape)
    wrong = rng.random(len(points)) < 0.2
    points[wrong] += rng.uniform(0.1, 1.0, (wrong.sum(), 1)) * up()
    plane = fit_plane(points.T)
    assert np.degrees(np.arccos(min(1, plane.normal @ up()))) < 0.5
    assert -plane.offset == pytest.approx(HEIGHT, abs=0.02)


@pytest.mark.parametrize('noise', [0, 0.01])
def test_the_fit_passes_over_a_wall_that_is_called_floor(noise):
    """Six points of ten are on it; a depth's noise is a share of the depth."""
    rng = np.random.default_rng(0)
    points = scene(0.3)[0].reshape(3, -1).astype(float)
    points = points[:, np.isfinite(points[2])][:, ::10]
    wall = points / points[2] * 4.0
    mixed = np.concatenate([points[:, ::3], wall[:, ::2]], axis=1)
    mixed *= 1 + noise * rng.standard_normal(mixed.shape[1])
    plane = fit_plane(mixed)
    assert np.degrees(np.arccos(min(1, plane.normal @ up()))) < (1.0 if noise else 1e-3)
    assert -plane.offset == pytest.approx(HEIGHT, abs=0.02 if noise else 1e-4)


@pytest.mark.parametrize('tilt', [0, 45, 90])
def test_the_fit_at_any_tilt(tilt):
    """From a camera that looks level to one that looks straight down; three of ten are boxes."""
    rng, u = np.random.default_rng(0), up(tilt, 0)
    x, y = np.mgrid[-0.6:0.6:30j, -0.4:0.4:40j]
    rays = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    depth = -HEIGHT / (u @ rays)
    points = (rays * depth)[:, (depth > 0) & (depth < 8)]
    points *= 1 + 0.01 * rng.standard_normal(points.shape[1])
    above = (rng.random(points.shape[1]) < 0.3) * rng.uniform(0.1, 1, points.shape[1])
    points += above * u[:, None]
    plane = fit_plane(points)
    assert np.degrees(np.arccos(min(1, plane.normal @ u))) < 1
    assert -plane.offset == pytest.approx(HEIGHT, abs=0.02)


@pytest.mark.parametrize('points', [np.ones((3, 60)), np.linspace([0, 1, 1], [0, 1, 3], 60).T])
def test_the_fit_of_points_that_are_no_plane_is_one_all_the_same(points):
    """One point, or a line: no warning, and a plane through them."""
    plane = fit_plane(points)
    assert np.linalg.norm(plane.normal) == pytest.approx(1)
    assert np.abs(plane.heights(points)).max() < 1e-6


def test_no_floor_is_found_where_there_is_none():
    points, normal, *_ = scene(0.3)
    nowhere = np.zeros(SIZE, bool)
    unknown = np.full_like(points, np.nan)
    assert find_floor(points, nowhere) is None
    assert find_floor(unknown, ~nowhere) is None
    assert find_level_floor(unknown, ~nowhere, normal) is None
    wall = np.broadcast_to(np.float32((0, 0, -1)), normal.shape)
    assert find_level_floor(points, ~nowhere, wall) is None


@pytest.mark.parametrize('known_up', [None, up()])
def test_a_level_surface_that_is_something_else_by_class_is_no_floor(known_up):
    """As when a bed fills the view: it would be the floor, and what lies on it the obstacle."""
    points, normal, top, front = scene(0.3)
    points[:, ~top & ~front] = np.nan
    nowhere = np.zeros(SIZE, bool)
    assert find_level_floor(points, nowhere, normal, known_up) is None
    box = find_level_floor(points, ~nowhere, normal, known_up)
    assert -box.offset == pytest.approx(HEIGHT - 0.3, abs=1e-3), 'it is what no class speaks for'


@pytest.mark.parametrize('box_height', [0.06, 0.3])
def test_a_box_above_the_limit_is_an_obstacle_and_the_floor_is_not(box_height):
    points, normal, top, front = scene(box_height)
    is_floor = ~top & ~front
    floor = find_floor(points, is_floor)
    found = find_obstacles(points, is_floor, np.zeros(SIZE, bool), normal, floor, 0.05)
    assert top.sum() > 100 and front.sum() > 20
    np.testing.assert_array_equal(found, top | front)


def test_what_faces_up_below_the_limit_is_floor():
    points, normal, top, front = scene(0.04)
    found = find_obstacles(
        points, ~top & ~front, np.zeros(SIZE, bool), normal, Plane(up(), -HEIGHT), 0.05)
    np.testing.assert_array_equal(found, front)


@pytest.mark.parametrize('wrong', ['class', 'normal', 'height'])
def test_one_wrong_witness_of_the_floor_is_outvoted(wrong):
    points, normal, top, front = scene(0.3)
    is_floor, floor = ~top & ~front, Plane(up(), -HEIGHT)
    if wrong == 'class':
        is_floor[:] = False
    elif wrong == 'normal':
        normal[is_floor] = (0, 0, -1)
    else:
        points[:, is_floor] *= np.float32(0.8)
    found = find_obstacles(points, is_floor, np.zeros(SIZE, bool), normal, floor, 0.05)
    np.testing.assert_array_equal(found, top | front)


def test_a_wall_that_is_called_floor_stays_an_obstacle():
    points, normal, _, front = scene(0.5)
    everything = np.ones(SIZE, bool)
    high = front & (Plane(up(), -HEIGHT).heights(points) > 0.06)
    found = find_obstacles(points, everything, ~everything, normal, Plane(up(), -HEIGHT), 0.05)
    assert high.sum() > 100 and found[high].all()


def test_a_ceiling_is_no_obstacle_and_a_lamp_below_it_is():
    u, nothing = up(0.0, 0.0), np.zeros((1, 3), bool)
    points = np.float32([[0, 0, 0], [-1.6, -1.6, -1.4], [3, 3, 3]])[:, None]
    normal = np.float32([[-u, (0, 0, -1), (0, 0, -1)]])
    ceiling = np.array([[True, True, False]])
    found = find_obstacles(points, nothing, ceiling, normal, Plane(u, -HEIGHT), 0.05)
    np.testing.assert_array_equal(found, [[False, False, True]])


def test_without_a_plane_the_class_decides():
    points, normal, top, front = scene(0.3)
    points[:, :48] = np.nan  # of no pixel there is anything to say
    found = find_obstacles(points, ~top & ~front, top, normal, None, 0.05)
    front[:48] = False
    assert front.any()
    np.testing.assert_array_equal(found, front)


@pytest.mark.parametrize('max_table', [obstacles._MAX_TABLE, 0])
def test_one_point_in_each_cube(monkeypatch, max_table):
    """By the table and, where that would be too large, by sorting: the first of each."""
    monkeypatch.setattr(obstacles, '_MAX_TABLE', max_table)
    rng = np.random.default_rng(0)
    points = np.repeat(rng.uniform(-2, 2, (2500, 3)).astype(np.float32), 2, axis=0)
    points *= np.float32((1.0, 0.4, 0.7))  # the grid has another size along each axis
    wanted = rng.random(len(points)) < 0.8
    points[~wanted & (rng.random(len(points)) < 0.5)] = np.nan
    planes = np.ascontiguousarray(points.T).reshape(3, 50, 100)
    thinned = thin(planes, wanted.reshape(50, 100), 0.25)
    first = {}
    for point in points[wanted]:
        first.setdefault(tuple(np.floor(point / 0.25)), point)
    assert len(first) < 2500
    np.testing.assert_array_equal(thinned, list(first.values()))
    assert thin(planes, np.zeros((50, 100), bool), 0.25).shape == (0, 3)


def test_class_ids_pass_over_names_that_the_weights_lack():
    chosen = class_ids(['floor', 'road'], ('bed', 'floor'))
    assert np.flatnonzero(chosen).tolist() == [1]


def test_what_hangs_over_a_robot_is_an_obstacle_below_two_metres():
    """A table top seen from below is; a ceiling is none, whatever its class."""
    u, nothing = up(0.0, 0.0), np.zeros((1, 2), bool)
    points = np.float32([[0, 0], [-0.4, -1.6], [3, 3]])[:, None]
    normal = np.broadcast_to(np.float32(-u), (1, 2, 3))
    found = find_obstacles(points, nothing, nothing, normal, Plane(u, -HEIGHT), 0.05)
    np.testing.assert_array_equal(found, [[True, False]])


@pytest.mark.parametrize('angle, level', [(40, True), (50, False)])
def test_a_slope_of_up_to_45_degrees_counts_as_level(angle, level):
    """Without its class, what is steeper is an obstacle from its foot on."""
    slope = np.float32(up(0.0, angle))[None, None]
    points, nothing = np.float32([0, HEIGHT, 2])[:, None, None], np.zeros((1, 1), bool)
    found = find_obstacles(points, nothing, nothing, slope, Plane(up(0.0, 0.0), -HEIGHT), 0.05)
    assert found == (not level)


@pytest.mark.parametrize('known_up', [None, up()])
def test_the_lowest_level_surface_is_the_floor_however_small(known_up):
    """Nine level points of ten are on a box."""
    points, normal, top, front = scene(0.3)
    is_floor = np.flatnonzero(~top & ~front & np.isfinite(points[2]))
    points.reshape(3, -1)[:, is_floor] *= np.float32(1 - 0.3 / HEIGHT)  # a box all over
    seen = is_floor[::10]
    points.reshape(3, -1)[:, seen] /= np.float32(1 - 0.3 / HEIGHT)
    floor = find_level_floor(points, np.ones(SIZE, bool), normal, known_up)
    assert -floor.offset == pytest.approx(HEIGHT, abs=1e-3)


def test_few_points_are_no_floor_and_wrong_ones_do_not_lift_it():
    """Fifty are needed; with a known direction three of ten on boxes leave the height as it is."""
    points, _, top, front = scene(0.3)
    is_floor = np.flatnonzero(~top & ~front & np.isfinite(points[2]))
    for count in (49, 50):
        some = np.zeros(SIZE, bool)
        some.flat[is_floor[:count]] = True
        assert (find_floor(points, some, up()) is None) == (count < 50)
    wrong = is_floor[np.random.default_rng(0).random(len(is_floor)) < 0.3]
    points.reshape(3, -1)[:, wrong] += np.float32(0.3 * up())[:, None]
    floor = find_floor(points, ~top & ~front, up())
    assert -floor.offset == pytest.approx(HEIGHT, abs=1e-3)


def test_no_point_is_lost_in_a_grid_of_very_many_cubes():
    """Of more cells than a float32 can number: half a centimetre over twenty metres."""
    points = np.random.default_rng(0).uniform(-10, 10, (3, 50, 100)).astype(np.float32)
    points[1:] = np.where(points[1:] < 0, -9.9, 9.9)  # four lines, so that cubes are neighbours
    thinned = thin(points, np.ones((50, 100), bool), 0.005)
    assert len(thinned) == len(np.unique(np.floor(points / np.float32(0.005)).reshape(3, -1).T,
                                         axis=0))
