# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: one table of defaults, meanings, ranges and when each may change."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from mtan_perception.geometry import INPUT_LIMITS
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

# When a parameter may change.
LIVE = 'takes effect with the next frame'
INACTIVE = 'can change only while the node is not active'
UNCONFIGURED = 'can change only while the node is not configured'
START = 'read once at the start'


@dataclass(frozen=True)
class Specification:
    """One parameter as `ros2 param describe` shows it."""

    default: Any
    meaning: str
    change: str
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Build the descriptor to declare it with."""
        descriptor = ParameterDescriptor(
            description=f'{self.meaning}; {self.change}', read_only=self.change == START)
        if self.choices:
            descriptor.additional_constraints = 'one of ' + ', '.join(self.choices)
        if self.range and isinstance(self.default, int):
            descriptor.integer_range = [
                IntegerRange(from_value=self.range[0], to_value=self.range[1], step=1)]
        elif self.range:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=self.range[0], to_value=self.range[1])]
        return descriptor


SPECIFICATIONS = {
    'weights': Specification(
        'default', "Weights: a .safetensors file, 'default', or 'random' to try without",
        UNCONFIGURED),
    'device': Specification(
        'auto', 'Device: auto (CUDA where there is one), cpu, cuda or cuda:N', UNCONFIGURED),
    'precision': Specification(
        'auto', 'Arithmetic: auto is fp16 on CUDA and fp32 on a CPU', UNCONFIGURED,
        choices=('auto', 'fp32', 'fp16', 'bf16')),
    'backend': Specification(
        'auto', 'Runtime that runs the network: auto is the fastest that can run here',
        UNCONFIGURED, choices=('auto', 'torch', 'triton', 'compile', 'openvino', 'onnxruntime')),
    'image_transport': Specification(
        'raw', 'Subscribe to the image topic itself (raw) or to its /compressed', INACTIVE,
        choices=('raw', 'compressed')),
    'cameras': Specification(
        [''], "Cameras to serve, by the names that stand before their topics; [''] is one camera "
        'without a name', START),
    'tasks': Specification(
        [SEGMENTATION, DEPTH, NORMAL], 'Tasks to run, of those that the weights know', LIVE),
    'input_height': Specification(
        288, 'The image is scaled to fit into this height, in pixels', LIVE, INPUT_LIMITS),
    'input_width': Specification(
        384, 'The image is scaled to fit into this width, in pixels', LIVE, INPUT_LIMITS),
    'max_rate': Specification(
        0.0, 'Process at most so many frames a second, in Hz; 0 for no limit', LIVE,
        (0.0, 1000.0)),
    'confidence_threshold': Specification(
        0.0, 'Pixels with a class probability below this are unlabelled (255) in the mask', LIVE,
        (0.0, 1.0)),
    'min_depth': Specification(
        0.1, 'Depth below this is unknown (NaN), in metres', LIVE, (0.0, 1000.0)),
    'max_depth': Specification(
        10.0, 'Depth above this is unknown (NaN), in metres', LIVE, (0.0, 1000.0)),
    'overlay_alpha': Specification(
        0.5, 'Opacity of the class colours over the image in segmentation/color', LIVE,
        (0.0, 1.0)),
    'correct_focal_length': Specification(
        True, 'Correct depth by the focal length in camera_info, where the weights know theirs',
        LIVE),
    'depth_scale': Specification(
        1.0, 'Factor on every depth, to calibrate it against a measured distance', LIVE,
        (0.01, 100.0)),
    'points.stride': Specification(
        1, 'Take every n-th row and column into points; 1 keeps the size of the mask', LIVE,
        (1, 64)),
    'points.classes': Specification(
        ['all'], 'Classes in points, by name; -name leaves one out of all', LIVE),
    'points.confident_only': Specification(
        False, 'Leave unlabelled pixels out of points: see confidence_threshold', LIVE),
    'points.max_edge_angle': Specification(
        90.0, 'Leave out of both clouds what is seen at more than this angle between its normal '
        'and the ray, in degrees; 90 keeps all', LIVE, (0.0, 90.0)),
    'obstacles.stride': Specification(
        2, 'Look for obstacles in every n-th row and column; 1 takes every pixel', LIVE,
        (1, 64)),
    'obstacles.floor_classes': Specification(
        ['floor', 'flat', 'road', 'sidewalk'],
        'Classes that a robot drives on; names that the weights do not have are passed over',
        LIVE),
    'obstacles.ceiling_classes': Specification(
        ['ceiling', 'sky'],
        'Classes above a robot; names that the weights do not have are passed over', LIVE),
    'obstacles.min_height': Specification(
        0.04, 'What faces up less than this above the floor is floor, in metres', LIVE,
        (0.0, 1.0)),
    'obstacles.voxel_size': Specification(
        0.05, 'One obstacle point in each cube of this size, in metres', LIVE, (0.005, 1.0)),
    'obstacles.base_frame': Specification(
        'base_link', 'TF frame whose z axis points up; empty, or without such a transform: up is '
        'fitted to the floor in view', LIVE),
    'autostart': Specification(
        True, 'Configure and activate the node at its start', START),
}


@dataclass(frozen=True)
class Settings:
    """One consistent set of the parameters' values; a frame is processed under one of them."""

    weights: str
    device: str
    precision: str
    backend: str
    image_transport: str
    cameras: tuple[str, ...]
    tasks: tuple[str, ...]
    input_height: int
    input_width: int
    max_rate: float
    confidence_threshold: float
    min_depth: float
    max_depth: float
    overlay_alpha: float
    correct_focal_length: bool
    depth_scale: float
    points_stride: int
    points_classes: tuple[str, ...]
    points_confident_only: bool
    points_max_edge_angle: float
    obstacles_stride: int
    obstacles_floor_classes: tuple[str, ...]
    obstacles_ceiling_classes: tuple[str, ...]
    obstacles_min_height: float
    obstacles_voxel_size: float
    obstacles_base_frame: str
    autostart: bool

    def __post_init__(self):
        """
        Check what no range expresses.

        :raises ValueError: naming the parameter, the value and the choices.
        """
        for name, specification in SPECIFICATIONS.items():
            value = getattr(self, field_name(name))
            if specification.choices and value not in specification.choices:
                raise ValueError(
                    f"parameter '{name}' is '{value}'; it must be one of "
                    f"{', '.join(specification.choices)}")
        if not self.min_depth < self.max_depth:
            raise ValueError(
                f"parameter 'min_depth' is {self.min_depth:g} and 'max_depth' is "
                f'{self.max_depth:g}; the first must be less than the second')
        if self.cameras != ('',) and not _are_names(self.cameras):
            raise ValueError(
                f"parameter 'cameras' is {list(self.cameras)}; give each camera a name of its "
                'own, of letters, digits and _')
        if not self.tasks:
            raise ValueError(
                "parameter 'tasks' is empty; name at least one, or deactivate the node")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"parameter 'tasks' is {list(self.tasks)}; name each task once")

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width that an image is scaled to fit into, in pixels."""
        return self.input_height, self.input_width

    def updated(self, parameters: list[Parameter]) -> 'Settings':
        """Return these settings with the parameters' new values; others' parameters are passed."""
        values = {
            field_name(parameter.name): _plain(parameter.name, parameter.value)
            for parameter in parameters if parameter.name in SPECIFICATIONS}
        return dataclasses.replace(self, **values)


def field_name(parameter: str) -> str:
    """Return the field of Settings that holds a parameter: `points.stride` is `points_stride`."""
    return parameter.replace('.', '_')


def declarations() -> dict[str, tuple[Any, ParameterDescriptor]]:
    """Return every parameter's default and descriptor, by its name."""
    return {name: (specification.default, specification.descriptor())
            for name, specification in SPECIFICATIONS.items()}


