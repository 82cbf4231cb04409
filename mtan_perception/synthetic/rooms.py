# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Floor plans: how large the room is, what stands where, and what hangs on the walls.

The world is in metres, z up, the room's floor centred on the origin. All scenes of a batch are
planned at once: a piece of furniture tries a fixed number of places and takes the first that is
free of everything placed before it, or stays away. The first thing placed is the zone in which the
camera moves, so nothing ever stands in the camera's way.
"""

import math
from typing import NamedTuple

import torch

_TRIES = 16
# Chairs that stand free, and pieces of clutter on the floor, at most.
CHAIRS = 3
CLUTTER = 7

# Probability of each piece by style of room; columns: bedroom, living room, study, dining, studio.
_STYLE_SHARES = (0.32, 0.22, 0.15, 0.11, 0.20)
_CHANCES = {
    'bed': (1.00, 0.00, 0.10, 0.00, 0.85),
    'second_bed': (0.45, 0.00, 0.00, 0.00, 0.10),
    'sofa': (0.25, 1.00, 0.45, 0.35, 0.75),
    'second_sofa': (0.15, 0.70, 0.20, 0.25, 0.25),
    'desk': (0.45, 0.20, 1.00, 0.20, 0.55),
    'tv_stand': (0.45, 0.85, 0.25, 0.45, 0.65),
    'bookshelf': (0.65, 0.80, 0.95, 0.60, 0.75),
    'second_bookshelf': (0.25, 0.45, 0.75, 0.35, 0.30),
    'cabinet': (0.80, 0.40, 0.40, 0.70, 0.55),
    'sideboard': (0.60, 0.50, 0.40, 0.70, 0.35),
    'dining_table': (0.15, 0.50, 0.35, 1.00, 0.60),
}
# Width, depth and height in metres (low, high) of each piece.
_SIZES = {
    'bed': ((0.95, 2.0), (1.9, 2.15), (0.42, 0.62)),
    'second_bed': ((0.9, 1.4), (1.9, 2.05), (0.42, 0.6)),
    'sofa': ((1.5, 2.4), (0.8, 1.0), (0.7, 0.95)),
    'second_sofa': ((0.8, 1.6), (0.75, 0.95), (0.7, 0.95)),
    'desk': ((1.0, 1.7), (0.55, 0.8), (0.7, 0.78)),
    'tv_stand': ((1.0, 1.8), (0.35, 0.5), (0.35, 0.65)),
    'bookshelf': ((0.8, 1.7), (0.26, 0.38), (1.2, 2.15)),
    'second_bookshelf': ((0.6, 1.2), (0.26, 0.38), (0.8, 2.0)),
    'cabinet': ((0.7, 1.7), (0.45, 0.65), (1.5, 2.2)),
    'sideboard': ((0.9, 2.0), (0.38, 0.55), (0.7, 1.1)),
    'dining_table': ((0.8, 1.7), (0.75, 1.05), (0.7, 0.78)),
}


class Footing(NamedTuple):
    """
    Where pieces of one kind stand; each field (N, K).

    `yaw` turns the piece's own frame (x to its right, y to its front) into the world's. `wall` is
    0..3 for a piece against a wall, -1 for one that stands free.
    """

    x: torch.Tensor
    y: torch.Tensor
    yaw: torch.Tensor
    width: torch.Tensor
    depth: torch.Tensor
    height: torch.Tensor
    present: torch.Tensor
    wall: torch.Tensor


class Hanging(NamedTuple):
    """What hangs on walls: wall 0..3, position along it, centre height, size; each (N, K)."""

    wall: torch.Tensor
    along: torch.Tensor
    z: torch.Tensor
    width: torch.Tensor
    height: torch.Tensor
    present: torch.Tensor


class Plan(NamedTuple):
    """One furnished floor plan per scene."""

    half: torch.Tensor  # (N, 2) half the room's length and breadth
    height: torch.Tensor  # (N,)
    zone: Footing  # (N, 1) where the camera moves
    items: dict  # name -> Footing
    hangings: dict  # name -> Hanging


def wall_yaw(wall):
    """Return the yaw that turns a piece's front away from wall 0..3 (-y, +x, +y, -x)."""
    return wall * (math.pi / 2)


