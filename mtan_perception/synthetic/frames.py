# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of random rooms, with their exact labels, depth, normals and camera matrices."""

from typing import NamedTuple

import torch

from mtan_perception.synthetic.camera import intrinsics, place_camera
from mtan_perception.synthetic.furniture import furnish
from mtan_perception.synthetic.hashing import Dice
from mtan_perception.synthetic.materials import draw_materials, surface_colour
from mtan_perception.synthetic.raycast import (
    build_world, Candidates, first_hits, light_reaching, near_rays, surfaces_at, tiles_in_view)
from mtan_perception.synthetic.rooms import plan_rooms
from mtan_perception.synthetic.sensor import photograph

_TILE = 8
# Pixels rendered at once: enough to amortise the calls, few enough for the caches or the memory.
_CHUNK = {'cpu': 4 * 144 * 192, 'other': 256 * 144 * 192}
# Sub-samples of a pixel on an edge, in pixels from its centre: a rotated square.
_SUBPIXELS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))
_LIGHT_SIZE = 0.16


class Frames(NamedTuple):
    """
    A batch of N frames.

    Normals and depth are in the optical frame (x right, y down, z forward); depth is z.
    """

    rgb: torch.Tensor  # (N, 3, H, W) float32, 0..1
    label: torch.Tensor  # (N, H, W) int64, 0..12 as in labels.NYUV2_13
    depth: torch.Tensor  # (N, 1, H, W) float32, metres
    normal: torch.Tensor  # (N, 3, H, W) float32, unit vectors toward the camera
    intrinsics: torch.Tensor  # (N, 3, 3) float32, pixel centres at whole numbers


class _Lights(NamedTuple):
    """Two lamps per scene: position (N, 2, 3) and colour times strength (N, 2, 3); the ambient."""

    place: torch.Tensor
    colour: torch.Tensor
    ambient: torch.Tensor


def _lights(plan, dice):
    spot = dice.uniform('light.spot', 1, 2, low=-0.4, high=0.4)[:, 0] * plan.half
    drop = dice.uniform('ceiling_lamp.drop', 1, 1, low=0.08, high=0.3)[:, 0]
    lamp = torch.cat((spot, plan.height[:, None] - drop), 1)
    # The second lamp is the daylight of a wall, or a lamp somewhere in the room.
    side = dice.uniform('light.side', 2, low=-1.0, high=1.0)
    side = side / side.abs().amax(1, keepdim=True).clamp(min=1e-3) * (plan.half - 0.1)
    second = torch.cat((side, dice.uniform('light.height', 1, low=1.2, high=2.1)), 1)
    place = torch.stack((lamp, second), 1)
    warm = dice.uniform('light.warm', 2, low=-0.25, high=0.25)
    tint = torch.stack((1 + warm, torch.ones_like(warm), 1 - warm), -1)
    strength = dice.uniform('light.strength', 2) * place.new_tensor((1.2, 1.0)) + 0.15
    ambient = dice.uniform('light.ambient', 1, low=0.12, high=0.4)
    tone = 1 + dice.uniform('light.tone', 3, low=-0.12, high=0.12)
    return _Lights(place, tint * strength[..., None], ambient * tone)


class _Scene(NamedTuple):
    """All that the shading of a chunk needs."""

    world: tuple
    camera: tuple
    lights: _Lights
    materials: torch.Tensor
    focal: torch.Tensor


def _rays(camera, k, u, v, scene):
    """Return directions (3, R, G) through pixels u, v (R, G) with optical z of 1."""
    focal, cx, cy = k[scene, 0, 0], k[scene, 0, 2], k[scene, 1, 2]
    x, y = (u - cx) / focal, (v - cy) / focal
    rows = camera.rotation[scene].permute(1, 2, 0)[:, :, None]
    return rows[0] * x + rows[1] * y + rows[2]


def _shaded(scene_data, rays, hits, scene, shadows):
    """
    Return the light (3, R, G) that comes back along rays, and their Surfaces.

    :param shadows: function of (lamp, points, facing) that gives that lamp's Candidates.
    """
    world, camera, lights, materials, focal = scene_data
    shape = hits.depth.shape
    spread = scene.expand(shape).reshape(-1)
    surface = hits.surface.reshape(-1).long()
    origin = camera.position[scene].T[:, None].expand(3, *shape).reshape(3, -1)
    direction, depth = rays.reshape(3, -1), hits.depth.reshape(-1)
    at = surfaces_at(world, origin, direction, depth, surface, spread)
    number = world.material.flatten()[spread * world.material.shape[1] + surface]
    material = materials.flatten(0, 1)[spread * materials.shape[1] + number].T.contiguous()
    facing = -(at.normal * direction).sum(0)
    norm = direction.square().sum(0).sqrt()
    footprint = depth * norm * norm / (focal[spread] * facing.clamp(min=0.05 * norm))
    albedo, gloss, glow = surface_colour(material, at.u, at.v, at.fall, footprint)
    room = world.room[spread].T
    light = lights.ambient[spread].T * _ambient(at, room)
    shine = torch.zeros_like(albedo)
    points, flat = at.point.reshape(3, *shape), spread
    for lamp in range(lights.place.shape[1]):
        toward = lights.place[flat, lamp].T - at.point
        away = toward.square().sum(0)
        cosine = (at.normal * toward).sum(0) * away.rsqrt()
        seen = light_reaching(world, points, toward.reshape(3, *shape), hits.surface, scene,
                              shadows(lamp, points, (cosine > 0).reshape(shape).any(0)), _LIGHT_SIZE)
        strength = lights.colour[flat, lamp].T * (seen.reshape(-1) / (0.6 + 0.35 * away))
        light = light + strength * cosine.clamp(min=0)
        # Blinn-Phong highlight.
        middle = toward * away.rsqrt() - direction / norm
        middle = middle / middle.square().sum(0).sqrt().clamp(min=1e-6)
        peak = (at.normal * middle).sum(0).clamp(min=0) ** 32 * (cosine > 0)
        shine = shine + strength * (peak * gloss * 0.5)
    light = albedo * (light + glow) + shine
    return light.reshape(3, *shape), at


