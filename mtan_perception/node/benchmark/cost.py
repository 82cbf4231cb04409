# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of the node beside its engine, and their table; no ROS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
import statistics
from typing import Any

ENGINE = ('preprocess', 'network', 'postprocess')
"""The stages that are the engine's."""
AIM = 1.3
_STAGE_NAMES = {
    'wait': 'wait for the worker', 'decode': 'decode', 'camera_info': 'scale CameraInfo',
    'fill': 'fill images', 'clouds': 'fill clouds', 'publish': 'serialise and publish',
    'rest': 'rest in the node', 'deliver': 'deliver, both ways'}


@dataclass
class NodeCost:
    """Seconds of each frame for one size of image and one set of outputs."""

    size: tuple[int, int]
    """(height, width) of the images."""
    encoding: str
    outputs: tuple[str, ...]
    """The topics that were subscribed to."""
    answer_bytes: int = 0
    """Of all data that answers one image."""
    node: list[float] = field(default_factory=list)
    """From publishing an image to the arrival of the last output."""
    relay: list[float] = field(default_factory=list)
    """The same for a node that publishes the same messages without any work."""
    stages: dict[str, list[float]] = field(default_factory=dict)
    """Parts of `node` by name; they add up to it."""

    def add(self, node: float, relay: float, stages: Mapping[str, float]) -> None:
        """
        Add a frame.

        :param stages: as mtan_node logs them: 'latency', from the arrival of the image to the end
            of publishing, and its parts.
        """
        parts = dict(stages)
        latency = parts.pop('latency')
        parts |= {'rest': latency - sum(parts.values()), 'deliver': node - latency}
        self.node.append(node)
        self.relay.append(relay)
        for name, seconds in parts.items():
            self.stages.setdefault(name, []).append(seconds)

    @property
    def engine(self) -> list[float]:
        """Seconds of the engine."""
        return [sum(parts) for parts in zip(*(self.stages[name] for name in ENGINE), strict=True)]

    @property
    def overhead(self) -> list[float]:
        """Seconds that are not the engine's."""
        return [whole - engine for whole, engine in zip(self.node, self.engine, strict=True)]

    @property
    def ratio(self) -> float:
        """Median overhead over the relay's median."""
        return statistics.median(self.overhead) / statistics.median(self.relay)

    def to_json(self) -> dict[str, Any]:
        """Return every figure."""
        return {**asdict(self), 'overhead_to_relay': self.ratio}


def table(costs: Sequence[NodeCost], clouds: Mapping[str, Sequence[float]]) -> str:
    """
    Return the figures in Markdown, in milliseconds.

    :param clouds: processor seconds of each time that a cloud was filled, by its name.
    """
    def row(name: str, cell: Callable[[NodeCost], str]) -> str:
        return f"| {name} | {' | '.join(map(cell, costs))} |"

    def times(name: str, values: Callable[[NodeCost], Sequence[float] | None]) -> str:
        return row(name, lambda cost: _times(values(cost)))

    named = [name for name in _STAGE_NAMES if any(name in cost.stages for cost in costs)]
    return '\n'.join([
        row('ms: median (min..max)', lambda cost: (
            f'{cost.size[1]}×{cost.size[0]}, {len(cost.outputs)} output(s), '
            f'{cost.answer_bytes / 1e6:.1f} MB')),
        '|---' * (len(costs) + 1) + '|',
        times('message to message', lambda cost: cost.node),
        times('engine', lambda cost: cost.engine),
        times('not the engine', lambda cost: cost.overhead),
        *(times(f'· {_STAGE_NAMES[name]}', lambda cost, name=name: cost.stages.get(name))
          for name in named),
        times('relay, message to message', lambda cost: cost.relay),
        row(f'not the engine ÷ relay (aim for all outputs: ≤ {AIM:g})',
            lambda cost: f'{cost.ratio:.2f}'),
        '',
        *(f'{name}: {_times(seconds)} ms of one core' for name, seconds in clouds.items())])


def _times(seconds: Sequence[float] | None) -> str:
    if not seconds:
        return ''
    return (f'{1000 * statistics.median(seconds):.1f} '
            f'({1000 * min(seconds):.1f}..{1000 * max(seconds):.1f})')
