# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Parts: boxes, upright cylinders and ellipsoids with a label and a material, for all scenes at once.

A part that a scene does not have is marked absent; only at the end are absent ones squeezed out.
"""

from typing import NamedTuple

import torch

BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS = range(7)
PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(7, 13)

BOX, CYLINDER, ELLIPSOID = range(3)

# What a surface is made of; synthetic.materials turns each into colours and patterns.
(M_WALL, M_CEILING, M_FLOOR, M_FABRIC, M_WOOD, M_PLAIN, M_THING, M_BOOKS, M_PILE, M_ART, M_SCREEN,
 M_SKY, M_CURTAIN, M_RUG, M_LAMP, M_DARK, M_LEAVES, M_WHITE) = range(18)


class Pose(NamedTuple):
    """Where copies of a piece stand: position, yaw in radians, presence; each (N, K, 1)."""

    x: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    yaw: torch.Tensor
    present: torch.Tensor


class Solids(NamedTuple):
    """
    Convex solids of one shape, padded to one number per scene.

    `centre` (N, P, 3); `rotation` (N, P, 3, 3), its columns the solid's axes in the world; `half`
    (N, P, 3) half sizes; `label`, `material` (N, P) int64; `present`, `casts` (N, P) bool.
    """

    centre: torch.Tensor
    rotation: torch.Tensor
    half: torch.Tensor
    label: torch.Tensor
    material: torch.Tensor
    present: torch.Tensor
    casts: torch.Tensor


class Parts:
    """Collects the parts of all models, by shape."""

    def __init__(self, dice):
        self.dice = dice
        self.kinds = []  # kind of each material, in order of its number
        self._parts = {BOX: [], CYLINDER: [], ELLIPSOID: []}

    def material(self, kind, count=1):
        """Return numbers (count,) of new materials of one kind."""
        first = len(self.kinds)
        self.kinds += [kind] * count
        return torch.arange(first, first + count, device=self.dice.device)

    def add(self, shape, label, material, pose, centre, half, present=True, tilt=0.0, lean=0.0,
            spin=0.0, casts=True):
        """
        Add parts.

        :param material: numbers (K,), (K, M) or (N, K, M).
        :param centre: x, y, z in the piece's frame; half: half sizes; numbers or (N, K, M).
        :param tilt: rotation about the part's x axis; lean: about y; spin: about z; radians.
        :param casts: whether the part throws a shadow.
        """
        x, y, z = centre
        c, s = torch.cos(pose.yaw), torch.sin(pose.yaw)
        values = (pose.x + c * x - s * y, pose.y + s * x + c * y, pose.z + z, *half,
                  tilt, lean, pose.yaw + spin)
        present = pose.present & present
        shapes = [v.shape for v in (present, *values) if isinstance(v, torch.Tensor)]
        size = [max(sizes) for sizes in zip(*shapes, strict=True)]
        rows = c.new_empty(*size, len(values))
        for i, value in enumerate(values):
            rows[..., i] = value
        material = material[:, None] if material.dim() == 1 else material
        self._parts[shape].append((
            rows.flatten(1, 2), present.expand(size).flatten(1),
            material.expand(size).flatten(1), label, casts))

    def solids(self, shape):
        """Return the Solids of one shape, absent ones squeezed out as far as the batch allows."""
        rows, present, material, label, casts = zip(*self._parts[shape], strict=True)
        count = torch.tensor([m.shape[1] for m in material])
        label, casts = (torch.tensor(v).repeat_interleave(count).to(self.dice.device)
                        for v in (label, casts))
        rows, present, material = (torch.cat(v, 1) for v in (rows, present, material))
        present = present & (rows[..., 3:6] > 1e-4).all(-1)
        count = max(1, int(present.sum(1).max()))
        order = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True)
        order = order[:, :count]
        rows = rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2]))
        return Solids(rows[..., :3], _rotation(*rows[..., 6:].unbind(-1)), rows[..., 3:6],
                      label[order], material.gather(1, order), present.gather(1, order),
                      casts[order])


def _rotation(tilt, lean, yaw):
    """Return Rz(yaw) Ry(lean) Rx(tilt), (..., 3, 3)."""
    cx, sx = torch.cos(tilt), torch.sin(tilt)
    cy, sy = torch.cos(lean), torch.sin(lean)
    cz, sz = torch.cos(yaw), torch.sin(yaw)
    return torch.stack((
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx), -1).unflatten(-1, (3, 3))
