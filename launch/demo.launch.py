# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Start a camera from what is at hand, and mtan_node on it.

    ros2 launch mtan_perception demo.launch.py source:=/path/to/video.mp4

Every argument of mtan.launch.py but `image`, `camera_info` and `cameras` works here too.
"""

from pathlib import Path
import runpy
from types import SimpleNamespace

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

MTAN = Path(__file__).resolve().parent / 'mtan.launch.py'
mtan = SimpleNamespace(**runpy.run_path(str(MTAN)))  # its file is no module

# Argument, type and meaning of what is handed to camera_node; empty leaves the node's own default.
CAMERA = (
    ('source', str, 'synthetic, a camera index or /dev/videoN, a video, an image or a folder'),
    ('rate', float, "images a second; 0 for the source's own"),
    ('width', int, "image width in pixels; 0 for the source's own"),
    ('height', int, "image height in pixels; 0 for the source's own"),
    ('frame_id', str, 'optical frame of the camera'),
    ('loop', bool, 'start again at the end of a video or a folder'),
    ('seed', int, 'number of the first synthetic room'),
    ('hfov', float, 'horizontal field of view in degrees, of a camera without a calibration'),
    ('camera_info_url', str, 'calibration file of the camera'),
)


def generate_launch_description() -> LaunchDescription:
    rviz_frame = LaunchConfiguration(
        'rviz_frame', default=LaunchConfiguration('frame_id', default=''))
    return LaunchDescription([
        *(DeclareLaunchArgument(
            name, default_value='', description=f"{meaning}; empty: camera_node's default")
          for name, _, meaning in CAMERA),
        # Before anything has been started, which launch would leave running.
        OpaqueFunction(function=check_camera),
        RegisterEventHandler(OnProcessExit(on_exit=end_with_node)),
        # The topic names are relative, so `namespace` moves the camera and the node together.
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(MTAN)),
            launch_arguments={'image': 'camera/image_raw', 'rviz_frame': rviz_frame}.items()),
        # After the include, which declares `namespace` and sets the Fast DDS profile.
        OpaqueFunction(function=camera),
    ])


def camera_parameters(context: LaunchContext) -> dict:
    """Return what was given for camera_node; ValueError names an argument of the wrong type."""
    arguments = (*CAMERA, ('use_sim_time', bool, ''))
    return {name: mtan.parameter_value(context, name, kind)
            for name, kind, _ in arguments if context.launch_configurations.get(name)}


def check_camera(context: LaunchContext) -> list:
    """Raise ValueError for an argument of the wrong type, and for another camera."""
    arguments = context.launch_configurations
    camera_parameters(context)
    others = [name for name in ('image', 'camera_info', 'cameras') if arguments.get(name)]
    if arguments.get('params_file'):
        node = mtan.node_name(context)
        if any(mtan.cameras_in(mtan.params_file(context), node)):
            others.append('params_file')
    if others:
        raise ValueError(f'{others[0]}:={arguments[others[0]]}: demo.launch.py brings its own '
                         'camera; give it to mtan.launch.py')
    return []


def camera(context: LaunchContext) -> list[Node]:
    """Return camera_node with the arguments that were given; what it shows ends with it."""
    arguments, parameters = context.launch_configurations, camera_parameters(context)
    return [Node(
        package='mtan_perception', executable='camera_node', name='camera',
        namespace=mtan.joined(arguments['namespace'], 'camera').strip('/'),
        parameters=[parameters] if parameters else None,
        ros_arguments=['--log-level', arguments['log_level']],
        output='screen', emulate_tty=True, on_exit=end)]


def end_with_node(event: ProcessExited, context: LaunchContext) -> list[Action] | None:
    """End the demo if it was mtan_node that has ended, for good."""
    # A process is named by its executable and a number.
    is_node = event.process_name.rsplit('-', 1)[0] == 'mtan_node'
    if not is_node or IfCondition(LaunchConfiguration('respawn')).evaluate(context):
        return None
    return end(event, context)


def end(event: ProcessExited, context: LaunchContext) -> list[Action] | None:
    """End the demo with one of its two processes; None where that ends with all the rest."""
    if context.is_shutdown:
        return None
    return [LogInfo(msg=f'{event.process_name} has ended, and the demo with it'), Shutdown()]
