# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of random rooms, with their exact labels, depth, normals and camera matrices."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch

from mtan_perception.synthetic.camera import intrinsics, place_camera
from mtan_perception.synthetic.furniture import furnish
from mtan_perception.synthetic.hashing import Dice
from mtan_perception.synthetic.materials import draw_materials, surface_colour
from mtan_perception.synthetic.raycast import (
    build_world,
    Candidates,
    columns,
    first_hits,
    light_reaching,
    near_rays,
    stacked,
    surfaces_at,
    tiles_in_view,
    World,
)
from mtan_perception.synthetic.rooms import Plan, plan_rooms
from mtan_perception.synthetic.sensor import photograph

_TILE = 8
# Pixels rendered at once: on a CPU few enough for its caches; elsewhere as many as make the cost
# of starting kernels small, if memory allows for this many bytes a pixel.
_CPU_PIXELS = 8 * 144 * 192
_GPU_PIXELS = 512 * 144 * 192
_BYTES_PER_PIXEL = 1500
# Scenes planned and furnished at once.
_BUILD = 512
# Sub-samples of a pixel on an edge beside its centre, in pixels from it.
_SUBPIXELS = ((0.0, -0.35), (-0.31, 0.19), (0.31, 0.19))
# Neighbours that may lend a colour, farthest first.
_AROUND = ((-1, -1), (-1, 1), (1, -1), (1, 1), (-1, 0), (1, 0), (0, -1), (0, 1))
# The lamps' extent, and how far its half-shadows can reach, in metres.
_LIGHT_SIZE = 0.16
_LIGHT_REACH = 0.1


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


class _Rooms(NamedTuple):
    """Everything about a batch of scenes that no image size or time changes."""

    dice: Dice
    plan: Plan
    world: World
    lights: _Lights
    materials: torch.Tensor


def _rays(camera, k, u, v, scene):
    """Return directions (3, R, G) through pixels u, v (R, G) with optical z of 1."""
    focal, cx, cy = columns(k[:, (0, 0, 1), (0, 2, 2)].T.contiguous(), scene)
    axes = columns(camera.rotation.flatten(1).T.contiguous(), scene).unflatten(0, (3, 3))
    return axes[0] * ((u - cx) / focal) + axes[1] * ((v - cy) / focal) + axes[2]


def _shade(rooms, camera, focal, rays, hits, scene):
    """
    Return the light (3, R, G) that comes back along rays, and the Surfaces they met.

    :param rays: (3, R, G); hits: what they met; scene: (G,) scene of each group.
    """
    world, lights, materials = rooms.world, rooms.lights, rooms.materials
    shape = hits.depth.shape
    spread = scene.expand(shape).reshape(-1)
    surface = hits.surface.reshape(-1).long()

    def each(values):
        return columns(values.T.contiguous(), spread)[:, 0]

    origin = each(camera.position)
    direction, depth = rays.reshape(3, -1), hits.depth.reshape(-1)
    at = surfaces_at(world, origin, direction, depth, surface, spread)
    number = world.material.flatten().gather(0, spread * world.material.shape[1] + surface)
    number += spread * materials.shape[1]
    material = columns(stacked(materials), number)[:, 0]
    norm = direction.square().sum(0).sqrt()
    facing = -(at.normal * direction).sum(0)
    slant = torch.maximum(facing, 0.05 * norm)
    footprint = depth * norm * norm / (focal.gather(0, spread) * slant)
    albedo, gloss, glow = surface_colour(material, at.u, at.v, at.fall, footprint)
    light = each(lights.ambient) * _ambient(at, each(world.room))
    shine = torch.zeros_like(albedo)
    for lamp in range(lights.place.shape[1]):
        place = lights.place[:, lamp]
        toward = each(place) - at.point
        away = toward.square().sum(0)
        cosine = (at.normal * toward).sum(0) * away.rsqrt()
        lit = (cosine > 0)
        points = at.point.reshape(3, *shape)
        listed = near_rays(world, points, place, lit.reshape(shape).any(0), _LIGHT_REACH)
        seen = light_reaching(world, points, place, hits.surface, scene, listed, _LIGHT_SIZE)
        strength = each(lights.colour[:, lamp]) * (seen.reshape(-1) / (0.6 + 0.35 * away))
        light = light + strength * cosine.clamp(min=0)
        # Blinn-Phong highlight, to the 32nd power; the floor keeps it off slow denormal numbers.
        middle = toward * away.rsqrt() - direction / norm
        middle = middle / middle.square().sum(0).sqrt().clamp(min=1e-6)
        peak = (at.normal * middle).sum(0).clamp(min=0.25)
        for _ in range(5):
            peak = peak * peak
        shine = shine + strength * (peak * gloss * 0.5 * lit)
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


def _smooth_edges(light, surface, trace):
    """
    Average sub-samples of the pixels on edges, (N, 3, H, W).

    A sub-sample has the colour of the nearest pixel around that shows the same surface: textures
    are smooth within a pixel, so only what is visible where needs to be found anew.

    :param surface: (N, H, W) what each pixel shows.
    :param trace: function from pixels (frame, u, v), u and v (R, G), to the surfaces (R, G) there.
    """
    frame, y, x = _edges(surface).nonzero(as_tuple=True)
    offset = torch.tensor(_SUBPIXELS, device=light.device).T[..., None]
    met = trace(frame, y, x, x + offset[0], y + offset[1])
    height, width = surface.shape[1:]
    colours = light.permute(0, 2, 3, 1).reshape(-1, 3)
    pixel = (frame * height + y) * width + x
    surface = surface.flatten().float()
    chosen = pixel.expand(met.shape)
    # Nearest last, so that it stays.
    for dy, dx in _AROUND:
        other = ((frame * height + (y + dy).clamp(0, height - 1)) * width
                 + (x + dx).clamp(0, width - 1))
        chosen = torch.where(surface[other] == met, other, chosen)
    own = surface[pixel] == met
    chosen = torch.where(own, pixel, chosen)
    mean = colours.index_select(0, chosen.flatten()).reshape(*met.shape, 3).sum(0) + colours[pixel]
    colours[pixel] = mean / (len(_SUBPIXELS) + 1)
    return colours.reshape(len(light), height, width, 3).permute(0, 3, 1, 2).contiguous()


