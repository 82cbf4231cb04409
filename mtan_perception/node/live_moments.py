# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Frames of a running graph with all outputs and their truth, for ``mtan evaluate --live``."""

from collections.abc import Iterator
import os
import threading
import time

import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from mtan_perception.labels import NYUV2_13
from mtan_perception.node.demo_monitor import INPUT, LABELS, Moment, Monitor, OUTPUTS
from mtan_perception.tasks import SEGMENTATION

_POLL = 0.05
_START_CAMERA = ('start camera_node with source synthetic in the namespace /camera (--ros-args -r '
                 '__ns:=/camera)')


def live_moments(tasks: tuple[str, ...], seconds: float, limit: int | None = None,
                 patience: float = 30.0) -> Iterator[Moment]:
    """
    Yield moments of `tasks`, each once, for `seconds` from the first one on or up to `limit`.

    The topics are those of the demo: /camera/image_raw, /camera/truth/*, /mtan/*. While one moment
    is worked on, others may be missed.

    :raises ValueError: naming what did not come, if there is no moment in `patience` seconds; or
        the node's classes, if they are not those of the truth.
    """
    context = Context()
    # Ctrl-C stays Python's KeyboardInterrupt.
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    monitor = Monitor(tasks, True, context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(monitor)
    spinner = threading.Thread(target=_spin, args=(executor,), daemon=True)
    spinner.start()
    try:
        yield from _moments(monitor, seconds, limit, patience)
    finally:
        executor.shutdown()
        spinner.join(2.0)
        monitor.destroy_node()
        context.try_shutdown()


def _moments(monitor: Monitor, seconds: float, limit: int | None,
             patience: float) -> Iterator[Moment]:
    end, count = None, 0
    last = time.monotonic()
    while count != limit and (end is None or time.monotonic() < end):
        moment = monitor.take_moment() if _comparable(monitor) else None
        if moment is None:
            if time.monotonic() - last > patience and end is None:
                raise ValueError(_complaint(monitor, patience))
            time.sleep(_POLL)
            continue
        if end is None:
            end = time.monotonic() + seconds
        count += 1
        yield moment


def _comparable(monitor: Monitor) -> bool:
    """Return whether the outputs can be judged, once the node has told its classes."""
    if SEGMENTATION not in monitor.tasks or monitor.class_names == NYUV2_13.names:
        return True
    if monitor.class_names is None:
        return False
    others = [task for task in monitor.tasks if task != SEGMENTATION]
    raise ValueError(
        f'/mtan/{LABELS}: the node tells apart {", ".join(monitor.class_names)}, the truth the '
        f'{len(NYUV2_13.names)} classes of {NYUV2_13.name}; '
        + (f'leave them out with --tasks {",".join(others)}' if others else
           'start mtan_node with weights of those classes'))


def _complaint(monitor: Monitor, patience: float) -> str:
    start = (f'no frame with all outputs and their truth in {patience:g} s on ROS_DOMAIN_ID '
             f"{os.environ.get('ROS_DOMAIN_ID', '0')}: ")
    if not monitor.received(INPUT):
        return start + f'nothing on /camera/image_raw; {_START_CAMERA}'
    silent = [task for task in monitor.tasks if not monitor.received(task)]
    if silent:
        topics = ', '.join(f'/mtan/{OUTPUTS[task]}' for task in silent)
        return start + f'nothing on {topics}; start mtan_node, or leave the task out with --tasks'
    if not _comparable(monitor):
        return start + f'nothing on /mtan/{LABELS}; start the mtan_node of this release'
    return start + f'nothing on /camera/truth/* with the stamps of the outputs; {_START_CAMERA}'


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass  # this is how it ends
