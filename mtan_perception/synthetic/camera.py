# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Where the camera is, where it looks, and how it moves through its zone."""

import math
from typing import NamedTuple

import torch

from mtan_perception.synthetic.rooms import footprint, wall_frame

_LOOKS = 20
_FAN = (-0.8, -0.4, 0.0, 0.4, 0.8)
# How much a view gains by showing a piece: what is rare and good to see counts more.
_INTEREST = {'bed': 1.2, 'second_bed': 1.2, 'sofa': 1.3, 'second_sofa': 1.2, 'desk': 1.5,
             'tv_stand': 2.0, 'bookshelf': 2.2, 'second_bookshelf': 2.0, 'cabinet': 0.6,
             'sideboard': 0.7, 'dining_table': 1.7, 'coffee_table': 1.5, 'dining_chair': 0.8,
             'desk_chair': 0.9, 'chair0': 0.9, 'chair1': 0.9, 'chair2': 0.9, 'nightstand': 0.5,
             'window': 0.8, 'picture': 0.9, 'wall_tv': 2.0, 'wall_shelf': 1.2, 'wall_cabinet': 0.5}
# What stands on a piece, in metres, that stops the view as the piece itself does.
_ON_TOP = {'tv_stand': 0.75, 'desk': 0.4, 'door': -2.0}


class Camera(NamedTuple):
    """
    Pose and lens of a camera per scene.

    `position` (N, 3) in the room; `rotation` (N, 3, 3), its rows the camera's right, down and
    forward axes in the room, so that `rotation @ v` turns a room vector into the optical frame;
    `fov` (N,) horizontal field of view in radians.
    """

    position: torch.Tensor
    rotation: torch.Tensor
    fov: torch.Tensor


def intrinsics(fov, height, width):
    """
    Return camera matrices (N, 3, 3) with square pixels and the centre in the image's middle.

    Pixel centres lie at whole numbers, so the middle is ((width - 1) / 2, (height - 1) / 2).
    """
    focal = width / 2 / torch.tan(fov / 2)
    k = focal.new_zeros(len(fov), 3, 3)
    k[:, 0, 0] = k[:, 1, 1] = focal
    k[:, 0, 2], k[:, 1, 2], k[:, 2, 2] = (width - 1) / 2, (height - 1) / 2, 1.0
    return k


def _rotation(yaw, pitch, roll):
    """Return the rows right, down, forward for a yaw from +x, a pitch up and a roll, radians."""
    cy, sy = torch.cos(yaw), torch.sin(yaw)
    cp, sp = torch.cos(pitch), torch.sin(pitch)
    zero = torch.zeros_like(yaw)
    forward = torch.stack((cp * cy, cp * sy, sp), -1)
    right = torch.stack((sy, -cy, zero), -1)
    down = torch.stack((sp * cy, sp * sy, -cp), -1)
    cr, sr = torch.cos(roll)[:, None], torch.sin(roll)[:, None]
    return torch.stack((cr * right + sr * down, cr * down - sr * right, forward), 1)


def _targets(plan):
    """Return positions (N, I, 2), visible areas (N, I) and interest (N, I) of all pieces."""
    places, areas = [], []
    for name, interest in _INTEREST.items():
        if name in plan.items:
            item = plan.items[name]
            place = torch.stack((item.x, item.y), -1)
            area = (item.width + item.depth) / 2 * item.height.clamp(min=0.5)
        else:
            item = plan.hangings[name]
            nx, ny, distance, _ = wall_frame(item.wall, plan.half)
            place = torch.stack((-nx * distance + ny * item.along,
                                 -ny * distance - nx * item.along), -1)
            area = item.width * item.height
        places.append(place)
        areas.append(area * item.present * interest)
    return torch.cat(places, 1), torch.cat(areas, 1)


def _sight(plan, eye, height, yaw):
    """
    Return how far one sees at eye level, (N, C), from `eye` (N, 2) along each `yaw` (N, C).

    Walls and pieces that reach near or above the eye's height (N,) stop the view.
    """
    direction = torch.stack((torch.cos(yaw), torch.sin(yaw)), -1)
    direction = torch.where(direction.abs() < 1e-6, 1e-6, direction)
    wall = ((plan.half[:, None] - eye[:, None] * direction.sign()) / direction.abs()).amin(-1)
    items = list(plan.items.values())
    centre = torch.cat([torch.stack((i.x, i.y), -1) for i in items], 1)
    half = torch.cat([footprint(i) for i in items], 1)
    tall = torch.cat([i.height + _ON_TOP.get(n, 0.0) for n, i in plan.items.items()], 1)
    blocks = torch.cat([i.present for i in items], 1) & (tall > height[:, None] - 0.35)
    middle = (centre - eye[:, None])[:, None] / direction[:, :, None]
    reach = (half[:, None] / direction[:, :, None]).abs()
    enter, leave = (middle - reach).amax(-1), (middle + reach).amin(-1)
    hit = blocks[:, None] & (enter < leave) & (enter > 0)
    return torch.minimum(wall, torch.where(hit, enter, 1e3).amin(-1))