def wall_frame(wall, half):
    """
    Return the inward normal (cos, sin as x, y) of walls and their distance from the middle.

    :param wall: integer tensor (N, K).
    :param half: (N, 2) half sizes of the room.
    :return: normal x, normal y, distance, half length of the wall; each (N, K).
    """
    odd = (wall % 2) == 1
    nx = torch.where(odd, torch.where(wall == 1, -1.0, 1.0), 0.0)
    ny = torch.where(odd, 0.0, torch.where(wall == 0, 1.0, -1.0))
    distance = torch.where(odd, half[:, :1], half[:, 1:])
    length = torch.where(odd, half[:, 1:], half[:, :1])
    return nx, ny, distance, length


def footprint(item):
    """Return the half sizes (N, K, 2) of the axis-parallel rectangles that hold the pieces."""
    c, s = torch.cos(item.yaw).abs(), torch.sin(item.yaw).abs()
    return torch.stack((item.width * c + item.depth * s, item.width * s + item.depth * c), -1) / 2


class _Planner:
    """Places pieces one kind after another, keeping what is taken so far."""

    def __init__(self, dice, half, height):
        self.dice, self.half, self.height = dice, half, height
        self.centres = half.new_zeros(len(half), 0, 2)
        self.halves = half.new_zeros(len(half), 0, 2)

    def keep(self, item):
        """Remember pieces as taken; absent ones get a size that overlaps nothing."""
        centre = torch.stack((item.x, item.y), -1)
        size = torch.where(item.present[..., None], footprint(item), -1e3)
        first = self.centres.shape[1]
        self.centres = torch.cat((self.centres, centre), 1)
        self.halves = torch.cat((self.halves, size), 1)
        return range(first, first + item.x.shape[1])

    def free(self, item, margin=0.05, owner=None):
        """
        Return whether candidate pieces lie in the room and touch nothing placed; (N, K) bool.

        :param owner: (K,) index of the placed piece that each candidate may overlap.
        """
        centre, size = torch.stack((item.x, item.y), -1), footprint(item)
        inside = (centre.abs() + size <= self.half[:, None]).all(-1)
        reach = size[:, :, None] + self.halves[:, None] + margin
        clash = ((centre[:, :, None] - self.centres[:, None]).abs() < reach).all(-1)
        if owner is not None:
            columns = torch.arange(clash.shape[2], device=clash.device)
            clash = clash & (owner[:, None] != columns)
        return inside & ~clash.any(-1)

    def choose(self, candidates, wanted, margin=0.05):
        """Return the first free candidate as a Footing (N, 1), absent where none is free."""
        ok = self.free(candidates, margin) & candidates.present
        found = ok.any(1, keepdim=True)
        index = ok.to(torch.uint8).argmax(1, keepdim=True)
        picked = Footing(*(field.gather(1, index) for field in candidates))
        return picked._replace(present=found & wanted)

    def against_wall(self, name, size, wanted):
        """Place one piece with its back to a wall."""
        width, depth, height = (value.expand(-1, _TRIES) for value in size)
        wall = self.dice.bits(name + '.wall', _TRIES) % 4
        nx, ny, distance, length = wall_frame(wall, self.half)
        along = self.dice.uniform(name + '.along', _TRIES, low=-1.0, high=1.0)
        # Every third try goes into a corner of the wall, where furniture likes to stand.
        along = torch.where(torch.arange(_TRIES, device=wall.device) % 3 == 0, along.sign(), along)
        along = along * (length - width / 2 - 0.02)
        back = distance - depth / 2 - 0.015
        candidates = Footing(
            -nx * back + ny * along, -ny * back - nx * along, wall_yaw(wall), width, depth, height,
            along.abs() + width / 2 <= length, wall)
        item = self.choose(candidates, wanted)
        self.keep(item)
        return item

    def anywhere(self, name, size, wanted, turned=0.2, margin=0.05):
        """Place one piece free in the room, along the walls but for a turn up to `turned` rad."""
        width, depth, height = (value.expand(-1, _TRIES) for value in size)
        quarter = (self.dice.bits(name + '.quarter', _TRIES) % 4) * (math.pi / 2)
        yaw = quarter + self.dice.uniform(name + '.turn', _TRIES, low=-turned, high=turned)
        place = self.dice.uniform(name + '.place', _TRIES, 2, low=-1.0, high=1.0)
        place = place * (self.half[:, None] - 0.15)
        nowhere = torch.full(yaw.shape, -1, device=yaw.device)
        candidates = Footing(place[..., 0], place[..., 1], yaw, width, depth, height,
                             nowhere < 0, nowhere)
        item = self.choose(candidates, wanted, margin)
        self.keep(item)
        return item

    def attach(self, parent, owner, local, size, turn, wanted):
        """
        Place pieces relative to others, where free.

        :param parent: Footing (N, K).
        :param owner: indices of the parents among the placed pieces.
        :param local: (x, y) in the parent's frame, each (N, K, M).
        :param size: width, depth, height, each (N, K, M).
        :param turn: yaw relative to the parent's (N, K, M).
        :param wanted: bool (N, K, M).
        :return: Footing (N, K * M).
        """
        c, s = torch.cos(parent.yaw)[..., None], torch.sin(parent.yaw)[..., None]
        x = parent.x[..., None] + c * local[0] - s * local[1]
        y = parent.y[..., None] + s * local[0] + c * local[1]
        wanted = wanted & parent.present[..., None]
        yaw = parent.yaw[..., None] + turn
        fields = torch.broadcast_tensors(x, y, yaw, *size, wanted)
        item = Footing(*(f.flatten(1) for f in fields), fields[6].flatten(1).long() * 0 - 1)
        owner = torch.tensor(list(owner), device=x.device)
        owner = owner[:, None].expand(fields[0].shape[1:]).reshape(-1)
        item = item._replace(present=item.present & self.free(item, 0.0, owner))
        self.keep(item)
        return item