def _render_chunk(rooms, camera, height, width):
    """Return light (N, 3, H, W), label, depth, normal and camera matrices of a few scenes."""
    world = rooms.world
    k = intrinsics(camera.fov, height, width)
    number, device = len(k), k.device
    down, across = -(-height // _TILE), -(-width // _TILE)
    group = torch.arange(number * down * across, device=device)
    scene = group // (down * across)
    inner = torch.arange(_TILE * _TILE, device=device)[:, None]
    u = (group % across * _TILE + inner % _TILE).float()
    v = (group // across % down * _TILE + inner // _TILE).float()
    in_view = tiles_in_view(world, camera, k, height, width, _TILE)
    rays = _rays(camera, k, u, v, scene)
    hits = first_hits(world, camera.position, rays, scene, in_view)
    light, at = _shade(rooms, camera, k[:, 0, 0], rays, hits, scene)

    def image(tiles):
        return _untile(tiles, number, down, across, height, width)

    def trace(frame, y, x, u, v):
        tile = (frame * down + y // _TILE) * across + x // _TILE
        listed = [Candidates(c.number[tile], c.count[tile]) for c in in_view]
        return first_hits(world, camera.position, _rays(camera, k, u, v, frame), frame,
                          listed).surface

    surface = image(hits.surface)[:, 0].long()
    light = _smooth_edges(image(light).contiguous(), surface, trace)
    normal = image(at.normal.reshape(3, *hits.depth.shape))
    normal = (camera.rotation[..., None, None] * normal[:, None]).sum(2)
    label = world.label.gather(1, surface.flatten(1)).reshape(surface.shape)
    return light, label, image(hits.depth).contiguous(), normal, k


def _part(value, start, stop):
    """Take scenes start to stop out of nested tuples of tensors (N, ...)."""
    if isinstance(value, torch.Tensor):
        return value[start:stop]
    if isinstance(value, Dice):
        return Dice(value.seeds[start:stop])
    if isinstance(value, dict):
        return {name: _part(item, start, stop) for name, item in value.items()}
    if isinstance(value, tuple):
        parts = [_part(item, start, stop) for item in value]
        return type(value)(*parts) if hasattr(value, '_fields') else tuple(parts)
    return value


def _pixels_at_once(device):
    if device.type == 'cpu':
        return _CPU_PIXELS
    if device.type == 'cuda':
        return min(_GPU_PIXELS, torch.cuda.mem_get_info(device)[0] // _BYTES_PER_PIXEL)
    return _GPU_PIXELS // 16


def _build(seeds):
    dice = Dice(seeds)
    plan = plan_rooms(dice)
    parts = furnish(plan, dice)
    return _Rooms(dice, plan, build_world(plan, parts), _lights(plan, dice),
                  draw_materials(parts.kinds, dice))


@lru_cache(maxsize=2)
def _rooms(seeds, device):
    """Build rooms; the last are kept, for a camera that moves through the same one."""
    return _build(torch.tensor(seeds, dtype=torch.int64, device=device))


@torch.no_grad()
def render(seeds, height, width, device='cpu', time=0.0):
    """
    Render one view of a furnished room for each seed.

    :param seeds: sequence of N integers, or an integer tensor; any of 64 bits with a sign.
    :param height, width: image size in pixels; the same seed shows the same view at every size.
    :param device: where to compute and where the results lie.
    :param time: seconds along the camera's smooth way through the room; 0 is the training view.
    :return: Frames.
    :raises ValueError: if there are no seeds or the size is not positive.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1).tolist()
    if not seeds or height < 1 or width < 1:
        raise ValueError(f'render needs seeds and a positive size, not {len(seeds)} seeds at '
                         f'{height} x {width}')
    device = torch.device(device)
    threads = torch.get_num_threads()
    if device.type != 'cpu' or threads == 1 or len(seeds) == 1:
        return _render_all(seeds, height, width, device, time)
    share = -(-len(seeds) // threads)
    parts = [seeds[first:first + share] for first in range(0, len(seeds), share)]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads,
                                initargs=(1,)) as pool:
            rendered = pool.map(
                lambda part: _render_all(part, height, width, device, time), parts)
            return Frames(*(torch.cat(fields) for fields in zip(*rendered, strict=True)))
    finally:
        torch.set_num_threads(threads)  # What threads to come begin with.


@torch.no_grad()
def _render_all(seeds: list[int], height: int, width: int, device: torch.device,
                time: float) -> Frames:
    """Render in one thread; most operations are too small to be worth sharing among several."""
    step = max(1, _pixels_at_once(device) // (height * width))
    frames = []
    for first in range(0, len(seeds), _BUILD):
        rooms = _rooms(tuple(seeds[first:first + _BUILD]), device)
        camera = place_camera(rooms.plan, rooms.dice, time)
        for start in range(0, len(rooms.dice.seeds), step):
            part, views = _part((rooms, camera), start, start + step)
            light, *exact = _render_chunk(part, views, height, width)
            frames.append((photograph(light, part.dice, time), *exact))
    return Frames(*(torch.cat(fields) for fields in zip(*frames, strict=True)))
