# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The whole package at work: camera_node -> mtan_node -> this process, over DDS.

Prints one live line, at the end a table, and writes a contact sheet.
"""

import argparse
from collections.abc import Callable
import os
from pathlib import Path
import signal
import sys
import threading
import time

import cv2
import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from mtan_perception.labels import NYUV2_13
from mtan_perception.model_card import DEFAULT_WEIGHTS, ModelCard, read_card
from mtan_perception.node.camera_sources import DEFAULT_RATE, synthetic_rate, synthetic_threads
from mtan_perception.node.child_process import (
    ChildProcess,
    free_domain_id,
    ros_environment,
    stop_all,
)
from mtan_perception.node.demo_monitor import Accuracy, Album, INPUT, Moment, Monitor, OUTPUTS
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.threads import environment_before, usable_cores
from mtan_perception.visualization import (
    color_depth,
    color_normal,
    contact_sheet,
    depth_range,
    overlay,
)

START_TIMEOUT = 120.0
"""How long the processes may take to the first output, in seconds: torch loads slowly at first."""
TICK = 1.0
SHEET_ROWS = 4
SHEET_WIDTH = 288
"""Width of one picture on the contact sheet, in pixels."""


class DemoError(RuntimeError):
    """The demo did not show what it is there to show; the message says why."""


def main(args: list[str] | None = None) -> int:
    """
    Run the demo until its time is over, Ctrl-C or SIGTERM.

    :returns: 0; 1 where a process died, an output did not come or the sheet cannot be written; 2
        for weights or a domain that cannot be used. The reason is on stderr.
    """
    options = _parse(args)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        card = read_card(options.weights)
        domain_id = _domain_id()
    except (OSError, ValueError) as error:
        print(f'demo: error: {error}', file=sys.stderr)
        return 2
    os.environ.update(ros_environment(domain_id))
    print(_banner(options, card, domain_id), flush=True)
    # The children first: they load while this process sets up its own end.
    children = []
    context = Context()
    try:
        children = _start_children(options)
        rclpy.init(context=context, domain_id=domain_id,
                   signal_handler_options=SignalHandlerOptions.NO)
        return Demo(options, card, children, context, stop).run()
    finally:
        stop_all(children)
        context.try_shutdown()


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='demo', description='A camera, the network and a monitor as three ROS 2 processes.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add('--source', default='synthetic', help='synthetic, a camera index or /dev/videoN, or the '
        'path of a video, an image or a folder of images')
    add('--duration', type=float, default=0.0, metavar='SECONDS',
        help='how long to run from the first output on; 0: until Ctrl-C')
    add('--weights', default='default' if DEFAULT_WEIGHTS.is_file() else 'random',
        help='weights file, default or random')
    add('--device', default='auto', help='auto, cpu or cuda')
    add('--rate', type=float, metavar='HZ', default=argparse.SUPPRESS,
        help='images a second (default: 10; synthetic: one for each core, at most 5)')
    add('--seed', type=int, default=0, help='number of the first synthetic room')
    add('--out', type=Path, default=Path('demo/contact_sheet.png'), help='the contact sheet')
    options = parser.parse_args(args)
    if options.duration < 0:
        parser.error(f'--duration {options.duration:g}: give seconds, or 0 for no end')
    if 'rate' not in options:
        options.rate = synthetic_rate() if options.source == 'synthetic' else DEFAULT_RATE
    return options


def _domain_id() -> int:
    """Return the user's ROS_DOMAIN_ID, or a free one: robots nearby see nothing of the demo."""
    own = os.environ.get('ROS_DOMAIN_ID')
    if not own:
        return free_domain_id()
    if not own.isdecimal():
        raise ValueError(f"ROS_DOMAIN_ID is '{own}'; set a number from 0 to 101, or unset it")
    return int(own)


def _tasks(card: ModelCard) -> tuple[str, ...]:
    return tuple(task for task in card.tasks if task in OUTPUTS)


def _banner(options: argparse.Namespace, card: ModelCard, domain_id: int) -> str:
    lines = [
        'mtan_perception demo: three processes, one ROS 2 graph',
        f"  camera_node  source '{options.source}', {options.rate:g} Hz -> /camera/image_raw",
        f"  mtan_node    weights '{options.weights}' ({card.backbone}) -> "
        + ' '.join(f'/mtan/{OUTPUTS[task]}' for task in _tasks(card)),
        '  monitor      this process',
        f'  Others see it with ROS_DOMAIN_ID={domain_id} '
        'ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST']
    if options.weights == 'random':
        lines.append("  The weights are 'random': the network is untrained and its outputs mean "
                     'nothing yet.')
    end = (f'{options.duration:g} s after the first output' if options.duration
           else 'with Ctrl-C')
    lines.append(f'  Ends {end}, then writes {options.out}')
    return '\n'.join(lines)


