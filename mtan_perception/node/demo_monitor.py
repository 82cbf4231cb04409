# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the demo sees: rates, latency, accuracy against the truth, and moments for its picture."""

from collections import OrderedDict
from dataclasses import dataclass, field
import json
import threading
import time

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from mtan_perception.metrics import DepthMetrics, NormalMetrics, SegmentationMetrics
from mtan_perception.node.image_codec import decode_image
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

OUTPUTS = {SEGMENTATION: 'segmentation/mask', DEPTH: 'depth/image_rect', NORMAL: 'normal/image'}
TRUTHS = {SEGMENTATION: 'truth/mask', DEPTH: 'truth/depth', NORMAL: 'truth/normal'}
LABELS = 'segmentation/labels'
INPUT = 'input'

# Frames kept for outputs that are yet to come; the network answers within a few.
_PENDING = 40
_RATE_WINDOW = 5.0


@dataclass(frozen=True)
class Moment:
    """
    All that belongs to one stamp.

    image (H, W, 3) uint8 RGB; output and truth by task: (h, w) uint8 class ids, (h, w) float32
    metres, (h, w, 3) float32 unit vectors, the truth brought to the output's size.
    """

    image: np.ndarray
    output: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]


@dataclass
class Stream:
    """When a topic's messages came, and how long after their stamp; in seconds."""

    times: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Return the rate in Hz over all messages; 0 with fewer than two."""
        if len(self.times) < 2:
            return 0.0
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])

    def recent_rate(self) -> float:
        """Return the rate in Hz over the last seconds; it falls to 0 when the messages stop."""
        if not self.times:
            return 0.0
        now = time.monotonic()
        span = min(_RATE_WINDOW, max(now - self.times[0], 0.5))
        return sum(t > now - span for t in self.times[-1000:]) / span

    def recent_latency(self) -> float:
        """Return the median of the last latencies; NaN without any."""
        return float(np.median(self.latencies[-10:])) if self.latencies else float('nan')


class Monitor(Node):
    """
    Subscribes to the camera, the outputs and the truth, and matches them by stamp.

    The callbacks only note and keep; decoding is left to whoever calls `take_moment`, so that
    what is measured here is not what slows it down.
    """

    def __init__(self, tasks: tuple[str, ...], with_truth: bool, **kwargs):
        """
        Subscribe.

        :param tasks: those whose outputs to expect.
        :param with_truth: whether the camera publishes truth/*.
        """
        super().__init__('demo', **kwargs)
        self.tasks = tasks
        self.streams = {name: Stream() for name in (INPUT, *tasks)}
        self.class_names: tuple[str, ...] | None = None
        """Of the segmentation; None until the node has told them."""
        self._truths = tasks if with_truth else ()
        self._lock = threading.Lock()
        self._pending: OrderedDict[int, dict[str, Image]] = OrderedDict()
        self._complete: dict[str, Image] | None = None
        topics = {INPUT: 'camera/image_raw'}
        topics |= {task: f'mtan/{OUTPUTS[task]}' for task in tasks}
        topics |= {f'truth {task}': f'camera/{TRUTHS[task]}' for task in self._truths}
        self._wanted = set(topics)
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        for name, topic in topics.items():
            self.create_subscription(
                Image, topic, lambda message, name=name: self._on_message(name, message), qos)
        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, f'mtan/{LABELS}', self._on_labels, latched)

    def _on_labels(self, message: String) -> None:
        self.class_names = tuple(
            entry['class_name'] for entry in json.loads(message.data)['class_map'])

    def _on_message(self, name: str, message: Image) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        with self._lock:
            if name in self.streams:
                self.streams[name].times.append(time.monotonic())
                self.streams[name].latencies.append(
                    (self.get_clock().now().nanoseconds - stamp) / 1e9)
            parts = self._pending.setdefault(stamp, {})
            parts[name] = message
            if parts.keys() == self._wanted:
                self._complete = self._pending.pop(stamp)
            while len(self._pending) > _PENDING:
                self._pending.popitem(last=False)

    def received(self, task: str) -> int:
        """Return how many outputs of a task have come."""
        return len(self.streams[task].times)

    def take_moment(self) -> Moment | None:
        """Return the newest frame of which everything has come, once; None without a new one."""
        with self._lock:
            parts, self._complete = self._complete, None
        if parts is None:
            return None
        output = {task: to_array(parts[task]) for task in self.tasks}
        truth = {task: _resize(to_array(parts[f'truth {task}']), output[task].shape)
                 for task in self._truths}
        return Moment(decode_image(parts[INPUT]), output, truth)


class Accuracy:
    """The figures of all moments that it has been shown."""

    def __init__(self, tasks: tuple[str, ...], num_classes: int):
        """
        Start with none.

        :param tasks: those that can be compared with the truth.
        :param num_classes: of the segmentation.
        """
        metrics = {SEGMENTATION: SegmentationMetrics(num_classes), DEPTH: DepthMetrics(),
                   NORMAL: NormalMetrics()}
        self._metrics = {task: metrics[task] for task in tasks}
        self.count = 0

    def update(self, moment: Moment) -> None:
        """Compare a moment's outputs with its truth."""
        for task, metrics in self._metrics.items():
            metrics.update(moment.output[task], moment.truth[task])
        self.count += 1

    def summary(self) -> dict[str, str]:
        """Return one phrase by task, none before the first moment."""
        if not self.count:
            return {}
        results = {task: metrics.result() for task, metrics in self._metrics.items()}
        write = {
            SEGMENTATION: lambda r: f"mIoU {100 * r['miou']:.1f} %",
            DEPTH: lambda r: f"depth error {r['abs']:.2f} m ({100 * r['rel']:.0f} %)",
            NORMAL: lambda r: f"normals off by {r['mean']:.1f} deg",
        }
        return {task: write[task](result) for task, result in results.items()}


class Album:
    """Keeps a few moments, evenly spread over a time whose length nobody knows in advance."""

    def __init__(self, size: int):
        """Start empty; at the end there are up to `size` moments."""
        self._size = size
        self._kept: list[Moment] = []
        self._step = 1
        self._offered = 0

    def offer(self, moment: Moment) -> None:
        """Keep every step-th moment; when twice too many are kept, every other one goes."""
        if self._offered % self._step == 0:
            self._kept.append(moment)
            if len(self._kept) > 2 * self._size:
                self._kept = self._kept[::2]
                self._step *= 2
        self._offered += 1

    def moments(self) -> list[Moment]:
        """Return the moments for the picture, in the order of time."""
        count = min(self._size, len(self._kept))
        spread = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[i] for i in spread]


def to_array(message: Image) -> np.ndarray:
    """View a mono8, 32FC1 or 32FC3 image without padding as (h, w) or (h, w, 3)."""
    dtype = np.uint8 if message.encoding == 'mono8' else np.float32
    shape = (message.height, message.width) + ((3,) if message.encoding == '32FC3' else ())
    return np.frombuffer(message.data, dtype).reshape(shape)


def _resize(truth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if truth.shape == shape:
        return truth
    return cv2.resize(truth, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