def _draw_size(dice, name, ranges, count=1):
    return tuple(
        dice.uniform(f'{name}.size{axis}', count, low=low, high=high)
        for axis, (low, high) in enumerate(ranges))


def _join(*items):
    return type(items[0])(*(torch.cat(fields, 1) for fields in zip(*items, strict=True)))


def _style(dice):
    shares = torch.tensor(_STYLE_SHARES, device=dice.device).cumsum(0)
    return (dice.uniform('style', 1) > shares).sum(1, keepdim=True).clamp(max=4)


def _corner_block(planner):
    """Give some rooms a corner of wall that juts in, so that they are L-shaped."""
    dice, half = planner.dice, planner.half
    size = dice.uniform('block.size', 2, low=0.2, high=1.2)
    sign = (dice.bits('block.corner', 2) % 2).float() * 2 - 1
    centre = sign * (half - size / 2)
    zero = torch.zeros_like(size[:, :1])
    present = dice.chance('block', 1, p=0.4)
    return Footing(centre[:, :1], centre[:, 1:], zero, size[:, :1], size[:, 1:],
                   planner.height[:, None], present, zero.long() - 1)


def _camera_zone(planner, block):
    """Return the camera's zone and the corner block, given up where it leaves no zone."""
    dice = planner.dice
    size = dice.uniform('zone.size', 2, low=0.8, high=1.7)
    place = dice.uniform('zone.place', _TRIES, 2, low=-1.0, high=1.0)
    # The root pushes the zone toward the walls: from there the view goes across the room.
    place = place.sign() * place.abs() ** 0.4 * (planner.half - size / 2 - 0.15)[:, None]
    flat = torch.zeros_like(place[..., 0])
    candidates = Footing(
        place[..., 0], place[..., 1], flat, flat + size[:, :1], flat + size[:, 1:], flat + 2.0,
        flat == 0, flat.long() - 1)
    planner.keep(block)
    zone = planner.choose(candidates, torch.ones_like(block.present))
    block = block._replace(present=block.present & zone.present)
    planner.halves[:, 0] = torch.where(block.present, planner.halves[:, 0], -1e3)
    zone = zone._replace(present=torch.ones_like(zone.present))
    planner.keep(zone)
    return zone, block


def _seats(planner, table, owner, name, sides, chance):
    """Put chairs at the given sides of tables: 0 front, 1 right, 2 back, 3 left."""
    dice = planner.dice
    k, m = table.x.shape[1], len(sides)
    side = torch.tensor(sides, device=table.x.device)
    out = dice.uniform(name + '.out', k, m, low=-0.05, high=0.35)
    slide = dice.uniform(name + '.slide', k, m, low=-0.15, high=0.15)
    along_y = (side % 2) == 0
    reach = torch.where(along_y, table.depth[..., None], table.width[..., None]) / 2 + out
    direction = torch.where((side == 0) | (side == 1), 1.0, -1.0)
    x = torch.where(along_y, slide, direction * reach)
    y = torch.where(along_y, direction * reach, slide)
    # A chair's front faces the table.
    turn = math.pi - side * (math.pi / 2) + dice.uniform(name + '.turn', k, m, low=-.35, high=.35)
    size = [dice.uniform(f'{name}.size{i}', k, m, low=low, high=high)
            for i, (low, high) in enumerate(((0.4, 0.52), (0.42, 0.52), (0.8, 1.05)))]
    wanted = dice.chance(name + '.wanted', k, m, p=chance)
    return planner.attach(table, owner, (x, y), size, turn, wanted)


