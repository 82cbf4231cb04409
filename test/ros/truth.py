# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A room of which everything is known, a camera in it, and readers of what the node publishes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
import torch

from mtan_perception.labels import NYUV2_13
from mtan_perception.synthetic import render
from mtan_perception.synthetic.camera import place_camera
from mtan_perception.synthetic.hashing import Dice
from mtan_perception.synthetic.rooms import plan_rooms

TRUTH = {'module': 'truth_node', 'env': {'PYTHONPATH': str(Path(__file__).parent)}}
# A room with furniture, a ceiling in view and flat walls; the node halves the camera's image.
SEED, CAMERA, OUTPUT = 9, (240, 320), (120, 160)
FLOOR, CEILING, WALL = (NYUV2_13.names.index(name) for name in ('floor', 'ceiling', 'wall'))
DATATYPES = {PointField.FLOAT32: 'f4', PointField.UINT8: 'u1'}


class Room(NamedTuple):
    """What is known of the room: the image, K, and how the camera stands in it."""

    image: np.ndarray
    intrinsics: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    half: np.ndarray
    height: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Turn points in the camera's frame into the room's: z up, 0 on the floor."""
        return points @ self.rotation + self.position


def known_room(size=CAMERA) -> Room:
    """Return the room as an image of `size` (height, width) shows it."""
    frames, dice = render([SEED], *size), Dice(torch.tensor([SEED]))
    plan = plan_rooms(dice)
    camera = place_camera(plan, dice)
    image = frames.rgb[0].permute(1, 2, 0).mul(255).byte().contiguous().numpy()
    return Room(image, frames.intrinsics[0].double().numpy(), camera.rotation[0].double().numpy(),
                camera.position[0].double().numpy(), plan.half[0].numpy(), float(plan.height[0]))


def camera_info_of(room: Room) -> CameraInfo:
    height, width = room.image.shape[:2]
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob')
    message.d, message.k = [0.0] * 5, room.intrinsics.ravel()
    message.p = np.hstack([room.intrinsics, np.zeros((3, 1))]).ravel()
    message.roi.width, message.roi.height = width, height
    return message


def start(robot, *arguments, env=None, **parameters):
    """Start the node on the truth of the room."""
    values = {'weights': f'room {SEED}', 'input_height': OUTPUT[0], 'input_width': OUTPUT[1]}
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


def read_image(message: Image) -> np.ndarray:
    kind, channels = {'mono8': ('u1', 1), 'rgb8': ('u1', 3), '32FC1': ('<f4', 1),
                      '32FC3': ('<f4', 3)}[message.encoding]
    values = np.frombuffer(message.data, kind)
    shape = (message.height, message.width, channels)
    return values.reshape(shape if channels > 1 else shape[:2])