def _look(plan, dice, eye, height, fov):
    """Return the yaw (N,) of the most interesting of a number of random looks with a free view."""
    turn = torch.arange(_LOOKS, device=eye.device) * (2 * math.pi / _LOOKS)
    yaw = turn + dice.uniform('camera.turn', 1, high=2 * math.pi)
    fan = yaw[..., None] + fov[:, None, None] / 2 * torch.tensor(_FAN, device=eye.device)
    sight = _sight(plan, eye, height, fan.flatten(1)).unflatten(1, (_LOOKS, len(_FAN)))
    places, areas = _targets(plan)
    offset = places - eye[:, None]
    distance = offset.norm(dim=-1).clamp(min=0.8)
    bearing = torch.atan2(offset[..., 1], offset[..., 0])[:, None] - yaw[..., None]
    off_axis = torch.atan2(torch.sin(bearing), torch.cos(bearing)).abs()
    seen = (off_axis < 0.45 * fov[:, None, None]).float()
    gain = (seen * (areas / distance ** 2).clamp(max=0.7)[:, None]).sum(-1)
    noise = -torch.log(-torch.log(dice.uniform('camera.taste', _LOOKS, low=1e-6, high=1 - 1e-6)))
    near = (1.3 - sight.amin(-1)).clamp(min=0)
    score = 2.2 * torch.log(gain + 0.05) + 1.2 * torch.log(sight.mean(-1)) - 4 * near
    score = score + 0.35 * noise
    return yaw.gather(1, score.argmax(1, keepdim=True))[:, 0]


def _sway(dice, name, time, periods):
    """
    Return smooth movement (N, 2) within -1..1 that starts at a point of its own, and that start.

    Sums of two sines per axis with periods in seconds; at time 0 the value is the start.
    """
    phase = dice.uniform(name, 2, 2, high=2 * math.pi)
    rate = torch.tensor(periods, device=dice.device).reciprocal() * 2 * math.pi
    weights = torch.tensor((0.7, 0.3), device=dice.device)
    return ((torch.sin(phase + rate * time)) * weights).sum(-1)


def place_camera(plan, dice, time=0.0):
    """
    Return the Camera of each scene, `time` seconds along its way.

    The position stays 0.25 m inside the plan's camera zone, in which nothing stands, so no motion
    can lead into anything. The view sways about the one chosen for time 0.
    """
    margin = 0.25
    zone = plan.zone
    centre = torch.cat((zone.x, zone.y), 1)
    reach = torch.cat((zone.width, zone.depth), 1) / 2 - margin
    periods = ((23.0, 9.0), (17.0, 7.0))

    def position(t):
        return centre + reach * _sway(dice, 'camera.walk', t, periods)

    fov = torch.deg2rad(dice.uniform('camera.fov', low=45.0, high=100.0))
    low = dice.chance('camera.low', p=0.35)
    level = dice.uniform('camera.level')
    height = torch.where(low, 0.4 + 0.6 * level, 1.05 + 0.85 * level)
    height = torch.minimum(height, plan.height - 0.62)
    pitch = dice.uniform('camera.pitch', 2).mean(1)
    pitch = torch.deg2rad(torch.where(low, -14 + 26 * pitch, -34 + 42 * pitch))
    roll = torch.deg2rad(9 * (dice.uniform('camera.roll', 2, low=-1.0).mean(1)))
    yaw = _look(plan, dice, position(0.0), height, fov)
    # The head turns, nods and bobs as sines of time that vanish at 0.
    side = torch.where(dice.chance('camera.side'), 1.0, -1.0)
    yaw = yaw + side * 0.6 * math.sin(2 * math.pi * time / 19)
    pitch = pitch + 0.05 * math.sin(2 * math.pi * time / 7)
    roll = roll + 0.02 * math.sin(2 * math.pi * time / 5)
    height = height + 0.02 * math.sin(2 * math.pi * time / 1.9)
    return Camera(torch.cat((position(time), height[:, None]), 1), _rotation(yaw, pitch, roll),
                  fov)
