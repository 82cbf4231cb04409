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

from mtan_perception.synthetic.furniture import BOX, CEILING, CYLINDER, ELLIPSOID, FLOOR, WALL

SHAPES = (BOX, CYLINDER, ELLIPSOID)
FACES = 6  # the first surfaces of a scene: walls -x, +x, -y, +y, floor, ceiling
_FACE_LABELS = (WALL, WALL, WALL, WALL, FLOOR, CEILING)
_FACE_MATERIALS = (0, 0, 0, 1, 2, 3)
_NEAR = 0.02


class World(NamedTuple):
    """
    The solids of a batch of rooms, ready for rays.

    `to_unit`: per shape (N, P, 12), the row-major matrix and the shift that take room coordinates
    to those in which the solid is the unit cube, cylinder or ball. `rows` (N, S, 15): the same for
    every surface (six faces of the room, then the solids in order of shape), and half sizes.
    """

    solids: tuple
    to_unit: tuple
    rows: torch.Tensor
    label: torch.Tensor  # (N, S)
    material: torch.Tensor  # (N, S)
    first: tuple  # number of the first surface of each shape
    room: torch.Tensor  # (N, 3) half sizes


class Candidates(NamedTuple):
    """Solids that the rays of a group may meet: (G, K) numbers, of which `count` (G,) are valid."""

    number: torch.Tensor
    count: torch.Tensor


class Hits(NamedTuple):
    """What rays met: z-depth and surface number, each (R, G)."""

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
    zero = torch.zeros_like(plan.height)
    centre = torch.stack((zero, zero, plan.height / 2), -1)
    box = torch.cat((_to_unit(centre, torch.eye(3, device=device).expand(number, 3, 3), room), room), 1)
    rows = torch.cat([box[:, None].expand(-1, FACES, -1)] + [
        torch.cat((unit, s.half), -1) for unit, s in zip(to_unit, solids)], 1)
    faces = torch.tensor((_FACE_LABELS, _FACE_MATERIALS), device=device)[:, None].expand(-1, number, -1)
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
        inverse = 1 / (direction + 1e-20)
        middle, reach = -origin * inverse, inverse.abs()
        low, high = middle - reach, middle + reach
        return (torch.maximum(torch.maximum(low[0], low[1]), low[2]),
                torch.minimum(torch.minimum(high[0], high[1]), high[2]))
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
    return rows[:, 0] * vector[0] + rows[:, 1] * vector[1] + rows[:, 2] * vector[2]


def list_candidates(mask):
    """Turn a mask (G, P) of possible solids into Candidates."""
    count = mask.sum(1)
    group, solid = mask.nonzero(as_tuple=True)
    rank = torch.arange(len(group), device=mask.device) - (count.cumsum(0) - count)[group]
    number = torch.zeros_like(mask, dtype=torch.long)
    number[group, rank] = solid
    return Candidates(number, count)


def _steps(candidates):
    """
    Return the order of groups by falling number of candidates, and how many groups have more than
    k, for each k.
    """
    order = torch.argsort(candidates.count, descending=True, stable=True)
    histogram = torch.bincount(candidates.count, minlength=1)
    more = histogram.sum() - histogram.cumsum(0)
    return order, [n for n in more.tolist() if n > 0]