def _ambient(at, room):
    """Return the share of ambient light (P,): less in corners, less on what faces down."""
    share = 0.8 + 0.2 * at.normal[2]
    for axis in range(3):
        position = at.point[axis] - (room[2] if axis == 2 else 0.0)
        for side in (-1.0, 1.0):
            distance = (room[axis] - side * position).clamp(min=0)
            share = share * (1 - 0.4 * (1 - at.normal[axis].abs()) * torch.exp(-distance / 0.3))
    return share


def _edges(surface):
    """Mark pixels (N, H, W) with a neighbour of another surface."""
    edge = torch.zeros_like(surface, dtype=torch.bool)
    across = surface[:, :, 1:] != surface[:, :, :-1]
    down = surface[:, 1:] != surface[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def _untile(tiles, number, rows, columns, height, width):
    """Turn (C, tile * tile, G) into images (N, C, H, W)."""
    image = tiles.reshape(-1, _TILE, _TILE, number, rows, columns).permute(3, 0, 4, 1, 5, 2)
    return image.reshape(number, -1, rows * _TILE, columns * _TILE)[..., :height, :width]


def _render_chunk(seeds, height, width, time):
    dice = Dice(seeds)
    plan = plan_rooms(dice)
    parts = furnish(plan, dice)
    world = build_world(plan, parts)
    camera = place_camera(plan, dice, time)
    k = intrinsics(camera.fov, height, width)
    data = _Scene(world, camera, _lights(plan, dice), draw_materials(parts.kinds, dice), k[:, 0, 0])
    number, device = len(seeds), seeds.device
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    group = torch.arange(number * rows * columns, device=device)
    scene = group // (rows * columns)
    inner = torch.arange(_TILE * _TILE, device=device)[:, None]
    u = (group % columns * _TILE + inner % _TILE).float()
    v = (group // columns % rows * _TILE + inner // _TILE).float()
    in_view = tiles_in_view(world, camera, k, height, width, _TILE)
    rays = _rays(camera, k, u, v, scene)
    hits = first_hits(world, camera.position, rays, scene, in_view)
    in_shadow = {}

    def shadows(lamp, points, facing):
        in_shadow[lamp] = near_rays(world, points, data.lights.place[:, lamp], scene, facing, 0.1)
        return in_shadow[lamp]

    light, at = _shaded(data, rays, hits, scene, shadows)

    def image(tiles):
        return _untile(tiles, number, rows, columns, height, width)

    surface = image(hits.surface)[:, 0].long()
    light = image(light).contiguous()
    frame, y, x = _edges(surface).nonzero(as_tuple=True)
    tile = (frame * rows + y // _TILE) * columns + x // _TILE

    def of_pixels(listed):
        return [Candidates(c.number[tile], c.count[tile]) for c in listed]

    offset = torch.tensor(_SUBPIXELS, device=device).T[..., None]
    rays = _rays(camera, k, x + offset[0], y + offset[1], frame)
    sub = first_hits(world, camera.position, rays, frame, of_pixels(in_view))
    fine, _ = _shaded(data, rays, sub, frame, lambda lamp, *_: of_pixels(in_shadow[lamp]))
    light[frame, :, y, x] = fine.mean(1).T
    normal = image(at.normal.reshape(3, *hits.depth.shape))
    rotation = camera.rotation[..., None, None]
    normal = (rotation * normal[:, None]).sum(2)
    label = world.label.gather(1, surface.flatten(1)).reshape(surface.shape)
    return Frames(photograph(light, dice, time), label, image(hits.depth).contiguous(), normal, k)


@torch.inference_mode()
def render(seeds, height, width, device='cpu', time=0.0):
    """
    Render one view of a furnished room for each seed.

    :param seeds: iterable of N integers, or an integer tensor; any 64-bit values.
    :param height, width: image size in pixels; the same seed shows the same view at every size.
    :param device: where to compute and where the results lie.
    :param time: seconds along the camera's smooth way through the room; 0 is the training view.
    :return: Frames.
    :raises ValueError: if there are no seeds or the size is not positive.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1).to(device)
    if not len(seeds) or height < 1 or width < 1:
        raise ValueError(f'render needs seeds and a positive size, not {len(seeds)} seeds at '
                         f'{height} x {width}')
    budget = _CHUNK['cpu' if seeds.device.type == 'cpu' else 'other']
    step = max(1, budget // (height * width))
    chunks = [_render_chunk(part, height, width, time) for part in seeds.split(step)]
    return Frames(*(torch.cat(fields) for fields in zip(*chunks)))