def _start_children(options: argparse.Namespace) -> list[ChildProcess]:
    """
    Start camera_node and mtan_node, each with its share of the processor.

    OpenMP's threads wait for each other by spinning: when they are more than there are cores for,
    a frame takes several times as long.
    """
    package = 'mtan_perception.node'
    network_threads = max(1, usable_cores() - synthetic_threads())
    return [
        ChildProcess(
            f'{package}.camera_node', '--ros-args', '-r', '__ns:=/camera',
            '-p', f'source:={_yaml(options.source)}', '-p', f'rate:={options.rate}',
            '-p', f'seed:={options.seed}'),
        ChildProcess(
            f'{package}.mtan_node', '--ros-args', '-r', 'image:=/camera/image_raw',
            '-r', 'camera_info:=/camera/camera_info',
            '-p', f'weights:={_yaml(options.weights)}', '-p', f'device:={options.device}',
            env={'OMP_NUM_THREADS': environment_before().get(
                'OMP_NUM_THREADS', str(network_threads))}),
    ]


def _yaml(text: str) -> str:
    """Quote a text for -p, where it is read as YAML: a path may hold a colon or be a number."""
    return "'" + text.replace("'", "''") + "'"


class Demo:
    """Watches the graph, talks about it, and sums up."""

    def __init__(self, options: argparse.Namespace, card: ModelCard,
                 children: list[ChildProcess], context: Context, stop: threading.Event):
        """Subscribe to everything; `stop` ends the demo early."""
        self._options, self._card, self._children, self._stop = options, card, children, stop
        self._tasks = _tasks(card)
        with_truth = options.source == 'synthetic'
        self._monitor = Monitor(self._tasks, with_truth, context=context)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._monitor)
        # Another label set's ids say nothing about the rooms' 13 classes.
        comparable = [task for task in self._tasks if task != SEGMENTATION
                      or (card.labels is not None and card.labels.name == NYUV2_13.name)]
        self._accuracy = Accuracy(
            tuple(comparable) if with_truth else (), card.tasks.get(SEGMENTATION, 0))
        self._album = Album(SHEET_ROWS)
        self._live = LiveLine()

    def run(self) -> int:
        """
        Watch, then write the table and the contact sheet.

        :returns: 0, or 1 where a process died or an output is missing.
        """
        spinner = threading.Thread(target=self._spin, daemon=True)
        spinner.start()
        failure = None
        try:
            self._watch()
        except DemoError as error:
            failure = str(error)
        self._live.end()
        stop_all(self._children)
        self._executor.shutdown()
        spinner.join(2.0)
        if failure is None or any(map(self._monitor.received, self._tasks)):
            print(self._table(), flush=True)
            try:
                self._write_sheet()
            except (OSError, cv2.error) as error:
                failure = failure or f'the contact sheet cannot be written: {error}; choose --out'
        if failure is not None:
            print(f'demo: error: {failure}', file=sys.stderr, flush=True)
        return int(failure is not None)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _watch(self) -> None:
        start, first_output = time.monotonic(), None
        while not self._stop.wait(self._until_next(first_output)):
            now = time.monotonic()
            self._check_children()
            missing = [task for task in self._tasks if not self._monitor.received(task)]
            if first_output is None and not missing:
                first_output = now
            if first_output is None and now - start > START_TIMEOUT:
                raise DemoError(
                    f"no {' or '.join(missing)} in {START_TIMEOUT:g} s\n{self._logs()}")
            self._look()
            self._live.show(self._line(now - start, first_output is not None))
            duration = self._options.duration
            if duration and first_output is not None and now - first_output >= duration:
                return

    def _until_next(self, first_output: float | None) -> float:
        """Return the seconds to the next tick, which is not later than the end."""
        duration = self._options.duration
        if not duration or first_output is None:
            return TICK
        return min(TICK, max(0.0, first_output + duration - time.monotonic()))

    def _check_children(self) -> None:
        for child in self._children:
            failure = child.failure()
            if failure is not None:
                raise DemoError(failure)

    def _logs(self) -> str:
        return '\n'.join(f'last lines of {child.name}:\n{child.last_lines()}'
                         for child in self._children)

    def _look(self) -> None:
        moment = self._monitor.take_moment()
        if moment is not None:
            self._album.offer(moment)
            if moment.truth:
                self._accuracy.update(moment)

    def _line(self, elapsed: float, running: bool) -> str:
        streams = self._monitor.streams
        received = f'{elapsed:4.0f} s  in {streams[INPUT].recent_rate():4.1f} Hz'
        if not running:
            trouble = next((line for child in self._children for line in reversed(child.lines)
                            if '[ERROR]' in line), '')
            return f'{received}  waiting for the first output' + (trouble and f': {trouble}')
        rate = min(streams[task].recent_rate() for task in self._tasks)
        latency = max(streams[task].recent_latency() for task in self._tasks)
        parts = [f'{received}  out {rate:4.1f} Hz  latency {1000 * latency:4.0f} ms']
        return '  '.join(parts + list(self._accuracy.summary().values()))

    def _table(self) -> str:
        accuracy = self._accuracy.summary()
        lines = [f"{'topic':34} {'frames':>6} {'rate':>8} {'latency: median':>16} {'95 %':>9}  "
                 'accuracy']
        topics = {INPUT: '/camera/image_raw'} | {t: f'/mtan/{OUTPUTS[t]}' for t in self._tasks}
        for name, topic in topics.items():
            stream = self._monitor.streams[name]
            latency = ['-', '-']
            if stream.latencies:
                latency = [f'{1000 * seconds:.0f} ms'
                           for seconds in np.percentile(stream.latencies, (50, 95))]
            lines.append(
                f'{topic:34} {len(stream.times):6} {stream.rate():5.1f} Hz '
                f"{latency[0]:>16} {latency[1]:>9}  {accuracy.get(name, '-')}")
        if accuracy:
            lines.append(f'accuracy: against the exact truth of {self._accuracy.count} frames'
                         + (" (weights 'random': untrained)"
                            if self._options.weights == 'random' else ''))
        return '\n'.join(lines)

    def _write_sheet(self) -> None:
        moments = self._album.moments()
        if not moments:
            print('no contact sheet: not one frame came with all its outputs', flush=True)
            return
        labels = self._card.labels
        palette = labels.palette if labels else None
        sheet = contact_sheet([sheet_row(moment, palette) for moment in moments], labels)
        out = self._options.out
        out.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(out), sheet[..., ::-1]):
            raise OSError(str(out))
        print(f'contact sheet: {out}', flush=True)


