# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Ray casting of convex solids in closed rooms, in plain tensor operations.

Rays come in groups that share a list of candidate solids: the pixels of one tile of the image, or
the sub-samples of one pixel. Groups are sorted by the length of their lists, so that step k tests
the k-th candidate of exactly those groups that have one: no padding is computed, and no ray meets
a solid that cannot be in its tile. Tensors of rays are (3, R, G): components, rays of a group,
groups. Everything is elementwise, so a scene's image does not depend on the batch around it, and
no matrix product can lose precision to reduced-precision accelerator modes.
"""

from typing import NamedTuple

import torch

from mtan_perception.synthetic.parts import BOX, CEILING, CYLINDER, ELLIPSOID, FLOOR, WALL

SHAPES = (BOX, CYLINDER, ELLIPSOID)
FACES = 6  # the first surfaces of a scene: walls -x, +x, -y, +y, floor, ceiling
_FACE_LABELS = (WALL, WALL, WALL, WALL, FLOOR, CEILING)
_FACE_MATERIALS = (0, 0, 0, 1, 2, 3)
_NEAR = 0.02
_FAR = 1e6
_STEPS = 511


class World(NamedTuple):
    """
    The solids of a batch of rooms, ready for rays.

    `to_unit`: per shape (N, P, 12), the row-major matrix and the shift that take room
    coordinates to those in which the solid is the unit cube, cylinder or ball. `rows` (N, S, 15):
    the same for every surface (six faces of the room, then the solids in order of shape), and half
    sizes.
    """

    solids: tuple
    to_unit: tuple
    rows: torch.Tensor
    label: torch.Tensor  # (N, S)
    material: torch.Tensor  # (N, S)
    first: tuple  # number of the first surface of each shape
    room: torch.Tensor  # (N, 3) half sizes

    def each(self, candidates):
        """Return (shape, to_unit, first, its candidates) of every shape."""
        return zip(SHAPES, self.to_unit, self.first, candidates, strict=True)


class Candidates(NamedTuple):
    """Solids that the rays of a group may meet: (G, K) numbers, `count` (G,) of them valid."""

    number: torch.Tensor
    count: torch.Tensor


class Hits(NamedTuple):
    """What rays met: z-depth and surface number, each float32 (R, G)."""

    depth: torch.Tensor
    surface: torch.Tensor


def _to_unit(centre, rotation, half):
    matrix = rotation.transpose(-1, -2) / half[..., None]
    shift = -(matrix * centre[..., None, :]).sum(-1)
    return torch.cat((matrix.flatten(-2), shift), -1)


def build_world(plan, parts):
    """Return the World of a furnished plan."""
    solids = tuple(parts.solids(shape) for shape in SHAPES)
    to_unit = tuple(_to_unit(s.centre, s.rotation, s.half) for s in solids)
    room = torch.cat((plan.half, plan.height[:, None] / 2), 1)
    number, device = len(room), room.device
    centre = torch.nn.functional.pad(room[:, 2:], (2, 0))
    upright = torch.eye(3, device=device).expand(number, 3, 3)
    box = torch.cat((_to_unit(centre, upright, room), room), 1)[:, None]
    rows = [torch.cat((unit, s.half), -1) for unit, s in zip(to_unit, solids, strict=True)]
    rows = torch.cat([box.expand(-1, FACES, -1), *rows], 1)
    faces = torch.tensor((_FACE_LABELS, _FACE_MATERIALS), device=device)
    faces = faces[:, None].expand(-1, number, -1)
    label = torch.cat([faces[0]] + [s.label for s in solids], 1)
    material = torch.cat([faces[1]] + [s.material for s in solids], 1)
    first = [FACES]
    for s in solids[:-1]:
        first.append(first[-1] + s.centre.shape[1])
    return World(solids, to_unit, rows, label, material, tuple(first), room)


def interval(shape, origin, direction):
    """
    Return where lines enter and leave a unit solid, as multiples of `direction`.

    :param origin, direction: (3, ...) in the solid's unit frame.
    :return: enter, leave; enter > leave for a miss, and then the more so the wider the miss.
    """
    if shape == BOX:
        inverse = (direction + 1e-20).reciprocal_()
        middle = origin * inverse
        reach = inverse.abs_()
        enter, leave = reach + middle, reach.sub_(middle)
        return (torch.minimum(torch.minimum(enter[0], enter[1]), enter[2]).neg_(),
                torch.minimum(torch.minimum(leave[0], leave[1]), leave[2]))
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    square, along, cross = dx * dx + dy * dy, ox * dx + oy * dy, (ox * dy - oy * dx) ** 2
    if shape == ELLIPSOID:
        square, along = square + dz * dz, along + oz * dz
        cross = cross + (oy * dz - oz * dy) ** 2 + (oz * dx - ox * dz) ** 2
    square = square + 1e-12
    # |o|^2 |d|^2 = (o.d)^2 + |o x d|^2 gives the discriminant without its usual cancellation.
    gap = square - cross
    root = gap.abs().sqrt() * gap.sign()
    low, high = (-along - root) / square, (-along + root) / square
    if shape == CYLINDER:
        inverse = 1 / (dz + 1e-20)
        middle, reach = -oz * inverse, inverse.abs()
        low, high = torch.maximum(low, middle - reach), torch.minimum(high, middle + reach)
    return low, high


def _apply(matrix, vector):
    """Multiply matrices, nine rows (9, ...), with vectors (3, ...), element by element."""
    rows = matrix.unflatten(0, (3, 3))
    return (rows[:, 0] * vector[0]).addcmul_(rows[:, 1], vector[1]).addcmul_(rows[:, 2], vector[2])


def _into(table, points):
    """Take one point per scene (N, 3) into the frames of all its solids (N, P, 3)."""
    return (table[..., :9].unflatten(-1, (3, 3)) * points[:, None, None]).sum(-1) + table[..., 9:]


def list_candidates(mask):
    """Turn a mask (G, P) of possible solids into Candidates."""
    count = mask.sum(1)
    group, solid = mask.nonzero(as_tuple=True)
    rank = torch.arange(len(group), device=mask.device) - (count.cumsum(0) - count)[group]
    number = count.new_zeros(len(mask), int(count.max()))
    number[group, rank] = solid
    return Candidates(number, count)


class _Sorted:
    """Groups in order of falling number of candidates, and the way back."""

    def __init__(self, candidates):
        order = torch.argsort(candidates.count, descending=True, stable=True)
        histogram = torch.bincount(candidates.count, minlength=1)
        more = histogram.sum() - histogram.cumsum(0)
        # How many groups have more than k candidates, for each k.
        self.active = [n for n in more.tolist() if n > 0]
        # Groups without any are left out.
        self._order = order[:self.active[0] if self.active else 0]
        self.number = candidates.number.T.index_select(1, self._order)

    def sort(self, values):
        """Return the groups, the last axis, that have candidates, in order."""
        return values.gather(-1, self._order.expand(*values.shape[:-1], -1))

    def put_back(self, values, into):
        """Write values of sorted groups to their places."""
        into.scatter_(-1, self._order.expand_as(values), values)
        return into


def columns(table, index):
    """Pick entries (n,) from every row of a table (C, P); returns (C, 1, n)."""
    return table.gather(1, index.expand(len(table), -1))[:, None]


def stacked(*tables):
    """Turn tables (N, P, C) into one of all their columns, contiguous (C, N * P)."""
    return torch.cat(tables, -1).flatten(0, 1).T.contiguous()


def tiles_in_view(world, camera, k, height, width, tile):
    """
    Return, for each shape, the Candidates of every tile of the image.

     :param tile: side of the square tiles in pixels; groups are numbered row by row, scene by
        scene.
    """
    result = []
    down, across = -(-height // tile), -(-width // tile)
    device = k.device
    left = torch.arange(across, device=device) * tile - 1.0
    top = torch.arange(down, device=device) * tile - 1.0
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)],
                         dtype=torch.float32, device=device)
    turn = camera.rotation[:, None]
    focal, middle = k[:, 0, 0, None, None], k[:, :2, 2, None, None]
    for s in world.solids:
        offset = s.centre - camera.position[:, None]
        centre = (turn * offset[..., None, :]).sum(-1)
        axes = (turn[..., None] * s.rotation[:, :, None]).sum(-2) * s.half[..., None, :]
        corners = centre[:, :, None] + (axes[:, :, None] * signs[:, None]).sum(-1)
        z = corners[..., 2]
        behind = z < _NEAR
        scale = focal / z.clamp(min=_NEAR)
        u, v = (corners[..., i] * scale + middle[:, i] for i in (0, 1))
        # What reaches behind the camera may show anywhere.
        some, shown = behind.any(-1), s.present & ~behind.all(-1)
        mask = (_overlaps(v, some, top, tile) & shown[:, None])[:, :, None]
        mask = mask & _overlaps(u, some, left, tile)[:, None]
        result.append(list_candidates(mask.flatten(0, 2)))
    return result


def _overlaps(value, anywhere, start, tile):
    """Return which strips of tiles (N, T, P) corners at values (N, P, 8) may reach."""
    low = torch.where(anywhere, -_FAR, value.amin(-1))[:, None]
    high = torch.where(anywhere, _FAR, value.amax(-1))[:, None]
    return (low <= start[:, None] + tile + 1) & (high >= start[:, None])


def first_hits(world, origin, direction, scene, candidates):
    """
    Find the first surface along rays from the cameras.

    :param origin: (N, 3); direction: (3, R, G) with optical z of 1, so that distances are depths.
    :param scene: (G,) scene of each group; candidates: of each shape.
    :return: Hits.
    """
    start, box = (columns(t.T.contiguous(), scene) for t in (origin, world.rows[:, 0]))
    unit = _apply(box[:9], direction)
    inverse = 1 / (unit + 1e-20)
    leave = -(_apply(box[:9], start) + box[9:12]) * inverse + inverse.abs()
    depth, axis = leave.min(0)
    surface = axis * 2.0 + (unit.gather(0, axis[None])[0] > 0)
    for shape, table, first, listed in world.each(candidates):
        groups = _Sorted(listed)
        if not groups.active:
            continue
        # The camera in every solid's unit frame: shared by all rays.
        eye = _into(table, origin)
        base = groups.sort(scene * table.shape[1])
        table = stacked(table[..., :9], eye)
        near, step = _nearest(shape, table, base, groups, groups.sort(direction))
        owner = groups.number.gather(0, step.long()) + float(first)
        before, behind = groups.sort(depth), groups.sort(surface)
        depth = groups.put_back(torch.minimum(near, before), depth)
        surface = groups.put_back(behind + (owner - behind) * (near < before), surface)
    return Hits(depth, surface)


def _nearest(shape, table, base, groups, rays):
    """
    Return the depth of the nearest solid of one shape, (R, n), and the number of its step.

    Only minima here, no selections by mask, which cost ten times as much on a CPU: a miss gets a
    great distance, and the step rides in the last bits of the distance's integer form, which
    orders as the distance does. Distances that differ by less than 6e-5 of their size may so be
    told apart wrongly; the depth itself stays exact.
    """
    best = torch.full_like(rays[0], _FAR)
    key = best.view(torch.int32).clone()
    for step, n in enumerate(groups.active):
        row = columns(table, base[:n] + groups.number[step, :n])
        low, high = interval(shape, row[9:], _apply(row[:9], rays[..., :n]))
        # The camera is in no solid, so what it leaves behind it also misses.
        miss = low.clamp(min=0).sub_(high).clamp_(min=0)
        low = low.add_(miss, alpha=1e12).clamp_(max=_FAR)
        torch.minimum(best[:, :n], low, out=best[:, :n])
        coded = low.view(torch.int32).bitwise_and_(~_STEPS).bitwise_or_(min(step, _STEPS))
        torch.minimum(key[:, :n], coded, out=key[:, :n])
    return best, key & _STEPS


def near_rays(world, points, target, active, slack):
    """
    Return, for each shape, which solids may stand between a group's points and a target point.

    :param points: (3, R, G); target: (N, 3); active: (G,) groups that count.
    :param slack: metres by which a solid may miss the lines and still count.
    """
    low, high = points.amin(1), points.amax(1)
    centre, radius = (low + high) / 2, (high - low).square().sum(0).sqrt() / 2 + slack
    number = len(target)
    centre = centre.T.reshape(number, -1, 3)
    radius = radius.reshape(number, -1, 1)
    active = active.reshape(number, -1, 1)
    result = []
    for solids, table in zip(world.solids, world.to_unit, strict=True):
        matrix, shift = table[..., :9].unflatten(-1, (3, 3)), table[..., 9:]
        goal = _into(table, target)
        enter = leave = None
        for i in range(3):
            row = matrix[:, None, :, i]
            start = shift[:, None, :, i] + centre[..., :1] * row[..., 0].contiguous()
            start.addcmul_(centre[..., 1:2], row[..., 1].contiguous())
            start.addcmul_(centre[..., 2:], row[..., 2].contiguous())
            inverse = (goal[:, None, :, i] - start).add_(1e-20).reciprocal_()
            middle = start.mul_(inverse)
            reach = inverse.abs_()
            reach.addcmul_(reach, radius * (1 / solids.half[:, None, :, i]))
            low, high = reach + middle, reach.sub_(middle)
            enter = low if i == 0 else torch.minimum(enter, low)
            leave = high if i == 0 else torch.minimum(leave, high)
        enter.neg_()
        mask = (enter <= leave) & (leave > 0) & (enter < 1) & active
        mask &= (solids.present & solids.casts)[:, None]
        result.append(list_candidates(mask.flatten(0, 1)))
    return result


def light_reaching(world, points, target, surface, scene, candidates, size, near=0.02):
    """
    Return how much light of a lamp reaches points, 0..1, shape (R, G).

    :param points: (3, R, G) metres; surface: (R, G) what they lie on; target: (N, 3) the lamp.
    :param size: metres; the lamp's extent. A ray that misses a solid by less than the penumbra's
        width there is dimmed, which gives soft edges that harden toward the contact.
    :param near: metres; the penumbra's width at the point itself.

    A convex solid never shades the side of itself that faces the lamp, so a point's own solid is
    left out, and no offset is needed against speckles.
    """
    distance = (columns(target.T.contiguous(), scene) - points).square().sum(0).sqrt()
    clear = torch.ones_like(distance)
    for shape, table, first, listed in world.each(candidates):
        groups = _Sorted(listed)
        if not groups.active:
            continue
        goal = _into(table, target)
        base = groups.sort(scene * table.shape[1])
        table = stacked(table, goal)
        start, owner = groups.sort(points), groups.sort(surface) - first
        length, light = groups.sort(distance), groups.sort(clear)
        for step, n in enumerate(groups.active):
            solid = groups.number[step, :n]
            row = columns(table, base[:n] + solid)
            origin = _apply(row[:9], start[..., :n]).add_(row[9:12])
            low, high = interval(shape, origin, row[12:] - origin)
            low = low.clamp_(min=0)
            passed = (low - high.clamp_(max=0.98)).mul_(length[:, :n])
            passed.div_(low.mul_(size).add_(near))
            # Never below 0 is seen to by the last step; the own solid passes everything.
            passed.add_(torch.eq(owner[:, :n], solid, out=torch.empty_like(passed)), alpha=1e9)
            torch.minimum(light[:, :n], passed, out=light[:, :n])
        clear = groups.put_back(light, clear)
    return clear.clamp(min=0)


class Surfaces(NamedTuple):
    """Geometry at points hit, over P points: position and normal (3, P), texture coordinates."""

    point: torch.Tensor
    normal: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    fall: torch.Tensor


def surfaces_at(world, origin, direction, depth, surface, scene):
    """
    Return the Surfaces where rays ended.

    :param origin: (3, P); direction: (3, P); depth: (P,); surface: (P,); scene: (P,) numbers.
    """
    index = scene * world.rows.shape[1] + surface
    row = columns(stacked(world.rows), index)[:, 0]
    matrix, shift, half = row[:9], row[9:12], row[12:]
    point = origin + depth * direction
    unit = _apply(matrix, point) + shift
    heading = _apply(matrix, direction)
    gradient = _gradient(world, unit, heading, surface)
    transposed = matrix.unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1)
    normal = _apply(transposed, gradient)
    normal = normal / normal.square().sum(0).sqrt().clamp(min=1e-9)
    normal = normal * -((normal * direction).sum(0).sign())
    local = unit * half
    # Texture coordinates: the two axes in a flat face; around and along a curved one.
    flat_x, flat_y, flat_z = (gradient.abs() == 1).float()
    around = torch.atan2(unit[1], unit[0]) * half[0]
    u = around + (local[1] - around) * flat_x + (local[0] - around) * torch.maximum(flat_y, flat_z)
    v = local[2] + (local[1] - local[2]) * flat_z
    return Surfaces(point, normal, u, v, unit[2])


def _gradient(world, unit, heading, surface):
    """Return outward directions (3, P) in the unit frames at points on the unit solids."""
    inside = (surface < FACES).float()
    box = (surface < world.first[1]).float()
    ball = (surface >= world.first[2]).float()
    # The face of a box: the coordinate nearest to 1 among the faces turned to the ray, which are
    # those the ray enters, or leaves from inside the room.
    turned = ((unit * heading) * (1 - 2 * inside) < 0) * unit.abs()
    top = turned.amax(0)
    flat = (turned == top) * box
    cap = (unit[2].square() > unit[0].square() + unit[1].square()) * (1 - ball) * (1 - box)
    flat = torch.stack((flat[0], flat[1], torch.maximum(flat[2], cap)))
    curved = 1 - torch.maximum(box, cap)
    round_part = torch.stack((unit[0] * curved, unit[1] * curved, unit[2] * curved * ball))
    return flat * unit.sign() + round_part
