# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Measure message to message, through the real graph.

Images go to mtan_node and, in turn, to a relay that publishes the same messages without any work.
What is left of the node's time without its engine's, over the relay's, is the node's own cost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
import os
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mtan_perception.inference import Prediction
from mtan_perception.labels import NYUV2_13
from mtan_perception.node.benchmark.client import Client
from mtan_perception.node.benchmark.cost import NodeCost, table
from mtan_perception.node.benchmark.relay import OUTPUT_TYPES, RELAY, save_answer
from mtan_perception.node.child_process import (
    ChildProcess,
    free_domain_id,
    ros_environment,
    stop_all,
)
from mtan_perception.node.cloud_outputs import obstacles_message, points_message
from mtan_perception.node.image_codec import encode_image
from mtan_perception.node.parameters import default_settings
from mtan_perception.synthetic import Frames, render

ENCODING = 'bgr8'
NODE, WEIGHTS = 'mtan', 'default'
ONE, ALL = ('segmentation/mask',), tuple(OUTPUT_TYPES)
WARM_UP = 5, 3.0
"""At least so many answers, and seconds, before any counts: engines build models meanwhile."""
MAX_SECONDS = 15.0
"""What one size and set of outputs is measured for, at most, where frames are slow."""
_MIN_FRAMES = 3
_STARTS = 3
"""Of the processes: on which cores the scheduler puts their threads differs between starts."""
_CLOUD_RUNS = 25


class Shot:
    """An image of a room as messages, to be sent again and again."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Render the room in `size`, (height, width) in pixels."""
        frames = render([0], *size)
        self.size = size
        self.image: Image = encode_image(_photograph(frames)[..., ::-1], ENCODING, Header())
        self.camera_info = CameraInfo(height=size[0], width=size[1],
                                      k=frames.intrinsics[0].double().numpy().ravel())


def _photograph(frames: Frames) -> np.ndarray:
    """Return the first frame's picture, (H, W, 3) uint8 RGB."""
    return (255 * frames.rgb[0]).round().byte().permute(1, 2, 0).contiguous().numpy()


def run_benchmark(sizes: Sequence[tuple[int, int]], frames: int, parameters: Mapping[str, str],
                  say: Callable[[str], None]) -> dict[str, Any]:
    """
    Measure, print the table, and return the figures for JSON.

    :param sizes: of the images, (height, width) in pixels.
    :param frames, parameters, say: see `measure_node`.
    """
    shots = [Shot(size) for size in sizes]
    clouds = time_clouds()
    costs = measure_node(shots, frames, parameters, say)
    print(table(costs, clouds))
    return {'weights': WEIGHTS, 'rmw': rclpy.get_rmw_implementation_identifier(),
            'ros_distro': os.environ.get('ROS_DISTRO', ''), 'load': os.getloadavg()[0],
            'input_sha256': {f'{shot.size[0]}x{shot.size[1]}': sha256(
                shot.image.data).hexdigest() for shot in shots},
            'costs': [cost.to_json() for cost in costs], 'cloud_seconds': clouds}