def sheet_row(moment: Moment, palette: np.ndarray | None) -> list[tuple[str, np.ndarray]]:
    """
    Return captions and pictures of one moment: the input, then each output, its truth beside it.

    :param palette: class colours of the output, uint8, 256×3; None where it has no segmentation.
    """
    image = _shrink(moment.image)
    row = [('input', image)]
    depth = moment.truth.get(DEPTH, moment.output.get(DEPTH))
    near, far = (0.0, 0.0) if depth is None else depth_range(depth)
    painters: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
        SEGMENTATION: ('segmentation', lambda mask, colors: _overlay(image, mask, colors)),
        DEPTH: (f'depth {near:.1f}-{far:.1f} m', lambda depth, _: color_depth(depth, near, far)),
        NORMAL: ('normals', lambda normal, _: color_normal(normal)),
    }
    for task, (name, paint) in painters.items():
        if task in moment.output:
            row.append((name, _shrink(paint(moment.output[task], palette))))
        if task in moment.truth:
            row.append((f'{name}: truth', _shrink(paint(moment.truth[task], NYUV2_13.palette))))
    return row


def _overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    size = (image.shape[1], image.shape[0])
    return overlay(image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), palette, 0.6)


def _shrink(image: np.ndarray) -> np.ndarray:
    if image.shape[1] <= SHEET_WIDTH:
        return image
    height = max(1, round(image.shape[0] * SHEET_WIDTH / image.shape[1]))
    return cv2.resize(image, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA)


class LiveLine:
    """One line that is written anew on a terminal; elsewhere a line every two seconds."""

    def __init__(self):
        """Start with nothing shown."""
        self._terminal = sys.stdout.isatty()
        self._last = 0.0

    def show(self, text: str) -> None:
        """Show the newest state."""
        if self._terminal:
            width = os.get_terminal_size().columns
            # Cut to the width: a line that wraps cannot be overwritten.
            print(f'\r\x1b[K{text[:width - 1]}', end='', flush=True)
        elif time.monotonic() - self._last >= 2 * TICK - 0.1:
            self._last = time.monotonic()
            print(text, flush=True)

    def end(self) -> None:
        """Leave the last state standing."""
        if self._terminal:
            print(flush=True)


if __name__ == '__main__':
    sys.exit(main())
