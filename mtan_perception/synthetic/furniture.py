# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Furniture built from boxes, upright cylinders and ellipsoids.

Every model adds a fixed number of parts for all scenes and copies at once. In a model, tensors are
(N, K, M): scenes, copies of the piece, repeats of the part (say four legs). A piece's own frame
has x to its right, y to its front, z up.
"""

import math

import torch

from mtan_perception.synthetic.parts import (
    BED,
    BOOKS,
    BOX,
    CEILING,
    CHAIR,
    CYLINDER,
    ELLIPSOID,
    FLOOR,
    FURNITURE,
    M_ART,
    M_BOOKS,
    M_CEILING,
    M_CURTAIN,
    M_DARK,
    M_FABRIC,
    M_FLOOR,
    M_LAMP,
    M_LEAVES,
    M_PILE,
    M_PLAIN,
    M_RUG,
    M_SCREEN,
    M_SKY,
    M_THING,
    M_WALL,
    M_WHITE,
    M_WOOD,
    OBJECTS,
    Parts,
    PICTURE,
    Pose,
    SOFA,
    TABLE,
    TV,
    WALL,
    WINDOW,
)
from mtan_perception.synthetic.rooms import CHAIRS, CLUTTER, wall_frame, wall_yaw


def _pose(item, z=0.0):
    x = item.x[..., None]
    return Pose(x, item.y[..., None], torch.zeros_like(x) + z, item.yaw[..., None],
                item.present[..., None])


def _size(item):
    return item.width[..., None], item.depth[..., None], item.height[..., None]


def _signs(device, *values):
    return torch.tensor(values, dtype=torch.float32, device=device)


def _legs(parts, label, material, pose, width, depth, height, thick, inset=0.0, round_ones=None):
    """Add four legs from the floor to `height`, square or, where `round_ones`, round."""
    sx = _signs(width.device, -1, 1, -1, 1) * (width / 2 - thick - inset)
    sy = _signs(width.device, -1, -1, 1, 1) * (depth / 2 - thick - inset)
    place, half = (sx, sy, height / 2), (thick, thick, height / 2)
    square = True if round_ones is None else ~round_ones
    parts.add(BOX, label, material, pose, place, half, square)
    if round_ones is not None:
        parts.add(CYLINDER, label, material, pose, place, half, round_ones)


def _bed(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    frame, linen = parts.material(M_WOOD, k), parts.material(M_FABRIC, k)
    sheet, cushion = parts.material(M_WHITE, k), parts.material(M_FABRIC, k)
    base = h * dice.uniform(name + '.base', k, 1, low=0.4, high=0.6)
    parts.add(BOX, BED, frame, pose, (0, 0, base / 2 + 0.04), (w / 2, d / 2, base / 2 - 0.04))
    legs = dice.chance(name + '.legs', k, 1)
    parts.add(BOX, BED, frame, pose, (0, 0, 0.04), (w / 2 - 0.06, d / 2 - 0.06, 0.041), ~legs)
    parts.add(BOX, BED, sheet, pose, (0, 0, (base + h) / 2),
              (w / 2 - .03, d / 2 - .03, (h - base) / 2))
    # The blanket hangs over the sides; its top end leaves the pillows free.
    long = d * dice.uniform(name + '.blanket', k, 1, low=0.55, high=0.8)
    drop = base * dice.uniform(name + '.drop', k, 1, low=0.3, high=1.0)
    parts.add(BOX, BED, linen, pose, (0, (d - long) / 2 + 0.02, (drop + h + 0.03) / 2),
              (w / 2 + 0.015, long / 2, (h + 0.03 - drop) / 2))
    fold = dice.chance(name + '.fold', k, 1)
    parts.add(BOX, BED, sheet, pose, (0, d / 2 - long + 0.12, h + 0.035),
              (w / 2 + .018, .14, .012), fold)
    head = h + dice.uniform(name + '.head', k, 1, low=0.2, high=0.75)
    parts.add(BOX, BED, frame, pose, (0, -d / 2 + 0.025, head / 2), (w / 2, 0.035, head / 2),
              dice.chance(name + '.headboard', k, 1, p=0.75))
    side = _signs(w.device, -1, 1)
    wide = w > 1.3
    centre = torch.where(wide, side * w / 4, 0.0)
    there = wide | (side < 0)
    half = (torch.where(wide, w / 4 - 0.07, w / 2 - 0.12).clamp(max=0.38), 0.2, 0.075)
    tilt = dice.uniform(name + '.tilt', k, 2, low=0.0, high=0.5)
    soft = dice.chance(name + '.soft', k, 1)
    place = (centre, -d / 2 + 0.27, h + 0.065 + 0.12 * tilt)
    parts.add(ELLIPSOID, OBJECTS, cushion, pose, place, (half[0] * 1.1, 0.22, 0.09), there & soft,
              tilt=tilt)
    parts.add(BOX, OBJECTS, cushion, pose, place, half, there & ~soft, tilt=tilt)


def _sofa(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    cloth = parts.material(M_FABRIC, k)
    other = torch.stack((cloth, parts.material(M_FABRIC, k)), 1)[:, :1]
    cushion = parts.material(M_FABRIC, 2 * k).reshape(k, 2)
    seat = dice.uniform(name + '.seat', k, 1, low=0.38, high=0.46)
    arm = dice.uniform(name + '.arm', k, 1, low=0.08, high=0.2)
    arm_top = dice.uniform(name + '.arm_top', k, 1, low=0.52, high=0.66)
    back = dice.uniform(name + '.back', k, 1, low=0.14, high=0.22)
    foot = dice.uniform(name + '.foot', k, 1, low=0.02, high=0.1)
    parts.add(BOX, SOFA, cloth, pose, (0, 0, (foot + seat - .12) / 2),
              (w / 2, d / 2, (seat - .12 - foot) / 2))
    parts.add(BOX, SOFA, cloth, pose, (0, -d / 2 + back / 2, (h + foot) / 2),
              (w / 2 - 0.002, back / 2, (h - foot) / 2))
    side = _signs(w.device, -1, 1)
    arms = dice.chance(name + '.arms', k, 1, p=0.85)
    parts.add(BOX, SOFA, cloth, pose, (side * (w - arm) / 2, 0.01, (arm_top + foot) / 2),
              (arm / 2, d / 2, (arm_top - foot) / 2), arms)
    parts.add(CYLINDER, SOFA, cloth, pose, (side * (w - arm) / 2, 0.01, arm_top),
              (arm / 2 + 0.01, arm / 2 + 0.01, d / 2),
              arms & dice.chance(name + '.roll', k, 1, p=.4),
              tilt=math.pi / 2)
    # Two or three seat cushions, with back cushions that lean.
    inner = w - 2 * arm
    count = torch.where(w > 1.75, 3.0, torch.where(w > 1.15, 2.0, 1.0))
    index = _signs(w.device, 0, 1, 2)
    wide = inner / count
    x = (index + 0.5) * wide - inner / 2
    there = index < count
    parts.add(BOX, SOFA, other, pose, (x, back / 2, seat - 0.05),
              (wide / 2 - 0.008, (d - back) / 2 + 0.01, 0.07), there)
    lean = dice.uniform(name + '.lean', k, 1, low=0.08, high=0.25)
    parts.add(BOX, SOFA, other, pose, (x, -d / 2 + back + 0.09, seat + 0.2),
              (wide / 2 - 0.015, 0.075, 0.2), there & dice.chance(name + '.backs', k, 1, p=.8),
              tilt=lean)
    there = dice.chance(name + '.cushion', k, 2, p=0.55)
    turn = dice.uniform(name + '.turn', k, 2, low=-0.5, high=0.5)
    place = (side * (inner / 2 - 0.24), -d / 2 + back + 0.27, seat + 0.2)
    soft = dice.chance(name + '.soft', k, 2, p=0.4)
    parts.add(BOX, OBJECTS, cushion, pose, place, (0.2, 0.06, 0.19), there & ~soft, 0.35, turn,
              turn)
    parts.add(ELLIPSOID, OBJECTS, cushion, pose, place, (0.22, 0.09, 0.21), there & soft, .35, 0,
              turn)


def _book_row(parts, pose, left, y, z, width, tall, deep, present, name):
    """Add books standing in a row from `left`, and now and then one that leans on them."""
    dice = parts.dice
    k, m = left.shape[1:]
    kinds = parts.material(M_BOOKS, k * m).reshape(k, m)
    high = tall * dice.uniform(name + '.high', k, m, low=0.55, high=0.92)
    thick = deep * dice.uniform(name + '.deep', k, m, low=0.62, high=0.92)
    parts.add(BOX, BOOKS, kinds, pose, (left + width / 2, y + (deep - thick) * 0.1, z + high / 2),
              (width / 2, thick / 2, high / 2), present)
    slim = dice.uniform(name + '.slim', k, m, low=0.012, high=0.025)
    lean = dice.uniform(name + '.lean', k, m, low=0.12, high=0.3)
    short = tall * 0.62
    x = left + width + slim + torch.sin(lean) * short / 2 + 0.004
    parts.add(BOX, BOOKS, parts.material(M_THING, k * m).reshape(k, m), pose,
              (x, y, z + torch.cos(lean) * short / 2 + torch.sin(lean) * slim),
              (slim, thick * 0.42, short / 2), present & dice.chance(name + '.leans', k, m, p=0.5),
              lean=-lean)


def _bookshelf(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    wood = parts.material(M_WOOD, k)
    t = 0.012 + 0.01 * dice.uniform(name + '.thick', k, 1)
    side = _signs(w.device, -1, 1)
    parts.add(BOX, FURNITURE, wood, pose, (side * (w / 2 - t), 0, h / 2), (t, d / 2, h / 2))
    parts.add(BOX, FURNITURE, wood, pose, (0, -d / 2 + 0.006, h / 2),
              (w / 2 - t, 0.006, h / 2 - .001),
              dice.chance(name + '.backed', k, 1, p=0.8))
    levels = torch.where(h > 1.65, 5.0, torch.where(h > 1.1, 4.0, 3.0))
    index = torch.arange(6, device=w.device)
    gap = (h - 2 * t - 0.05) / levels
    parts.add(BOX, FURNITURE, wood, pose, (0, 0, 0.05 + t + index * gap),
              (w / 2 - 2 * t, d / 2 - 0.004, t), index <= levels)
    # Three groups of books on each level; what they leave free takes small objects.
    row = torch.arange(15, device=w.device)
    level, third = row // 3, row % 3
    inner = w - 4 * t - 0.02
    cell = inner / 3
    left = third * cell - inner / 2
    fill = dice.uniform(name + '.fill', k, 15, low=0.45, high=1.1).clamp(max=1.0)
    there = (level < levels) & dice.chance(name + '.books', k, 15, p=0.8)
    z = 0.05 + 2 * t + level * gap
    _book_row(parts, pose, left, 0.0, z, cell * fill * 0.82, gap - 2 * t, d, there, name + '.row')
    _things(parts, pose, left + cell * 0.5, 0 * left, z, cell * 0.3, (gap - 2 * t) * 0.8,
            (level < levels) & ~there & dice.chance(name + '.things', k, 15, p=0.6),
            name + '.thing')


def _cabinet(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    wood, knob = parts.material(M_WOOD, k), parts.material(M_PLAIN, k)
    front = torch.where(dice.chance(name + '.same', k, 1), wood[:, None],
                        parts.material(M_WOOD, k)[:, None])
    foot = dice.uniform(name + '.foot', k, 1, low=0.03, high=0.12)
    parts.add(BOX, FURNITURE, wood, pose, (0, 0, (h + foot) / 2), (w / 2, d / 2, (h - foot) / 2))
    parts.add(BOX, FURNITURE, knob, pose, (0, 0, foot / 2),
              (w / 2 - .05, d / 2 - .05, foot / 2 + .001))
    # A grid of doors or drawers on the front, at most 2 by 4.
    columns = dice.bits(name + '.columns', k, 1) % 2 + 1
    rows = torch.where(h > 1.3, dice.bits(name + '.rows', k, 1) % 2 + 1,
                       dice.bits(name + '.rows', k, 1) % 3 + 2)
    index = torch.arange(8, device=w.device)
    column, row = index % 2, index // 2
    there = (column < columns) & (row < rows)
    cw, ch = w / columns, (h - foot) / rows
    x, z = (column + 0.5) * cw - w / 2, foot + (row + 0.5) * ch
    parts.add(BOX, FURNITURE, front, pose, (x, d / 2 + 0.005, z),
              (cw / 2 - .008, .009, ch / 2 - .008),
              there)
    tall = ch > 0.6
    hx = torch.where(tall, x + (cw / 2 - 0.06) * torch.where(column == 0, 1.0, -1.0), x)
    parts.add(BOX, FURNITURE, knob, pose, (hx, d / 2 + 0.025, z),
              (torch.where(tall, 0.008, 0.07), 0.015, torch.where(tall, 0.09, 0.01)), there)


def _flat_screen(parts, pose, centre, width, tall, present, legs):
    """Add a television: its case, its picture, and, where `legs`, a foot down to z = 0."""
    k = width.shape[1]
    dark, screen = parts.material(M_DARK, k), parts.material(M_SCREEN, k)
    x, y, z = centre
    parts.add(BOX, TV, dark, pose, (x, y, z), (width / 2, 0.022, tall / 2), present)
    parts.add(BOX, TV, screen, pose, (x, y + 0.022, z),
              (width / 2 - 0.018, 0.003, tall / 2 - 0.018),
              present)
    below = z - tall / 2
    parts.add(BOX, TV, dark, pose, (x, y - 0.01, below / 2), (0.03, 0.015, below / 2 + 0.005),
              present & legs)
    parts.add(BOX, TV, dark, pose, (x, y, 0.008), (width * 0.22, 0.1, 0.008), present & legs)


def _tv_stand(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, _, h) = _pose(item), _size(item)
    _cabinet(parts, item, name)
    wide = w * dice.uniform(name + '.tv', k, 1, low=0.6, high=0.95)
    tall = wide * 0.58
    _flat_screen(parts, pose._replace(z=pose.z + h), (0 * w, -0.04 + 0 * w, tall / 2 + 0.06), wide,
                 tall, dice.chance(name + '.on', k, 1, p=0.95), torch.ones_like(pose.present))


def _desk(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    wood, leg = parts.material(M_WOOD, k), parts.material(M_PLAIN, k)
    dark = parts.material(M_DARK, k)
    parts.add(BOX, TABLE, wood, pose, (0, 0, h - 0.018), (w / 2, d / 2, 0.018))
    drawers = dice.chance(name + '.drawers', k, 1, p=0.6)
    _legs(parts, TABLE, leg, pose, w, d, h - 0.036, 0.022)
    parts.add(BOX, TABLE, wood, pose, (w / 2 - 0.25, -0.02, (h + 0.06) / 2 - 0.02),
              (0.2, d / 2 - 0.07, (h - 0.1) / 2 - 0.02), drawers)
    row = torch.arange(3, device=w.device)
    gap = (h - 0.14) / 3
    parts.add(BOX, TABLE, wood, pose, (w / 2 - 0.25, d / 2 - 0.085, 0.085 + (row + 0.5) * gap),
              (0.19, 0.008, gap / 2 - 0.008), drawers)
    top = pose._replace(z=pose.z + h)
    wide = dice.uniform(name + '.screen', k, 1, low=0.5, high=0.75)
    x = dice.uniform(name + '.screen_x', k, 1, low=-0.2, high=0.1)
    monitor = dice.chance(name + '.monitor', k, 1, p=0.7)
    _flat_screen(parts, top, (x, -d / 2 + 0.16 + 0 * x, wide * 0.3 + 0.12), wide, wide * 0.58,
                 monitor, torch.ones_like(pose.present))
    parts.add(BOX, OBJECTS, dark, top, (x, 0.05, 0.012), (0.21, 0.07, 0.012), monitor)
    # A laptop where there is no screen.
    parts.add(BOX, OBJECTS, leg, top, (x, 0.0, 0.011), (0.17, 0.12, 0.011), ~monitor)
    parts.add(BOX, OBJECTS, leg, top, (x, -0.16, 0.125), (0.17, 0.008, 0.115), ~monitor, tilt=.3)


def _table(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    wood, leg = parts.material(M_WOOD, k), parts.material(M_WOOD, k)
    disc = dice.chance(name + '.round', k, 1, p=0.3)
    parts.add(BOX, TABLE, wood, pose, (0, 0, h - 0.02), (w / 2, d / 2, 0.02), ~disc)
    parts.add(CYLINDER, TABLE, wood, pose, (0, 0, h - 0.02), (w / 2, d / 2, 0.02), disc)
    parts.add(CYLINDER, TABLE, leg, pose, (0, 0, (h - 0.04) / 2), (0.05, 0.05, (h - 0.04) / 2),
              disc)
    parts.add(CYLINDER, TABLE, leg, pose, (0, 0, 0.015), (w / 4, d / 4, 0.015), disc)
    square = pose._replace(present=pose.present & ~disc)
    _legs(parts, TABLE, leg, square, w, d, h - 0.04, 0.03, 0.01, dice.chance(name + '.legs', k, 1))
    parts.add(BOX, TABLE, wood, square, (0, 0, h * 0.35), (w / 2 - 0.08, d / 2 - 0.08, 0.012),
              dice.chance(name + '.shelf', k, 1, p=0.5) & (h < 0.55))
    parts.add(BOX, TABLE, leg, square, (0, 0, h - 0.075), (w / 2 - 0.05, d / 2 - 0.05, 0.036))


def _chair(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    # Chairs of one table look alike.
    wood = parts.material(M_WOOD).expand(k)
    padded = dice.chance(name + '.padded', 1, 1)
    cloth = torch.where(padded, parts.material(M_FABRIC), wood[:, None])
    seat = dice.uniform(name + '.seat', 1, 1, low=0.42, high=0.48).expand(-1, k, -1)
    thick = dice.uniform(name + '.thick', 1, 1, low=0.015, high=0.05)
    parts.add(BOX, CHAIR, cloth, pose, (0, 0, seat - thick), (w / 2, d / 2, thick))
    office = dice.chance(name + '.office', 1, 1, p=0.3)
    plain = pose._replace(present=pose.present & ~office)
    _legs(parts, CHAIR, wood, plain, w, d, seat - 2 * thick, 0.018)
    swivel = pose._replace(present=pose.present & office)
    metal = parts.material(M_DARK).expand(k)
    parts.add(CYLINDER, CHAIR, metal, swivel, (0, 0, seat / 2), (0.03, 0.03, seat / 2 - thick))
    spin = torch.tensor([0.0, math.pi / 2], device=w.device)
    parts.add(BOX, CHAIR, metal, swivel, (0, 0, 0.05), (w / 2, 0.025, 0.02), spin=spin + 0.4)
    # The back leans away from the sitter: solid, or two posts with slats.
    tilt = dice.uniform(name + '.tilt', 1, 1, low=0.06, high=0.22)
    tall = (h - seat) / 2
    solid = dice.chance(name + '.solid', 1, 1, p=0.55)
    y = -d / 2 + 0.02 - torch.sin(tilt) * tall
    parts.add(BOX, CHAIR, cloth, pose, (0, y, seat + tall), (w / 2 - 0.01, 0.02, tall),
              solid | office,
              tilt=tilt)
    slats = pose._replace(present=pose.present & ~(solid | office))
    side = _signs(w.device, -1, 1)
    parts.add(BOX, CHAIR, wood, slats, (side * (w / 2 - 0.02), y, seat + tall),
              (0.018, 0.018, tall),
              tilt=tilt)
    level = _signs(w.device, 0.4, 0.75, 0.95)
    parts.add(BOX, CHAIR, wood, slats,
              (0, -d / 2 + 0.02 - torch.sin(tilt) * tall * 2 * level, seat + tall * 2 * level),
              (w / 2 - 0.03, 0.01, 0.035), tilt=tilt)
    arms = dice.chance(name + '.arms', 1, 1, p=0.35)
    parts.add(BOX, CHAIR, wood, pose, (side * (w / 2 - 0.015), 0, seat + 0.2),
              (.02, d / 2 - .02, .015), arms)
    parts.add(BOX, CHAIR, wood, pose, (side * (w / 2 - 0.015), d / 2 - 0.06, seat + 0.09),
              (0.015, 0.015, 0.1), arms)


def _nightstand(parts, item, name):
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    wood, knob = parts.material(M_WOOD, k), parts.material(M_PLAIN, k)
    parts.add(BOX, FURNITURE, wood, pose, (0, 0, (h + 0.1) / 2), (w / 2, d / 2, (h - 0.1) / 2))
    _legs(parts, FURNITURE, wood, pose, w, d, 0.1 + 0 * h, 0.02)
    row = torch.arange(2, device=w.device)
    gap = (h - 0.1) / 2
    z = 0.1 + (row + 0.5) * gap
    parts.add(BOX, FURNITURE, wood, pose, (0, d / 2 + 0.004, z),
              (w / 2 - .012, .008, gap / 2 - .01))
    parts.add(ELLIPSOID, FURNITURE, knob, pose, (0, d / 2 + 0.02, z), (0.015, 0.015, 0.015))
    _table_lamp(parts, pose._replace(z=pose.z + h), 0 * w, -d / 5,
                dice.chance(name + '.lamp', k, 1, p=0.6), name + '.lamp')


def _table_lamp(parts, pose, x, y, present, name):
    dice = parts.dice
    k, m = present.shape[1:]
    foot, shade = (parts.material(kind, k * m).reshape(k, m) for kind in (M_PLAIN, M_LAMP))
    tall = dice.uniform(name + '.tall', k, m, low=0.28, high=0.45)
    wide = dice.uniform(name + '.wide', k, m, low=0.09, high=0.15)
    parts.add(CYLINDER, OBJECTS, foot, pose, (x, y, 0.012), (0.06, 0.06, 0.012), present)
    parts.add(CYLINDER, OBJECTS, foot, pose, (x, y, tall * 0.32), (0.016, 0.016, tall * 0.32),
              present)
    parts.add(CYLINDER, OBJECTS, shade, pose, (x, y, tall * 0.8), (wide, wide, tall * 0.2),
              present,
              casts=False)


def _things(parts, pose, x, y, z, reach, room, present, name):
    """
    Add small objects: boxes, cans, bottles, balls, plants in pots, piles of books.

    :param reach: largest half width; room: largest height; both (N, K, M) metres.
    """
    dice = parts.dice
    k, m = torch.broadcast_shapes(reach.shape, present.shape)[1:]
    choice = dice.uniform(name + '.choice', k, m)
    r = reach * dice.uniform(name + '.radius', k, m, low=0.5, high=1.0)
    h = torch.minimum(room, reach * 4) * dice.uniform(name + '.tall', k, m, low=0.35, high=1.0)
    spin = dice.uniform(name + '.spin', k, m, low=-1.5, high=1.5)
    flat = dice.uniform(name + '.flat', k, m, low=0.5, high=1.0)
    kind = parts.material(M_THING, k * m).reshape(k, m)
    other = parts.material(M_THING, k * m).reshape(k, m)

    def between(low, high):
        return present & (choice >= low) & (choice < high)

    side = r * 0.7
    parts.add(BOX, OBJECTS, kind, pose, (x, y, z + h / 2), (side, side * flat, h / 2),
              between(0.0, 0.27), spin=spin)
    pile = parts.material(M_PILE, k * m).reshape(k, m)
    parts.add(BOX, BOOKS, pile, pose, (x, y, z + h * 0.2), (side, side * 0.72, h * 0.2),
              between(0.27, 0.45), spin=spin)
    parts.add(BOX, BOOKS, kind, pose, (x, y, z + h * 0.4 + 0.011), (side * .9, side * 0.66, 0.011),
              between(0.33, 0.45), spin=spin + flat)
    parts.add(CYLINDER, OBJECTS, kind, pose, (x, y, z + h * 0.35), (r * 0.6, r * 0.6, h * 0.35),
              between(0.45, 0.8))
    parts.add(CYLINDER, OBJECTS, other, pose, (x, y, z + h * 0.85), (r * 0.2, r * 0.2, h * 0.15),
              between(0.6, 0.7))
    leaves = parts.material(M_LEAVES, k * m).reshape(k, m)
    parts.add(ELLIPSOID, OBJECTS, leaves, pose, (x, y, z + h * 0.8),
              (r * 0.95, r * 0.95, h * 0.25),
              between(0.7, 0.8))
    round_half = torch.minimum(r * 0.8, room / 2)
    parts.add(ELLIPSOID, OBJECTS, kind, pose, (x, y, z + round_half * flat),
              (round_half, round_half, round_half * flat), between(0.8, 1.0))


def _supports(plan):
    """Return the tops that may carry small objects: rows of Footing-like tensors (N, S)."""
    shares = (('desk', 0.5, 0.2), ('dining_table', 0.75, 0.0), ('coffee_table', 0.75, 0.0),
              ('sideboard', 0.9, 0.0), ('nightstand', 0.8, 0.2), ('second_bookshelf', 0.8, 0.0))
    fields = []
    for name, share, front in shares:
        item = plan.items[name]
        c, s = torch.cos(item.yaw), torch.sin(item.yaw)
        shift = item.depth * front
        weight = item.present * (item.width * item.depth).sqrt()
        fields.append((item.x - s * shift, item.y + c * shift, item.yaw, item.width / 2 - 0.03,
                       item.depth / 2 * share - 0.02, item.height, weight))
    return [torch.cat(f, 1) for f in zip(*fields, strict=True)]


def _scatter_things(parts, plan, count=26):
    """Put small objects on tops, dropping those that would stand in one another."""
    dice = parts.dice
    x, y, yaw, half_w, half_d, top, weight = _supports(plan)
    lot = dice.uniform('things.lot', count, x.shape[1]) ** 2 * weight[:, None]
    best, index = lot.max(-1)
    x, y, yaw, half_w, half_d, top = (f.gather(1, index) for f in (x, y, yaw, half_w, half_d, top))
    reach = dice.uniform('things.reach', count, low=0.045, high=0.15)
    reach = torch.minimum(reach, torch.minimum(half_w, half_d) * 0.9)
    spot = dice.uniform('things.spot', count, 2, low=-1.0, high=1.0)
    lx, ly = spot[..., 0] * (half_w - reach), spot[..., 1] * (half_d - reach)
    near = (lx[:, :, None] - lx[:, None]) ** 2 + (ly[:, :, None] - ly[:, None]) ** 2
    clash = (near < (reach[:, :, None] + reach[:, None]) ** 2)
    clash &= index[:, :, None] == index[:, None]
    earlier = torch.ones(count, count, device=x.device).tril(-1).bool()
    present = (best > 0) & ~(clash & earlier).any(-1)
    c, s = torch.cos(yaw), torch.sin(yaw)
    pose = Pose(*(f[..., None] for f in (x + c * lx - s * ly, y + s * lx + c * ly, top, yaw,
                                         present)))
    _things(parts, pose, 0.0, 0.0, 0.0, reach[..., None], 0.35 + 0 * reach[..., None],
            pose.present, 'things')


def _clutter(parts, item, name):
    """Add what stands on the floor: cartons, bins, balls, plants, floor lamps."""
    dice, k = parts.dice, item.x.shape[1]
    pose, (w, d, h) = _pose(item), _size(item)
    lamp = dice.chance(name + '.lamp', k, 1, p=0.08)
    _things(parts, pose, 0.0, 0.0, 0.0, torch.minimum(w, d) / 2, h * 1.3, ~lamp, name)
    foot, shade = parts.material(M_PLAIN, k), parts.material(M_LAMP, k)
    tall = dice.uniform(name + '.tall', k, 1, low=1.3, high=1.7)
    parts.add(CYLINDER, OBJECTS, foot, pose, (0, 0, 0.012), (w / 2, w / 2, 0.012), lamp)
    parts.add(CYLINDER, OBJECTS, foot, pose, (0, 0, tall / 2), (0.014, 0.014, tall / 2), lamp)
    parts.add(CYLINDER, OBJECTS, shade, pose, (0, 0, tall), (w * 0.6, w * 0.6, 0.13), lamp,
              casts=False)


def _wall_pose(piece, half, gap):
    """Return the Pose of hangings with local x along the wall, y into the room, z their centre."""
    nx, ny, distance, _ = wall_frame(piece.wall, half)
    back = distance - gap
    x, y = -nx * back + ny * piece.along, -ny * back - nx * piece.along
    return Pose(*(f[..., None] for f in (x, y, piece.z, wall_yaw(piece.wall), piece.present)))


def _windows(parts, plan):
    dice, piece = parts.dice, plan.hangings['window']
    k = piece.wall.shape[1]
    pose = _wall_pose(piece, plan.half, 0.0)
    w, h = piece.width[..., None], piece.height[..., None]
    sky = parts.material(M_SKY).expand(k)
    frame, cloth = parts.material(M_WHITE).expand(k), parts.material(M_CURTAIN).expand(k)
    parts.add(BOX, WINDOW, sky, pose, (0, 0.006, 0), (w / 2 - 0.03, 0.006, h / 2 - 0.03),
              casts=False)
    side = _signs(w.device, -1, 1)
    parts.add(BOX, WINDOW, frame, pose, (side * (w / 2 - .02), .02, 0), (.03, .02, h / 2 + .01),
              casts=False)
    parts.add(BOX, WINDOW, frame, pose, (0, 0.02, side * (h / 2 - 0.02)), (w / 2, 0.02, 0.03),
              casts=False)
    parts.add(BOX, WINDOW, frame, pose, (0, 0.018, 0), (0.02, 0.016, h / 2), w > 0.95, casts=False)
    bars = dice.chance('window.bars', k, 1, p=0.4)
    parts.add(BOX, WINDOW, frame, pose, (0, 0.017, h * 0.1), (w / 2, 0.014, 0.016), bars,
              casts=False)
    parts.add(BOX, WINDOW, frame, pose, (0, 0.07, -h / 2 - 0.02), (w / 2 + 0.05, 0.08, 0.018))
    drawn = dice.uniform('window.drawn', k, 1, low=0.08, high=0.3) * w
    curtains = dice.chance('window.curtains', k, 1, p=0.55)
    low = torch.where(dice.chance('window.long', k, 1, p=0.4), pose.z - 0.06, h / 2 + 0.15)
    high = h / 2 + 0.12
    parts.add(BOX, WINDOW, cloth, pose, (side * (w / 2 + 0.1 - drawn / 2), 0.1, (high - low) / 2),
              (drawn / 2, 0.025, (high + low) / 2), curtains)
    blind = dice.chance('window.blind', k, 1, p=0.25) & ~curtains
    deep = h * dice.uniform('window.deep', k, 1, low=0.15, high=0.7)
    parts.add(BOX, WINDOW, cloth, pose, (0, 0.045, h / 2 - deep / 2),
              (w / 2 - .01, .004, deep / 2), blind)


def _pictures(parts, plan):
    dice, piece = parts.dice, plan.hangings['picture']
    k = piece.wall.shape[1]
    pose = _wall_pose(piece, plan.half, 0.0)
    w, h = piece.width[..., None], piece.height[..., None]
    thick = dice.uniform('picture.thick', k, 1, low=0.01, high=0.02)
    border = dice.uniform('picture.border', k, 1, low=0.0, high=0.05)
    parts.add(BOX, PICTURE, parts.material(M_WOOD, k), pose, (0, thick, 0), (w / 2, thick, h / 2))
    parts.add(BOX, PICTURE, parts.material(M_ART, k), pose, (0, 2 * thick, 0),
              (w / 2 - border, 0.003, h / 2 - border))


def _wall_shelves(parts, plan):
    dice, piece = parts.dice, plan.hangings['wall_shelf']
    k = piece.wall.shape[1]
    pose = _wall_pose(piece, plan.half, 0.11)
    w = piece.width[..., None]
    parts.add(BOX, FURNITURE, parts.material(M_WOOD).expand(k), pose, (0, 0, -0.16),
              (w / 2, .11, .012))
    third = torch.arange(3, device=w.device)
    fill = dice.uniform('wall_shelf.fill', k, 3, low=0.5, high=0.85)
    there = dice.chance('wall_shelf.books', k, 3, p=0.75)
    left = third * w / 3 - w / 2 + 0.01
    _book_row(parts, pose, left, -0.01, -0.148, w / 3 * fill, 0.27 + 0 * left, 0.2, there,
              'wall_shelf')
    _things(parts, pose, left + w / 6, -0.01, -0.148, 0.09 + 0 * left, 0.25 + 0 * left, ~there,
            'wall_shelf.thing')


def _wall_cabinets(parts, plan):
    dice, piece = parts.dice, plan.hangings['wall_cabinet']
    k = piece.wall.shape[1]
    deep = dice.uniform('wall_cabinet.deep', k, 1, low=0.13, high=0.17)
    pose = _wall_pose(piece, plan.half, 0.0)
    w, h = piece.width[..., None], piece.height[..., None]
    body, front = parts.material(M_WOOD).expand(k), parts.material(M_WOOD).expand(k)
    parts.add(BOX, FURNITURE, body, pose, (0, deep, 0), (w / 2, deep, h / 2))
    doors = torch.where(w > 1.3, 3.0, 2.0)
    index = torch.arange(3, device=w.device)
    wide = w / doors
    x = (index + 0.5) * wide - w / 2
    there = index < doors
    parts.add(BOX, FURNITURE, front, pose, (x, 2 * deep, 0), (wide / 2 - .006, .01, h / 2 - .006),
              there)
    parts.add(BOX, FURNITURE, parts.material(M_PLAIN).expand(k), pose,
              (x + wide * 0.35, 2 * deep + 0.02, -h / 4), (0.007, 0.012, 0.05), there)


def _fixtures(parts, plan):
    """Add rug, ceiling lamp, beams, the block in the corner, the door and the television."""
    dice = parts.dice
    half, height = plan.half, plan.height[:, None, None]
    zero = torch.zeros_like(height)
    yes = torch.ones_like(zero).bool()
    block = plan.items['block']
    w, d, _ = _size(block)
    parts.add(BOX, WALL, parts.material(M_WALL), _pose(block), (0, 0, height / 2),
              (w / 2, d / 2, height / 2))
    door = plan.items['door']
    w, d, h = _size(door)
    leaf, frame = parts.material(M_WOOD), parts.material(M_WHITE)
    pose = _pose(door)
    parts.add(BOX, WALL, leaf, pose, (0, -d / 2 + 0.01, h / 2), (w / 2, 0.025, h / 2))
    side = _signs(w.device, -1, 1)
    parts.add(BOX, WALL, frame, pose, (side * (w / 2 + 0.03), -d / 2 + 0.015, h / 2 + 0.03),
              (0.035, 0.035, h / 2 + 0.03))
    parts.add(BOX, WALL, frame, pose, (0, -d / 2 + 0.015, h + 0.03), (w / 2, 0.034, 0.03))
    high = _signs(w.device, 0.28, 0.72)
    parts.add(BOX, WALL, leaf, pose, (0, -d / 2 + 0.035, h * high), (w / 2 - .13, .01, h * 0.17),
              dice.chance('door.panels', 1, 1, p=0.6))
    parts.add(ELLIPSOID, OBJECTS, parts.material(M_PLAIN), _pose(door),
              (w / 2 - 0.08, -d / 2 + 0.07, 1.02), (0.03, 0.035, 0.03))
    tv = plan.hangings['wall_tv']
    _flat_screen(parts, _wall_pose(tv, half, 0.0), (zero, zero + 0.025, zero), tv.width[..., None],
                 tv.height[..., None], tv.present[..., None], ~yes)
    centre = dice.uniform('rug.centre', 1, 2, low=-0.4, high=0.4) * half[:, None]
    size = dice.uniform('rug.size', 1, 2, low=0.7, high=1.4)
    size = torch.minimum(size, half[:, None] - centre.abs() - 0.1)
    rug = Pose(centre[..., :1], centre[..., 1:], zero, zero,
               dice.chance('rug', 1, 1, p=0.6))
    parts.add(BOX, FLOOR, parts.material(M_RUG), rug, (0, 0, 0.004),
              (size[..., :1], size[..., 1:], 0.004))
    shade = dice.uniform('ceiling_lamp.wide', 1, 1, low=0.12, high=0.25)
    drop = dice.uniform('ceiling_lamp.drop', 1, 1, low=0.08, high=0.3)
    spot = dice.uniform('light.spot', 1, 2, low=-0.4, high=0.4) * half[:, None]
    lamp = Pose(spot[..., :1], spot[..., 1:], height, zero, yes)
    ball = dice.chance('ceiling_lamp.ball', 1, 1)
    glow = parts.material(M_LAMP)
    parts.add(ELLIPSOID, OBJECTS, glow, lamp, (0, 0, -drop), (shade * .8, shade * .8, 0.08), ball,
              casts=False)
    parts.add(CYLINDER, OBJECTS, glow, lamp, (0, 0, -drop), (shade, shade, 0.06), ~ball,
              casts=False)
    parts.add(CYLINDER, OBJECTS, parts.material(M_PLAIN), lamp, (0, 0, -drop / 2),
              (0.012, 0.012, drop / 2),
              casts=False)
    step = torch.arange(-1, 2, device=half.device)
    beams = Pose(zero, zero, height, zero, dice.chance('beams', 1, 1, p=0.15))
    parts.add(BOX, CEILING, parts.material(M_WOOD), beams,
              (step * half[:, :1, None] * 0.6, 0, -0.06),
              (0.07, half[:, 1:, None] - 0.001, 0.06))


def furnish(plan, dice):
    """
    Build everything in the rooms.

    :return: Parts, from which the solids of each shape and the materials' kinds can be had.
    """
    parts = Parts(dice)
    # The first four materials are the room's own faces: three walls, that at +y, floor, ceiling.
    paper, accent = parts.material(M_WALL), parts.material(M_WALL)
    assert int(paper) == 0 and int(accent) == 1
    parts.material(M_FLOOR), parts.material(M_CEILING)
    _fixtures(parts, plan)
    items = plan.items
    for name, model in (
            ('bed', _bed), ('second_bed', _bed), ('sofa', _sofa), ('second_sofa', _sofa),
            ('bookshelf', _bookshelf), ('second_bookshelf', _bookshelf), ('cabinet', _cabinet),
            ('sideboard', _cabinet), ('tv_stand', _tv_stand), ('desk', _desk),
            ('dining_table', _table), ('coffee_table', _table), ('nightstand', _nightstand),
            ('desk_chair', _chair), ('dining_chair', _chair),
            *((f'chair{i}', _chair) for i in range(CHAIRS)),
            *((f'clutter{i}', _clutter) for i in range(CLUTTER))):
        model(parts, items[name], name)
    _windows(parts, plan)
    _pictures(parts, plan)
    _wall_shelves(parts, plan)
    _wall_cabinets(parts, plan)
    _scatter_things(parts, plan)
    return parts