def tiles_in_view(world, camera, k, height, width, tile):
    """
    Return, for each shape, the Candidates of every tile of the image.

    :param tile: side of the square tiles in pixels; groups are numbered row by row, scene by scene.
    """
    result = []
    rows, columns = -(-height // tile), -(-width // tile)
    device = k.device
    left = torch.arange(columns, device=device) * tile - 1.0
    top = torch.arange(rows, device=device) * tile - 1.0
    signs = torch.tensor([[i, j, l] for i in (-1, 1) for j in (-1, 1) for l in (-1, 1)],
                         dtype=torch.float32, device=device)
    for s in world.solids:
        centre = (camera.rotation[:, None] * (s.centre - camera.position[:, None])[..., None, :]).sum(-1)
        axes = (camera.rotation[:, None, :, :, None] * s.rotation[:, :, None]).sum(-2) * s.half[..., None, :]
        corners = centre[:, :, None] + (axes[:, :, None] * signs[:, None]).sum(-1)
        z = corners[..., 2]
        behind = z < _NEAR
        u, v = (corners[..., i] / z.clamp(min=_NEAR) * k[:, 0, 0, None, None] + k[:, i, 2, None, None]
                for i in (0, 1))
        some, every = behind.any(-1), behind.all(-1)
        shown = s.present & ~every

        def overlaps(value, start):
            low = torch.where(some, -1e9, value.amin(-1))[:, None]
            high = torch.where(some, 1e9, value.amax(-1))[:, None]
            return (low <= start[:, None] + tile + 1) & (high >= start[:, None])

        mask = (overlaps(v, top) & shown[:, None])[:, :, None] & overlaps(u, left)[:, None]
        result.append(list_candidates(mask.flatten(0, 2)))
    return result


def first_hits(world, origin, direction, scene, candidates):
    """
    Find the first surface along rays from the cameras.

    :param origin: (N, 3); direction: (3, R, G) with optical z of 1, so that distances are depths.
    :param scene: (G,) scene of each group; candidates: of each shape.
    :return: Hits.
    """
    start = origin[scene].T[:, None]
    box = world.rows[:, 0][scene].T[:, None]
    unit = _apply(box[:9], direction)
    inverse = 1 / (unit + 1e-20)
    leave = -(_apply(box[:9], start) + box[9:12]) * inverse + inverse.abs()
    depth, axis = leave.min(0)
    face = axis * 2 + (unit.gather(0, axis[None])[0] > 0)
    surface = face.to(torch.int32)
    for shape, table, first, listed in zip(SHAPES, world.to_unit, world.first, candidates):
        order, active = _steps(listed)
        if not active:
            continue
        # The camera in every solid's unit frame: shared by all rays.
        eye = (table[..., :9].unflatten(-1, (3, 3)) * origin[:, None, None]).sum(-1) + table[..., 9:]
        table = torch.cat((table[..., :9], eye), -1)
        base = (scene * table.shape[1])[order]
        table, number = table.flatten(0, 1), listed.number[order]
        rays = direction[:, :, order]
        best, owner = depth[:, order], surface[:, order]
        for step, n in enumerate(active):
            solid = number[:n, step]
            row = table[base[:n] + solid].T[:, None]
            low, high = interval(shape, row[9:], _apply(row[:9], rays[..., :n]))
            hit = (low <= high) & (low > 0) & (low < best[:, :n])
            best[:, :n] = torch.where(hit, low, best[:, :n])
            owner[:, :n] = torch.where(hit, (solid + first).to(torch.int32), owner[:, :n])
        depth[:, order], surface[:, order] = best, owner
    return Hits(depth, surface)


def near_rays(world, points, target, scene, active, slack):
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
    for solids, table in zip(world.solids, world.to_unit):
        matrix, shift = table[..., :9].unflatten(-1, (3, 3)), table[..., 9:]
        goal = (matrix * target[:, None, None]).sum(-1) + shift
        enter = leave = None
        for i in range(3):
            row = matrix[:, None, :, i]
            start = (centre[:, :, None, 0] * row[..., 0] + centre[:, :, None, 1] * row[..., 1]
                     + centre[:, :, None, 2] * row[..., 2]) + shift[:, None, :, i]
            inverse = 1 / (goal[:, None, :, i] - start + 1e-20)
            reach = (1 + radius / solids.half[:, None, :, i]) * inverse.abs()
            middle = -start * inverse
            enter = middle - reach if enter is None else torch.maximum(enter, middle - reach)
            leave = middle + reach if leave is None else torch.minimum(leave, middle + reach)
        mask = (enter <= leave) & (leave > 0) & (enter < 1) & active
        mask &= (solids.present & solids.casts)[:, None]
        result.append(list_candidates(mask.flatten(0, 1)))
    return result


def light_reaching(world, points, direction, surface, scene, candidates, size, near=0.012):
    """
    Return how much light comes from points + direction, 0..1, shape (R, G).

    :param points, direction: (3, R, G) metres; surface: (R, G) what the points lie on.
    :param size: metres; the light's extent. A ray that misses a solid by less than the penumbra's
        width there is dimmed, which gives soft edges that harden toward the contact.
    :param near: metres; the penumbra's width at the point itself.

    A convex solid never shades the side of itself that faces the light, so a point's own solid is
    left out, and no offset is needed against speckles.
    """
    distance = direction.square().sum(0).sqrt()
    clear = torch.ones_like(distance)
    for shape, table, first, listed in zip(SHAPES, world.to_unit, world.first, candidates):
        order, active = _steps(listed)
        if not active:
            continue
        base = (scene * table.shape[1])[order]
        table, number = table.flatten(0, 1), listed.number[order]
        start, rays, owner = points[:, :, order], direction[:, :, order], surface[:, order]
        length, light = distance[:, order], clear[:, order]
        for step, n in enumerate(active):
            solid = number[:n, step]
            row = table[base[:n] + solid].T[:, None]
            low, high = interval(shape, _apply(row[:9], start[..., :n]) + row[9:],
                                 _apply(row[:9], rays[..., :n]))
            low = low.clamp(min=0)
            passed = ((low - high.clamp(max=0.98)) * length[:, :n] / (near + size * low)).clamp(0, 1)
            passed = torch.where(owner[:, :n] == solid + first, 1.0, passed)
            light[:, :n] = torch.minimum(light[:, :n], passed)
        clear[:, order] = light
    return clear


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
    row = world.rows.flatten(0, 1)[index].T.contiguous()
    matrix, shift, half = row[:9], row[9:12], row[12:]
    point = origin + depth * direction
    unit = _apply(matrix, point) + shift
    heading = _apply(matrix, direction)
    inside = surface < FACES
    box = surface < world.first[1]
    # The face of a box: the coordinate nearest to 1 among the faces turned to the ray.
    turned = (unit * heading > 0) == inside
    axis = (unit.abs() * turned).argmax(0)
    axis = torch.where(inside, surface // 2, axis)
    x, y, z = unit
    ball = surface >= world.first[2]
    cap = (z * z > x * x + y * y) & ~ball & ~box
    axis = torch.where(cap, 2, torch.where(box, axis, 3))
    sides = torch.stack((axis == 0, axis == 1, axis == 2))
    gradient = torch.where(sides, unit.sign(), 0.0)
    curved = axis == 3
    gradient = torch.where(curved, unit, gradient)
    gradient[2] = torch.where(curved & ~ball, 0.0, gradient[2])
    columns = matrix.unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1)
    normal = _apply(columns, gradient)
    normal = normal / normal.square().sum(0).sqrt().clamp(min=1e-9)
    normal = torch.where((normal * direction).sum(0) > 0, -normal, normal)
    local = unit * half
    around = torch.atan2(y, x) * half[0]
    u = torch.where(curved, around, torch.where(axis == 0, local[1], local[0]))
    v = torch.where(axis == 2, local[1], local[2])
    return Surfaces(point, normal, u, v, z)