def declare_parameters(node: Node) -> Settings:
    """
    Declare every parameter with its description, type and range.

    :returns: their values from the command line, a parameter file or the table.
    :raises ValueError: for values that contradict one another or are no choice.
    """
    return Settings(**{
        field_name(name): _plain(name, node.declare_parameter(name, *declaration).value)
        for name, declaration in declarations().items()})


def default_settings() -> Settings:
    """Return the values of the table."""
    return Settings(**{
        field_name(name): _plain(name, specification.default)
        for name, specification in SPECIFICATIONS.items()})


def changes(settings: Settings, parameters: list[Parameter], when: str) -> list[str]:
    """Name those of the parameters that may change only `when`, and would."""
    return [
        parameter.name for parameter in parameters
        if parameter.name in SPECIFICATIONS and SPECIFICATIONS[parameter.name].change == when
        and _plain(parameter.name, parameter.value)
        != getattr(settings, field_name(parameter.name))]


def _are_names(names: tuple[str, ...]) -> bool:
    return 0 < len(names) == len(set(names)) and all(
        name.isascii() and name.isidentifier() for name in names)


def _plain(name: str, value: Any) -> Any:
    """Return a parameter's value as Settings has it: a tuple for a list, within its range."""
    limits = SPECIFICATIONS[name].range
    if limits is not None:  # of which rclpy lets a float miss a millionth
        return min(max(value, limits[0]), limits[1])
    return tuple(value) if isinstance(value, list) else value
