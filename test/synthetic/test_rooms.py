# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Floor plans and the camera's way: nothing overlaps, nothing is hit."""

import math

import pytest
import torch

from mtan_perception.synthetic.camera import place_camera
from mtan_perception.synthetic.furniture import furnish
from mtan_perception.synthetic.hashing import Dice
from mtan_perception.synthetic.parts import BOX, CYLINDER, ELLIPSOID
from mtan_perception.synthetic.rooms import footprint, plan_rooms

SCENES = 120
# Placed relative to another piece, which they may overlap: chairs stand under their table.
ATTACHED = ('nightstand', 'coffee_table', 'desk_chair', 'dining_chair')


@pytest.fixture(scope='module')
def rooms():
    dice = Dice(torch.arange(SCENES) + 31_000)
    plan = plan_rooms(dice)
    return dice, plan, furnish(plan, dice)


def test_furniture_lies_in_the_room_and_does_not_overlap(rooms):
    _, plan, _ = rooms
    pieces = [plan.zone] + [item for name, item in plan.items.items() if name not in ATTACHED]
    centre = torch.cat([torch.stack((p.x, p.y), -1) for p in pieces], 1)
    half = torch.cat([footprint(p) for p in pieces], 1)
    present = torch.cat([p.present for p in pieces], 1)
    over = (centre.abs() + half - plan.half[:, None]).amax(-1)
    assert over[present].max() < 1e-3
    apart = (centre[:, :, None] - centre[:, None]).abs()
    gap = (apart - half[:, :, None] - half[:, None]).amax(-1)
    both = present[:, :, None] & present[:, None] & ~torch.eye(len(present[0])).bool()
    assert gap[both].min() > 0.0
    # Rooms are furnished: the zone, then on average at least six pieces.
    assert present.sum(1).float().mean() > 7


def test_the_camera_keeps_clear_of_everything_at_all_times(rooms):
    dice, plan, parts = rooms
    solids = [parts.solids(shape) for shape in (BOX, CYLINDER, ELLIPSOID)]
    for time in (0.0, 1.3, 4.0, 9.7, 30.1):
        position = place_camera(plan, dice, time).position
        room = torch.cat((plan.half, plan.height[:, None] / 2), 1)
        middle = torch.nn.functional.pad(plan.height[:, None] / 2, (2, 0))
        assert (room - (position - middle).abs()).min() > 0.25
        for s in solids:
            offset = (position[:, None] - s.centre)[..., None]
            local = (s.rotation.transpose(-1, -2) @ offset)[..., 0]
            distance = (local.abs() - s.half).clamp(min=0).norm(dim=-1)
            assert distance[s.present].min() > 0.1


def test_the_camera_moves_smoothly(rooms):
    dice, plan, _ = rooms
    views = [place_camera(plan, dice, 2.0 + i / 30) for i in range(20)]
    position = torch.stack([view.position for view in views])
    rotation = torch.stack([view.rotation for view in views])
    speed = position.diff(dim=0).norm(dim=-1) * 30
    assert speed.max() < 1.0
    assert (speed.diff(dim=0).abs() * 30).max() < 3.0
    cosine = ((rotation[1:] * rotation[:-1]).sum((-1, -2)) - 1) / 2
    assert torch.acos(cosine.clamp(-1, 1)).max() * 30 < math.radians(30)
    # It does move.
    assert (position[-1] - position[0]).norm(dim=-1).median() > 0.02


def test_the_cameras_axes_are_those_of_the_optical_frame(rooms):
    dice, plan, _ = rooms
    rotation = place_camera(plan, dice).rotation
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3).expand_as(rotation),
                          atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(SCENES), atol=1e-5)
    # The image's down axis points down in the room, for every pitch and roll drawn.
    assert rotation[:, 1, 2].max() < -0.7


def test_parts_stand_on_the_floor_and_below_the_ceiling(rooms):
    _, plan, parts = rooms
    for shape in (BOX, CYLINDER, ELLIPSOID):
        s = parts.solids(shape)
        reach = (s.rotation[..., 2, :].abs() * s.half).sum(-1)
        z = s.centre[..., 2]
        assert (z - reach)[s.present].min() > -0.02
        assert (z + reach - plan.height[:, None])[s.present].max() < 0.02
