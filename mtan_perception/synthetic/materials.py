# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Procedural surfaces: colours and patterns, chosen at random for each material of a scene.

One formula serves every pattern, with the weights of its terms as parameters (stripes, checks,
joints between tiles, planks or books, noise, grain, a shade of its own per tile), so a whole image
of mixed materials is one branch-free pass. Each term fades to its mean where a pixel covers more
than its period: textures need no supersampling.
"""

from functools import lru_cache

import torch
from torch.nn import functional

from mtan_perception.synthetic import parts as p
from mtan_perception.synthetic.hashing import mix

_ATLAS = 256
_ATLAS_METRES = 1.6

# The fields of a material row, in order; three columns each for the two colours.
_FIELDS = ('su', 'sv', 'shift', 'stripe', 'check', 'joint', 'gap', 'noise', 'fine', 'grain',
           'cell',
           'hue', 'gloss', 'glow', 'fall', 'warp', 'below')
_START = 6
_INDEX = {name: _START + i for i, name in enumerate(_FIELDS)}
_OFFSET = _START + len(_FIELDS)
WIDTH = _OFFSET + 2

# Patterns: ranges (low, high) of the fields that are not zero. su and sv are cells a metre.
_PATTERNS = {
    'plain': {'noise': (0.0, 0.15), 'gloss': (0.0, 0.5)},
    'skirted': {'noise': (0.0, 0.3), 'fine': (0.0, 0.2), 'below': (0.03, 0.06)},
    'two tones': {'noise': (0.0, 0.2), 'fine': (0.0, 0.2), 'below': (0.25, 0.5)},
    'plaster': {'noise': (0.1, 0.4), 'fine': (0.05, 0.3)},
    'blotch': {'noise': (0.7, 1.6), 'gloss': (0.0, 0.3)},
    'stripes': {'su': (3, 14), 'sv': (1, 1), 'stripe': (0.4, 1.0), 'fine': (0.0, 0.2)},
    'checks': {'su': (3, 12), 'sv': (3, 12), 'check': (0.5, 1.0), 'fine': (0.0, 0.2)},
    'plaid': {'su': (3, 12), 'sv': (3, 12), 'stripe': (.3, .5), 'check': (.2, .4),
              'fine': (0, .2)},
    'tiles': {'su': (1.6, 7), 'sv': (1.6, 7), 'joint': (0.5, 1.0), 'gap': (0.002, 0.006),
              'cell': (0.02, 0.25), 'noise': (0.0, 0.4), 'gloss': (0.1, 0.7)},
    'bricks': {'su': (3.5, 5), 'sv': (9, 13), 'shift': (0.5, 0.5), 'joint': (.7, 1),
               'cell': (.1, .4), 'gap': (.004, .008), 'noise': (.2, .6), 'fine': (.1, .4)},
    'planks': {'su': (0.6, 1.2), 'sv': (6, 12), 'shift': (0.37, 0.37), 'joint': (0.4, 0.9),
               'gap': (0.001, 0.003), 'cell': (0.1, 0.4), 'grain': (0.3, 0.9), 'gloss': (0.1, .6)},
    'grain': {'grain': (0.3, 1.0), 'noise': (0.0, 0.3), 'gloss': (0.0, 0.5)},
    'rings': {'su': (6, 18), 'sv': (0.01, 0.01), 'stripe': (.3, .8), 'warp': (.5, 1.6),
              'grain': (.2, .5), 'gloss': (0.0, 0.5)},
    'carpet': {'fine': (0.4, 1.0), 'noise': (0.0, 0.5)},
    'weave': {'su': (20, 50), 'sv': (20, 50), 'check': (0.3, 0.7), 'noise': (0.0, 0.3)},
    'mosaic': {'su': (2, 9), 'sv': (2, 9), 'cell': (0.3, 0.8), 'hue': (0.1, 0.7), 'fine': (0, .2)},
    'waves': {'su': (4, 12), 'sv': (0.01, 0.01), 'stripe': (.5, 1), 'warp': (1, 4),
              'fine': (0, .2)},
    'books': {'su': (24, 45), 'sv': (0.01, 0.01), 'joint': (0.6, 1), 'gap': (.001, .003),
              'cell': (.4, .8), 'hue': (0.5, 1.0), 'gloss': (0.0, 0.4), 'fine': (0.0, 0.15)},
    'pile': {'su': (0.01, 0.01), 'sv': (25, 45), 'joint': (0.6, 1), 'gap': (.001, .003),
             'cell': (.4, .8), 'hue': (0.5, 1.0), 'gloss': (0.0, 0.4)},
    'art': {'su': (3, 9), 'sv': (3, 9), 'cell': (0.2, 0.6), 'hue': (0.3, 0.9), 'noise': (1, 2.5),
            'warp': (0.3, 3), 'stripe': (0.0, 0.5), 'gloss': (0.0, 0.3)},
    'off': {'noise': (0.0, 0.1), 'gloss': (0.6, 1.0), 'fall': (0.0, 0.4)},
    'show': {'su': (2, 6), 'sv': (2, 6), 'cell': (.2, .6), 'hue': (.4, .9), 'noise': (.8, 2),
             'warp': (.5, 3), 'glow': (0.3, 0.9), 'gloss': (0.3, 0.8)},
    'sky': {'noise': (0.3, 1.4), 'fine': (0.0, 0.4), 'fall': (0.2, 1.0), 'glow': (0.8, 2.2),
            'gloss': (0.0, 0.3)},
    'night': {'noise': (0.2, 1.0), 'fall': (0.0, 0.6), 'glow': (0.0, 0.1), 'gloss': (0.3, 1.0)},
    'folds': {'su': (9, 18), 'sv': (.01, .01), 'stripe': (.4, .9), 'warp': (.1, .4),
              'fine': (0, .2)},
    'glow': {'glow': (0.5, 1.6), 'fall': (0.0, 0.4)},
}
_NAMES = tuple(_PATTERNS)

# For each kind of surface: shares of patterns, then hue (low, high), saturation, brightness, the
# share of brown in it, and the least and greatest difference between its two colours.
_KINDS = {
    p.M_WALL: ({'plain': .12, 'skirted': .3, 'two tones': .08, 'plaster': .2, 'stripes': .1,
               'blotch': .08, 'bricks': .08, 'tiles': .05, 'waves': .04, 'mosaic': .02,
                'planks': .03}, (0, 1), (0, .45), (.45, .95), .25, (.03, .25)),
    p.M_CEILING: ({'plain': .55, 'plaster': .3, 'tiles': .1, 'planks': .05}, (0, 1), (0, .12),
                  (.7, 1), .2, (.03, .15)),
    p.M_FLOOR: ({'planks': .42, 'tiles': .22, 'carpet': .25, 'checks': .04, 'mosaic': .03,
                'blotch': .04}, (0, 1), (.05, .55), (.2, .8), .6, (.1, .45)),
    p.M_FABRIC: ({'carpet': .25, 'plain': .2, 'stripes': .14, 'checks': .08, 'plaid': .1,
                 'weave': .08, 'blotch': .08, 'waves': .07}, (0, 1), (.05, .8), (.15, .95), .15,
                 (.08, .6)),
    p.M_WOOD: ({'grain': .5, 'rings': .2, 'plain': .3}, (0, 1), (.05, .65), (.15, .95), .65,
               (.1, .4)),
    p.M_PLAIN: ({'plain': .85, 'blotch': .15}, (0, 1), (0, .5), (.1, .9), .2, (.05, .2)),
    p.M_THING: ({'plain': .35, 'stripes': .15, 'checks': .08, 'mosaic': .1, 'blotch': .16,
                'grain': .08, 'waves': .08}, (0, 1), (.1, .95), (.15, .95), .1, (.1, .7)),
    p.M_BOOKS: ({'books': 1.0}, (0, 1), (.2, .8), (.3, .8), .1, (.2, .5)),
    p.M_PILE: ({'pile': 1.0}, (0, 1), (.2, .8), (.3, .8), .1, (.2, .5)),
    p.M_ART: ({'art': .75, 'blotch': .15, 'mosaic': .1}, (0, 1), (.1, .9), (.2, .95), .1,
              (.3, .9)),
    p.M_SCREEN: ({'off': .5, 'show': .5}, (0, 1), (0, .5), (.02, .12), 0, (.02, .05)),
    p.M_SKY: ({'sky': .85, 'night': .15}, (.42, .66), (.02, .45), (.55, 1), 0, (.3, .7)),
    p.M_CURTAIN: ({'folds': .75, 'carpet': .1, 'checks': .15}, (0, 1), (0, .7), (.3, .95), .15,
                  (.1, .35)),
    p.M_RUG: ({'carpet': .25, 'stripes': .15, 'checks': .12, 'plaid': .18, 'mosaic': .15,
              'waves': .15}, (0, 1), (.1, .85), (.15, .85), .2, (.15, .7)),
    p.M_LAMP: ({'glow': 1.0}, (.05, .18), (.05, .45), (.75, 1), 0, (.05, .2)),
    p.M_DARK: ({'plain': 1.0}, (0, 1), (0, .2), (.03, .25), 0, (.02, .06)),
    p.M_LEAVES: ({'blotch': .6, 'mosaic': .4}, (.2, .42), (.35, .9), (.2, .7), 0, (.2, .6)),
    p.M_WHITE: ({'plain': .7, 'carpet': .15, 'stripes': .15}, (0, 1), (0, .15), (.6, 1), .2,
                (.03, .15)),
}


def hsv_to_rgb(hue, saturation, value):
    """Turn tensors of hue (any real, period 1), saturation and value into RGB, (..., 3)."""
    shift = torch.tensor([0.0, 2 / 3, 1 / 3], device=hue.device)
    wheel = ((hue[..., None] + shift).remainder(1.0) * 6 - 3).abs() - 1
    return value[..., None] * (1 + saturation[..., None] * (wheel.clamp(0, 1) - 1))


@lru_cache(maxsize=8)
def _tables(device):
    """Return the constants above as tensors: pattern ranges, kinds' shares, kinds' colours."""
    ranges = torch.zeros(len(_PATTERNS), len(_FIELDS), 2)
    for i, fields in enumerate(_PATTERNS.values()):
        for name, (low, high) in fields.items():
            ranges[i, _FIELDS.index(name)] = torch.tensor([low, high], dtype=torch.float32)
    shares = torch.zeros(len(_KINDS), len(_PATTERNS))
    colours = torch.zeros(len(_KINDS), 9)
    for kind, (patterns, hue, saturation, value, brown, contrast) in _KINDS.items():
        for name, share in patterns.items():
            shares[kind, _NAMES.index(name)] = share
        colours[kind] = torch.tensor([*hue, *saturation, *value, brown, *contrast])
    shares = (shares / shares.sum(1, keepdim=True)).cumsum(1)
    return ranges.to(device), shares.to(device), colours.to(device)


def draw_materials(kinds, dice):
    """
    Draw every material of every scene.

    :param kinds: list of M kinds.
    :return: (N, M, WIDTH): two linear RGB colours, the fields, a place in the noise atlas.
    """
    device = dice.device
    ranges, shares, colours = _tables(device)
    kind = torch.tensor(kinds, device=device)
    lot = dice.uniform('material.lot', len(kinds), 9 + len(_FIELDS))
    pattern = (lot[..., :1] > shares[kind]).sum(-1).clamp(max=len(_PATTERNS) - 1)
    spans = ranges[pattern]
    fields = spans[..., 0] + (spans[..., 1] - spans[..., 0]) * lot[..., 9:]
    look = colours[kind]
    hue = look[:, 0] + (look[:, 1] - look[:, 0]) * lot[..., 1]
    brown = lot[..., 2] < look[:, 6]
    hue = torch.where(brown, 0.04 + 0.09 * lot[..., 1], hue)
    saturation = look[:, 2] + (look[:, 3] - look[:, 2]) * lot[..., 3] ** 1.5
    value = look[:, 4] + (look[:, 5] - look[:, 4]) * lot[..., 4]
    step = look[:, 7] + (look[:, 8] - look[:, 7]) * lot[..., 5]
    other = torch.where(value > 0.55, value - step, value + step).clamp(0.02, 1.0)
    far_hue = torch.where(lot[..., 6] < 0.25, lot[..., 7], (lot[..., 7] - 0.5) * 0.08)
    first = hsv_to_rgb(hue, saturation, value)
    second = hsv_to_rgb(hue + far_hue, (saturation * (0.5 + lot[..., 8])).clamp(max=1), other)
    place = dice.uniform('material.place', len(kinds), 2)
    return torch.cat((first ** 2.2, second ** 2.2, fields, place), -1)


@lru_cache(maxsize=8)
def _atlas(device):
    """
    Return tileable noise (1, 3, size + 1, size + 1) within -1..1: clouds, fine noise, wood grain.

    Made on the CPU from the integer hash, so it is the same everywhere.
    """
    def white(rows, columns, salt):
        count = torch.arange(rows * columns) + salt * 0x10001
        return (mix(mix(count)).to(torch.float32) / 2.0 ** 31 - 1).reshape(1, 1, rows, columns)

    def smooth(rows, columns, salt):
        tile = functional.pad(white(rows, columns, salt), (2, 2, 2, 2), mode='circular')
        scale_y, scale_x = _ATLAS // rows, _ATLAS // columns
        big = functional.interpolate(tile, scale_factor=(scale_y, scale_x), mode='bicubic')
        return big[:, :, 2 * scale_y:2 * scale_y + _ATLAS, 2 * scale_x:2 * scale_x + _ATLAS]

    clouds = sum(smooth(n, n, n) * w for n,
                 w in ((4, 1.0), (8, 0.6), (16, 0.4), (32, 0.25), (64, .15)))
    fine = 0.6 * smooth(128, 128, 1) + 0.6 * white(_ATLAS, _ATLAS, 2)
    grain = smooth(64, 4, 3) + 0.7 * smooth(128, 8, 5) + 0.3 * smooth(16, 2, 6)
    atlas = torch.cat((clouds, fine, grain), 1).clamp(-2, 2)
    return functional.pad(atlas, (0, 1, 0, 1), mode='circular').contiguous().to(device)


@lru_cache(maxsize=8)
def _cells(device):
    """Return white noise (4096, 3) within -0.5..0.5, one row per cell of a pattern."""
    count = torch.arange(4096 * 3) + 0x5EED
    return (mix(mix(count)).to(torch.float32) / 2.0 ** 32 - 0.5).reshape(4096, 3).to(device)


def _noise(u, v):
    """Look up the atlas at (..., ) metres; returns clouds, fine noise and grain."""
    atlas = _atlas(u.device)
    x, y = u / _ATLAS_METRES, v / _ATLAS_METRES
    x, y = x - x.floor(), y - y.floor()
    grid = torch.stack((x, y), -1).reshape(1, -1, 1, 2) * 2 - 1
    picked = functional.grid_sample(atlas, grid, mode='bilinear', align_corners=True)
    return picked.reshape(3, *u.shape)


def surface_colour(material, u, v, fall, footprint):
    """
    Evaluate materials at points.

    :param material: (WIDTH, P) rows as of draw_materials, one column per point.
    :param u, v: (P,) metres along the surface; fall: (P,) height within the part, -1..1.
    :param footprint: (P,) metres of surface that a pixel covers.
    :return: linear albedo (3, P), gloss (P,), glow (P,).
    """
    m = {name: material[i] for name, i in _INDEX.items()}
    shift_u, shift_v = material[_OFFSET], material[_OFFSET + 1]
    clouds, fine, grain = _noise(u + 3 * shift_u, v + 3 * shift_v)
    fade = (1.4 - footprint * 30).clamp(0, 1)
    fade_fine = (1.3 - footprint * 70).clamp(0, 1)
    row = v * m['sv'] + shift_v
    row_index = row.floor()
    column = u * m['su'] + shift_u + m['shift'] * row_index + m['warp'] * clouds * 0.6
    column_index = column.floor()
    in_u, in_v = column - column_index, row - row_index
    stripe_u = _square(in_u, footprint * m['su'])
    stripe_v = _square(in_v, footprint * m['sv'])
    joint = torch.maximum(_joint(in_u, m['su'], m['gap'], footprint),
                          _joint(in_v, m['sv'], m['gap'], footprint)) * m['joint']
    number = (column_index.int() * 73 + row_index.int() * 179) & 4095
    jitter = _cells(u.device).index_select(0, number).T
    jitter = jitter * (1.5 - footprint * torch.maximum(m['su'], m['sv'])).clamp(0, 1)
    blend = (0.5 * m['stripe'] * (1 + stripe_u) + 0.5 * m['check'] * (1 + stripe_u * stripe_v)
             + m['noise'] * (0.4 * clouds) * fade + m['fine'] * 0.4 * fine * fade_fine
             + m['grain'] * 0.4 * grain * fade + m['cell'] * jitter[0]
             + m['fall'] * 0.5 * (1 - fall))
    # The lowest part of a wall in the other colour: skirting boards, panelling.
    low = ((2 * m['below'] - 1 - fall) / footprint.clamp(min=1e-3) + 0.5).clamp(0, 1)
    blend = (blend + joint + low * (m['below'] > 0)).clamp(0, 1)
    colour = material[0:3] + (material[3:6] - material[0:3]) * blend
    brightness = (1 + m['cell'] * jitter[1]) * (1 - 0.7 * joint)
    tint = 1 + 1.6 * m['hue'] * torch.stack((jitter[2], jitter[0], jitter[1]))
    return colour * brightness * tint.clamp(min=0.05), m['gloss'], m['glow']


def _square(phase, width):
    """Return a square wave of -1 and 1 over a phase 0..1, smoothed to a pixel's width (cells)."""
    wave = (phase - 0.5).abs() * 4 - 1
    soft = width * 4 + 0.02
    return (wave / soft).clamp(-1, 1) * (1.5 - width).clamp(0, 1)


def _joint(phase, scale, gap, footprint):
    """Return 1 in the joints at the ends of a cell of 1 / scale metres, smoothed to a pixel."""
    away = torch.minimum(phase, 1 - phase) / scale.clamp(min=1e-3)
    sharp = ((gap - away) / footprint.clamp(min=5e-4) + 0.5).clamp(0, 1)
    return sharp * (2 * gap / footprint.clamp(min=1e-4)).clamp(max=1) * (gap > 0)
