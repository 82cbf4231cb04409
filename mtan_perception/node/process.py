# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How a node's process runs and ends."""

from collections.abc import Callable, Mapping
import difflib
import json
import logging
import os
from pathlib import Path
import sys
import textwrap
from typing import Any, NoReturn, TypeVar

from rcl_interfaces.msg import ParameterDescriptor
import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args, try_shutdown

from mtan_perception.node import programs

AnyNode = TypeVar('AnyNode', bound=Node)

Parameters = Mapping[str, tuple[Any, ParameterDescriptor]]
"""Name -> (default, descriptor)."""


def fastdds_environment() -> dict[str, str]:
    """
    Return the variable that gives large images room in Fast DDS's shared memory.

    Nothing where the environment names a profile already, and where ours is not installed.
    """
    # This came with Kilted, as did Fast DDS 3, which renamed the variable.
    fast_dds_3 = hasattr(rclpy, 'InitContextManager')
    name = 'FASTDDS_DEFAULT_PROFILES_FILE' if fast_dds_3 else 'FASTRTPS_DEFAULT_PROFILES_FILE'
    if os.environ.get(name):
        return {}
    roots = [Path(__file__).resolve().parents[2]]
    try:
        from ament_index_python.packages import get_package_share_directory
        roots.append(Path(get_package_share_directory('mtan_perception')))
    except (ImportError, LookupError, OSError):  # OSError: no AMENT_PREFIX_PATH
        pass  # not installed: the checkout is all there is
    return next(({name: str(root / 'config' / 'fastdds.xml')} for root in roots
                 if (root / 'config' / 'fastdds.xml').is_file()), {})


def start(name: str, make: Callable[[], AnyNode], args: list[str] | None,
          parameters: Parameters) -> AnyNode:
    """
    Begin with ROS and return the node.

    Where that cannot be, the process ends with exit code 1 and the reason on stderr; where a
    signal comes first, or help is asked for, with 0.

    :param name: of the program.
    :param args: its arguments, as rclpy.init takes them.
    :param parameters: the node's, for help.
    """
    if not {'-h', '--help'}.isdisjoint(sys.argv[1:] if args is None else args):
        print(describe(name, parameters))
        sys.exit(0)
    os.environ.update(fastdds_environment())
    try:
        begin(args)
        node = make()
        _warn_about_what_is_ignored(node, remove_ros_args(args)[1:])
        return node
    except Exception as error:
        print(f'{name}: cannot start: {error}', file=sys.stderr)
    _end(1)


def begin(args: list[str] | None) -> None:
    """Begin with ROS, and let a signal ask what runs to end, as ``spin`` does then."""
    programs.end_at_once()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    programs.begin()  # before there is a node, whose shared memory would be left behind


def _warn_about_what_is_ignored(node: Node, arguments: list[str]) -> None:
    """Say so where an argument or a parameter's name does nothing: it may be misspelt."""
    logger = node.get_logger()
    if arguments:
        logger.warning(f"ignored: {' '.join(arguments)}; what is for ROS comes after --ros-args")
    # Those of qos_overrides are declared with their topics, some of them later.
    for name in sorted(getattr(node, '_parameter_overrides', ())):
        if node.has_parameter(name) or name.startswith('qos_overrides.'):
            continue
        close = difflib.get_close_matches(name, node.get_parameters_by_prefix(''), 1)
        if close:
            logger.warning(f"parameter '{name}' is not known, so it is ignored; "
                           f"did you mean '{close[0]}'?")
        else:  # perhaps another node's, in a file for all of them
            logger.info(f"parameter '{name}' is not known, so it is ignored")


def describe(name: str, parameters: Parameters) -> str:
    """Return what the program takes, for people."""
    lines = [f'usage: {name} --ros-args [-r NAME:=TOPIC] [-p PARAMETER:=VALUE] '
             '[--params-file FILE] ...', '', 'parameters, each with its default:']
    for parameter, (default, descriptor) in parameters.items():
        lines.append(f'  {parameter}: {json.dumps(default)}')
        notes = [descriptor.description, descriptor.additional_constraints]
        for limits in (*descriptor.integer_range, *descriptor.floating_point_range):
            notes.append(f'{limits.from_value:g} to {limits.to_value:g}')
        lines += textwrap.wrap('; '.join(filter(None, notes)), 90, initial_indent=' ' * 6,
                               subsequent_indent=' ' * 6)
    return '\n'.join(lines)


def spin(node: Node, is_done: Callable[[], bool] = lambda: False) -> None:
    """Run the node's callbacks until SIGINT, SIGTERM, or `is_done()`."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not (programs.must_end() or is_done()):
        try:
            executor.spin_once(timeout_sec=0.1)
        except RCLError as error:
            # Before Kilted an invalid transition comes out here; it must not end the node.
            node.get_logger().error(str(error))
        except KeyboardInterrupt:
            return


class _RosHandler(logging.Handler):
    """Hands Python's log records on to a ROS logger."""

    def __init__(self, logger):
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        # A line for each level: rclpy takes the line of a call for the message's identity, and
        # its level must not change.
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def forward_logs(logger) -> None:
    """Let what the package without ROS logs, from INFO on, appear in this ROS logger."""
    package = logging.getLogger('mtan_perception')
    package.addHandler(_RosHandler(logger))
    package.setLevel(logging.INFO)


def leave(node: Node, exit_code: int = 0) -> NoReturn:
    """
    Close the node, say goodbye to the others, and end the process at once.

    Nothing is left to save by then. The interpreter's own way out takes a second where torch is
    loaded, and may abort where a thread is still in a forward pass, which nothing can interrupt.

    :param node: one with a `close()` that ends its threads.
    """
    node.close()
    node.destroy_node()
    _end(exit_code)


def _end(exit_code: int) -> NoReturn:
    """End ROS and, past the interpreter's own way out, the process."""
    try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