def _nightstands(planner, bed, owner):
    dice = planner.dice
    width = dice.uniform('nightstand.width', 2, 1, low=0.35, high=0.5).expand(-1, -1, 2)
    depth = dice.uniform('nightstand.depth', 2, 1, low=0.32, high=0.45).expand(-1, -1, 2)
    height = dice.uniform('nightstand.height', 2, 1, low=0.4, high=0.62).expand(-1, -1, 2)
    side = torch.tensor([-1.0, 1.0], device=dice.device)
    x = side * ((bed.width[..., None] + width) / 2 + 0.06)
    y = (depth - bed.depth[..., None]) / 2
    wanted = dice.chance('nightstand', 2, 2, p=0.8)
    return planner.attach(bed, owner, (x, y), (width, depth, height), torch.zeros_like(x), wanted)


def _coffee_table(planner, sofa, owner):
    dice = planner.dice
    width = dice.uniform('coffee.width', 1, 1, low=0.6, high=1.1)
    depth = dice.uniform('coffee.depth', 1, 1, low=0.45, high=0.65)
    height = dice.uniform('coffee.height', 1, 1, low=0.35, high=0.5)
    y = (sofa.depth[..., None] + depth) / 2 + dice.uniform('coffee.gap', 1, 1, low=.25, high=.5)
    turn = dice.uniform('coffee.turn', 1, 1, low=-0.15, high=0.15)
    wanted = dice.chance('coffee', 1, 1, p=0.9)
    return planner.attach(sofa, owner, (y * 0, y), (width, depth, height), turn, wanted)


def _hang(plan_half, dice, name, size, z, chance, taken, avoid=()):
    """
    Hang pieces on walls where nothing hangs and nothing tall stands.

    :param size: width and height, each (N, K).
    :param z: centre heights (N, K).
    :param taken: list of (wall, along, half width, bottom, top), each (N, I); appended to.
    :param avoid: more of these, for these pieces alone.
    """
    width, height = size
    pieces = []
    for k in range(width.shape[1]):
        wall = dice.bits(f'{name}{k}.wall', _TRIES) % 4
        _, _, _, length = wall_frame(wall, plan_half)
        reach = length - width[:, k:k + 1] / 2 - 0.1
        along = dice.uniform(f'{name}{k}.along', _TRIES, low=-1.0, high=1.0) * reach
        tall = height[:, k:k + 1] / 2
        bottom, top = z[:, k:k + 1] - tall, z[:, k:k + 1] + tall
        others = [torch.cat(fields, 1)[:, None] for fields in zip(*taken, *avoid, strict=True)]
        clash = (wall[..., None] == others[0])
        apart = width[:, k:k + 1, None] / 2 + others[2] + 0.06
        clash &= (along[..., None] - others[1]).abs() < apart
        clash &= (bottom[..., None] < others[4]) & (top[..., None] > others[3])
        ok = ~clash.any(-1) & (reach > 0)
        index = ok.to(torch.uint8).argmax(1, keepdim=True)
        present = ok.any(1, keepdim=True) & dice.chance(f'{name}{k}', 1, p=chance[k])
        wall, along = wall.gather(1, index), along.gather(1, index)
        taken.append((torch.where(present, wall, -1), along, width[:, k:k + 1] / 2, bottom, top))
        pieces.append(Hanging(wall, along, z[:, k:k + 1], width[:, k:k + 1], height[:, k:k + 1],
                              present))
    return _join(*pieces)


def _near_walls(zone, half):
    """Return the stretches of wall that are close to the camera's zone, as `_hang` takes them."""
    wall = torch.arange(4, device=half.device).expand(len(half), -1)
    nx, ny, distance, _ = wall_frame(wall, half)
    size = footprint(zone)
    gap = distance + zone.x * nx + zone.y * ny - torch.where(nx == 0, size[..., 1], size[..., 0])
    along = zone.x * ny - zone.y * nx
    return (torch.where(gap < 0.5, wall, -1), along,
            torch.where(nx == 0, size[..., 0], size[..., 1]), 0 * gap, 0 * gap + 9)


