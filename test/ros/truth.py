# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A room of which everything is known, a camera in it, and readers of what the node publishes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
import torch

from mtan_perception.geometry import back_project
from mtan_perception.labels import NYUV2_13
from mtan_perception.synthetic import render
from mtan_perception.synthetic.camera import place_camera
from mtan_perception.synthetic.hashing import Dice
from mtan_perception.synthetic.rooms import plan_rooms

TRUTH = {'module': 'truth_node', 'env': {'PYTHONPATH': str(Path(__file__).parent)}}
# A room with furniture, a ceiling in view and flat walls; the node halves the camera's image.
SEED, CAMERA, OUTPUT = 9, (240, 320), (120, 160)
FLOOR, CEILING, WALL, OBJECTS = (
    NYUV2_13.names.index(name) for name in ('floor', 'ceiling', 'wall', 'objects'))
DATATYPES = {PointField.FLOAT32: 'f4', PointField.UINT8: 'u1'}


class Box(NamedTuple):
    """A box on the floor: where its middle is, how it is turned (radians) and its size, in m."""

    x: float
    y: float
    yaw: float
    width: float
    depth: float
    height: float

    def cast(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Return how far along rays (H, W, 3) from a point the box is, and the normal there.

        In units of the ray's length; infinite for a miss.
        """
        start, along = self._turned(origin), rays @ self._axes
        middle, reach = -start / along, np.abs(self._half / along)
        enter, leave = (middle - reach), (middle + reach).min(axis=-1)
        face, nearest = enter.argmax(axis=-1), enter.max(axis=-1)
        normal = -np.sign(along) * np.eye(3)[face] @ self._axes.T
        return np.where((nearest > 0) & (nearest < leave), nearest, np.inf), normal

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Return by how much the points (..., 3) lie outside, in m; 0 on the box's surface."""
        return self._beyond(points).max(axis=-1)

    def has_on_top(self, points: np.ndarray) -> np.ndarray:
        """Return which of the points (..., 3) are, to 1 mm, on its upper face and on no other."""
        x, y, z = np.moveaxis(self._beyond(points), -1, 0)
        return (np.maximum(x, y) < -1e-3) & (np.abs(z) < 1e-3)

    def _beyond(self, points):
        return np.abs(self._turned(points)) - self._half

    def _turned(self, points):
        return (points - (self.x, self.y, self.height / 2)) @ self._axes

    @property
    def _half(self):
        return np.array([self.width, self.depth, self.height]) / 2

    @property
    def _axes(self):
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


# In view: one too flat to be an obstacle, and one nearer than all the floor.
BOXES = (Box(-0.60, -0.80, 0.1, 0.20, 0.15, 0.015), Box(-0.95, -0.50, 0.4, 0.16, 0.12, 0.052),
         Box(-0.05, -0.60, -0.3, 0.14, 0.14, 0.10), Box(-1.50, -0.50, 1.1, 0.15, 0.20, 0.30),
         Box(-1.60, 0.05, 0.2, 0.40, 0.40, 0.50))


class Room(NamedTuple):
    """What is known of the room: the image, the truth of it, K, how the camera stands in it."""

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    intrinsics: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    half: np.ndarray
    height: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Turn points in the camera's frame into the room's: z up, 0 on the floor."""
        return points @ self.rotation + self.position


def known_room(size=CAMERA, seed=SEED, boxes=BOXES) -> Room:
    """Return the room, with the boxes in it, as an image of `size` (height, width) shows it."""
    frames, dice = render([seed], *size), Dice(torch.tensor([seed]))
    plan = plan_rooms(dice)
    camera = place_camera(plan, dice)
    room = Room(
        frames.rgb[0].permute(1, 2, 0).mul(255).byte().contiguous().numpy(),
        frames.label[0].numpy().astype(np.uint8), frames.depth[0, 0].numpy(),
        frames.normal[0].permute(1, 2, 0).contiguous().numpy(),
        frames.intrinsics[0].double().numpy(), camera.rotation[0].double().numpy(),
        camera.position[0].double().numpy(), plan.half[0].numpy(), float(plan.height[0]))
    for box in boxes:
        _put(box, room)
    return room


def _put(box: Box, room: Room) -> None:
    """Let the camera see a box: whatever of it is nearer than what is seen there already."""
    rays = np.moveaxis(back_project(np.ones_like(room.depth), room.intrinsics), 0, -1)
    rays = rays @ room.rotation
    depth, normal = box.cast(room.position, rays)
    seen = depth < room.depth
    room.image[seen], room.label[seen] = 128, OBJECTS
    room.depth[seen], room.normal[seen] = depth[seen], (normal @ room.rotation.T)[seen]


def camera_info_of(room: Room) -> CameraInfo:
    height, width = room.image.shape[:2]
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob')
    message.d, message.k = [0.0] * 5, room.intrinsics.ravel()
    message.p = np.hstack([room.intrinsics, np.zeros((3, 1))]).ravel()
    message.roi.width, message.roi.height = width, height
    return message


def start(robot, *arguments, env=None, **parameters):
    """Start the node on the truth of the room."""
    values = {'weights': 'room', 'input_height': OUTPUT[0], 'input_width': OUTPUT[1]}
    environment = TRUTH['env'] | (env or {})
    return robot.start(*arguments, module=TRUTH['module'], env=environment,
                       **values | parameters)


def read_cloud(message: PointCloud2) -> np.ndarray:
    """Read the points by the message's own description, as PCL and Nav2 do."""
    kind = np.dtype({
        'names': [field.name for field in message.fields],
        'formats': ['<' + DATATYPES[field.datatype] for field in message.fields],
        'offsets': [field.offset for field in message.fields], 'itemsize': message.point_step})
    assert message.row_step == message.point_step * message.width
    assert len(message.data) == message.row_step * message.height
    return np.frombuffer(message.data, kind).reshape(message.height, message.width)


def xyz(cloud: np.ndarray) -> np.ndarray:
    return np.stack([cloud[axis] for axis in 'xyz'], axis=-1).astype(float)


def pixels(points: np.ndarray, info: CameraInfo) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns, (N,) each, of the pixels that show the points (N, 3)."""
    u = np.rint(points[:, 0] / points[:, 2] * info.p[0] + info.p[2]).astype(int)
    v = np.rint(points[:, 1] / points[:, 2] * info.p[5] + info.p[6]).astype(int)
    return v, u


def voxels(points: np.ndarray) -> set[tuple[int, int, int]]:
    """Return in which cubes of 5 cm, the node's default, the points (N, 3) are."""
    # In the node's own float32: a point on the border of two must be in the same one.
    return set(map(tuple, np.floor(points.astype(np.float32) / np.float32(0.05)).astype(int)))


def read_image(message: Image) -> np.ndarray:
    kind, channels = {'mono8': ('u1', 1), 'rgb8': ('u1', 3), '32FC1': ('<f4', 1),
                      '32FC3': ('<f4', 3)}[message.encoding]
    values = np.frombuffer(message.data, kind)
    shape = (message.height, message.width, channels)
    return values.reshape(shape if channels > 1 else shape[:2])