def measure_node(shots: Sequence[Shot], frames: int, parameters: Mapping[str, str],
                 say: Callable[[str], None]) -> list[NodeCost]:
    """
    Return the costs for each image, with one and then with every output subscribed to.

    :param frames: to measure in each case, of several starts of the processes where they are many;
        fewer where they take longer than `MAX_SECONDS`.
    :param parameters: of mtan_node, by name.
    :param say: is told what is being done.
    :raises NodeBenchmarkError: if a process does not start or does not answer.
    """
    starts = min(_STARTS, max(1, frames // _MIN_FRAMES))
    costs = [NodeCost(shot.size, ENCODING, outputs) for outputs in (ONE, ALL) for shot in shots]
    for start in range(starts):
        say(f'start {start + 1} of {starts}:')
        _measure_start(shots, costs, -(-frames // starts), MAX_SECONDS / starts, parameters, say)
    return costs


def _measure_start(shots: Sequence[Shot], costs: Sequence[NodeCost], frames: int, seconds: float,
                   parameters: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Add frames of one start of the processes to the costs."""
    domain_id = free_domain_id()
    children: list[ChildProcess] = []
    context = Context()
    with _environment(ros_environment(domain_id)), tempfile.TemporaryDirectory() as folder:
        rclpy.init(context=context, domain_id=domain_id,
                   signal_handler_options=SignalHandlerOptions.NO)
        try:
            say('starting mtan_node ...')
            children.append(_start('mtan_node', NODE, *(
                word for key, value in {'weights': WEIGHTS, **parameters}.items()
                for word in ('-p', f'{key}:={value}'))))
            _save_answers(shots, Client(NODE, children[0], context), Path(folder))
            say('starting the relay ...')
            children.append(_start('benchmark.relay', RELAY, '--', folder))
            clients = [Client(name, child, context)
                       for name, child in zip((NODE, RELAY), children, strict=True)]
            for cost in costs:
                shot = next(shot for shot in shots if shot.size == cost.size)
                _compare(*clients, shot, cost, frames, seconds, say)
        finally:
            stop_all(children)
            context.try_shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while, for this process and those that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(module: str, name: str, *arguments: str) -> ChildProcess:
    """Start a node on topics under its name; it logs what the stages of each frame took."""
    return ChildProcess(
        f'mtan_perception.node.{module}', '--ros-args',
        '-r', f'image:=/{name}/image', '-r', f'camera_info:=/{name}/camera_info',
        '--log-level', f'{name}:=debug', *arguments)


def _save_answers(shots: Sequence[Shot], client: Client, folder: Path) -> None:
    """Leave in the folder what the node answers, for the relay to repeat."""
    client.listen(ALL)
    for shot in shots:
        client.warm_up(shot.image, shot.camera_info, answers=1)
        save_answer(folder, shot.size, client.answer)
    client.close()  # Its subscriptions must be gone where only one output is measured.


def _compare(node: Client, relay: Client, shot: Shot, cost: NodeCost, frames: int,
             seconds: float, say: Callable[[str], None]) -> None:
    """Ask the two in turn, for so many frames or seconds."""
    say(f'{shot.size[1]}x{shot.size[0]}, {len(cost.outputs)} output(s) ...')
    for client, warm_up in ((node, WARM_UP), (relay, WARM_UP[:1])):
        client.listen(cost.outputs)
        client.warm_up(shot.image, shot.camera_info, *warm_up)
    asked, end = [], time.monotonic() + seconds
    while len(asked) < frames and (time.monotonic() < end or len(asked) < _MIN_FRAMES):
        taken = node.ask(shot.image, shot.camera_info)
        asked.append((node.stamp, taken, relay.ask(shot.image, shot.camera_info)))
    cost.answer_bytes = sum(
        len(message.data) for message in node.answer.values() if hasattr(message, 'data'))
    stages = node.stages([stamp for stamp, *_ in asked])
    for (_, *taken), parts in zip(asked, stages, strict=True):
        cost.add(*taken, parts)


def time_clouds(height: int = 288, width: int = 384) -> dict[str, list[float]]:
    """
    Return the processor seconds of each run that fills a cloud of a rendered room, by its name.

    What counts is the call that turns a prediction into a message, on whatever threads.
    """
    frames = render([0], height, width)
    label = frames.label[0].byte().numpy()
    prediction = Prediction(
        _photograph(frames), 1.0, label, np.full_like(label, 255), frames.depth[0, 0].numpy(),
        frames.normal[0].permute(1, 2, 0).contiguous().numpy())
    arguments = (prediction, frames.intrinsics[0].numpy(), default_settings(), NYUV2_13.names,
                 Header())
    calls = {'points': lambda: points_message(*arguments),
             'obstacles': lambda: obstacles_message(*arguments, None, None)}
    seconds: dict[str, list[float]] = {}
    for name, call in calls.items():
        key = f'{name} of {height}x{width} filled'
        call()
        for _ in range(_CLOUD_RUNS):
            start = time.process_time()
            call()
            seconds.setdefault(key, []).append(time.process_time() - start)
    return seconds