def _hangings(dice, half, height, zone, items):
    taken, near = [], [_near_walls(zone, half)]
    for item in items.values():
        if item.wall.shape[1] == 1:
            along = _along(item)
            wall = torch.where(item.present, item.wall, -1)
            taken.append((wall, along, item.width / 2, item.height * 0, item.height))
    ceiling = height[:, None]

    def size(name, count, width, tall):
        return (dice.uniform(name + '.width', count, low=width[0], high=width[1]),
                dice.uniform(name + '.height', count, low=tall[0], high=tall[1]))

    result = {}
    spread = size('window', 3, (0.7, 1.8), (0.9, 1.4))
    bottom = dice.uniform('window.bottom', 3, low=0.55, high=1.0)
    spread = (spread[0], torch.minimum(spread[1], ceiling - 0.2 - bottom))
    result['window'] = _hang(half, dice, 'window', spread, bottom + spread[1] / 2,
                             (0.95, 0.55, 0.2), taken)
    wide = dice.uniform('wall_tv.width', 1, low=0.8, high=1.5)
    result['wall_tv'] = _hang(half, dice, 'wall_tv', (wide, wide * 0.58),
                              dice.uniform('wall_tv.z', 1, low=1.1, high=1.6), (0.35,), taken)
    board = size('wall_shelf', 2, (0.6, 1.3), (0.3, 0.36))
    result['wall_shelf'] = _hang(half, dice, 'wall_shelf', board,
                                 dice.uniform('wall_shelf.z', 2, low=1.2, high=1.8),
                                 (0.6, 0.5), taken, near)
    cupboard = size('wall_cabinet', 2, (0.7, 1.8), (0.45, 0.75))
    result['wall_cabinet'] = _hang(half, dice, 'wall_cabinet', cupboard,
                                   dice.uniform('wall_cabinet.z', 2, low=1.65, high=1.85),
                                   (0.35, 0.2), taken, near)
    frame = size('picture', 6, (0.4, 1.3), (0.4, 1.0))
    result['picture'] = _hang(half, dice, 'picture', frame,
                              dice.uniform('picture.z', 6, low=1.3, high=1.75),
                              (0.95, 0.85, 0.8, 0.7, 0.6, 0.5), taken)
    return result


def _along(item):
    """Return how far along its wall a piece stands, in the wall's own direction."""
    return torch.where(item.wall % 2 == 1,
                       torch.where(item.wall == 1, 1.0, -1.0) * item.y,
                       torch.where(item.wall == 0, 1.0, -1.0) * item.x)


def plan_rooms(dice):
    """Return a Plan for each of the dice's scenes."""
    half = torch.cat((dice.uniform('room.length', 1, low=1.7, high=3.05),
                      dice.uniform('room.breadth', 1, low=1.5, high=2.45)), 1)
    swap = dice.chance('room.swap', 1)
    half = torch.where(swap, half.flip(1), half)
    height = dice.uniform('room.height', low=2.3, high=2.85)
    planner = _Planner(dice, half, height)
    zone, block = _camera_zone(planner, _corner_block(planner))
    items = {'block': block}
    items['door'] = planner.against_wall(
        'door', _draw_size(dice, 'door', ((0.8, 0.95), (0.5, 0.6), (2.0, 2.1))),
        dice.chance('door', 1, p=0.6))
    style = _style(dice)
    for name, chances in _CHANCES.items():
        chance = torch.tensor(chances, device=dice.device)[style]
        wanted = dice.uniform(name, 1) < chance
        size = _draw_size(dice, name, _SIZES[name])
        place = planner.anywhere if name == 'dining_table' else planner.against_wall
        owner = planner.centres.shape[1]
        items[name] = place(name, size, wanted)
        if name == 'second_bed':
            beds = _join(items['bed'], items['second_bed'])
            items['nightstand'] = _nightstands(planner, beds, (owner - 1, owner))
        elif name == 'sofa':
            items['coffee_table'] = _coffee_table(planner, items['sofa'], (owner,))
        elif name == 'desk':
            items['desk_chair'] = _seats(planner, items['desk'], (owner,), 'desk_chair', (0,), 0.9)
        elif name == 'dining_table':
            items['dining_chair'] = _seats(
                planner, items['dining_table'], (owner,), 'dining_chair', (0, 1, 2, 3), 0.85)
    for k in range(CHAIRS):
        size = _draw_size(dice, f'chair{k}', ((0.45, 0.7), (0.45, 0.6), (0.8, 1.05)))
        items[f'chair{k}'] = planner.anywhere(
            f'chair{k}', size, dice.chance(f'chair{k}', 1, p=0.7), turned=0.78)
    for k in range(CLUTTER):
        size = _draw_size(dice, f'clutter{k}', ((0.2, 0.5), (0.2, 0.5), (0.15, 0.6)))
        items[f'clutter{k}'] = planner.anywhere(
            f'clutter{k}', size, dice.chance(f'clutter{k}', 1, p=0.65), turned=0.78)
    return Plan(half, height, zone, items, _hangings(dice, half, height, zone, items))
