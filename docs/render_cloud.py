# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Draw the last cloud of a recorded ~/points from beside the camera: the pictures of navigation.md.

    ros2 bag record -e '^/mtan/points$' -o cloud   # a second of it is enough
    python docs/render_cloud.py cloud docs/images  # cloud_{colors,classes,normals}.png
"""

import argparse
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_typestore, Stores

from mtan_perception.cli.outputs import write_png
from mtan_perception.labels import read_label_set
from mtan_perception.visualization import color_normal

SIZE = (400, 520)
FOCAL = 370.0
# Where the drawing's eye is in the camera's frame (x right, y down, z forward), and what it is on.
EYE, TARGET = np.array([-1.0, -1.1, -0.9]), np.array([0.1, -0.1, 2.2])
BACKGROUND = (24, 26, 30)


def last_cloud(bag: Path, topic: str) -> np.ndarray:
    """Read the points (H, W) by the fields that the message itself names."""
    with AnyReader([bag], default_typestore=get_typestore(Stores.LATEST)) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        *_, (connection, _, raw) = reader.messages(connections=connections)
        message = reader.deserialize(raw, connection.msgtype)
    kinds = {7: '<f4', 2: 'u1'}
    return np.frombuffer(message.data, np.dtype({
        'names': [field.name for field in message.fields],
        'formats': [kinds[field.datatype] for field in message.fields],
        'offsets': [field.offset for field in message.fields],
        'itemsize': message.point_step})).reshape(message.height, message.width)


def draw(points: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Draw points (N, 3) in their colours (N, 3) as squares, the nearest ones on top."""
    forward = (TARGET - EYE) / np.linalg.norm(TARGET - EYE)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    seen = (points - EYE) @ np.stack([right, np.cross(forward, right), forward]).T
    order = np.argsort(-seen[:, 2])
    seen, colors = seen[order], colors[order]
    picture = np.full((*SIZE, 3), BACKGROUND, np.uint8)
    u = np.rint(seen[:, 0] / seen[:, 2] * FOCAL + SIZE[1] / 2).astype(int)
    v = np.rint(seen[:, 1] / seen[:, 2] * FOCAL + SIZE[0] / 2).astype(int)
    inside = (seen[:, 2] > 0.3) & (u >= 1) & (v >= 1) & (u < SIZE[1] - 1) & (v < SIZE[0] - 1)
    u, v, colors = u[inside], v[inside], colors[inside]
    # Far ones first over all places of a square, so that a near one covers it whole.
    for chunk in np.array_split(np.arange(len(u)), 200):
        for dv in (-1, 0, 1):
            for du in (-1, 0, 1):
                picture[v[chunk] + dv, u[chunk] + du] = colors[chunk]
    return picture


def main() -> None:
    """Draw the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n')[0])
    parser.add_argument('bag', type=Path)
    parser.add_argument('out', type=Path, help='folder')
    parser.add_argument('--topic', default='/mtan/points')
    parser.add_argument('--labels', default='nyuv2_13', help='label set, by name or file')
    args = parser.parse_args()
    cloud = last_cloud(args.bag, args.topic)
    cloud = cloud[np.isfinite(cloud['z'])]
    points = np.stack([cloud[axis] for axis in 'xyz'], axis=-1)
    normal = np.stack([cloud[f'normal_{axis}'] for axis in 'xyz'], axis=-1)
    palette = read_label_set(args.labels).palette
    packed = np.ascontiguousarray(cloud['rgb']).view('<u4')
    pictures = {
        'colors': np.stack([packed >> shift & 255 for shift in (16, 8, 0)], axis=-1),
        'classes': palette[cloud['label']], 'normals': color_normal(normal)}
    for name, colors in pictures.items():
        write_png(args.out / f'cloud_{name}.png', draw(points, colors))


if __name__ == '__main__':
    main()
