# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Start mtan_node on a camera.

    ros2 launch mtan_perception mtan.launch.py image:=/camera/image_raw
"""

from collections.abc import Iterator
from pathlib import Path
import re

from ament_index_python.packages import get_package_prefix, PackageNotFoundError
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
import yaml

CONFIG = Path(__file__).resolve().parent.parent / 'config'

# Argument, type and meaning of what overrides the parameter of the same name. All are empty by
# default, which leaves the value to params_file: no default stands here a second time.
OVERRIDES = (
    ('weights', str, "weights: a .safetensors file, 'default' or 'random'"),
    ('device', str, 'device: auto, cpu, cuda or cuda:N'),
    ('precision', str, 'arithmetic: auto, fp32, fp16 or bf16'),
    ('backend', str, 'what runs it: auto, torch, triton, compile, openvino or onnxruntime'),
    ('tasks', list[str], 'tasks to run, for example segmentation,depth'),
    ('input_height', int, 'the image is scaled to fit into this height, in pixels'),
    ('input_width', int, 'the image is scaled to fit into this width, in pixels'),
    ('image_transport', str, 'raw or compressed'),
    ('cameras', list[str], 'names of several cameras, for example front,left'),
    ('max_rate', float, 'frames a second at most, in Hz; 0 for no limit'),
    ('confidence_threshold', float, 'less probable pixels are unlabelled, 0 to 1'),
    ('correct_focal_length', bool, 'correct depth by the focal length in camera_info'),
    ('depth_scale', float, 'factor on every depth'),
    ('autostart', bool, 'configure and activate at the start'),
    ('use_sim_time', bool, 'take the time from /clock'),
)
# What nav2:=true sets, before the arguments: a ceiling must not mark what is below it, and points
# between an edge and what is behind it must not mark anything.
NAV2 = {'points.classes': ['-ceiling'], 'points.max_edge_angle': 80.0}
SWITCH = ('true', 'false', 'True', 'False', '1', '0')
COLOR_TOPICS = ('segmentation/color', 'depth/color', 'normal/color')
DEPTH_TOPICS = ('depth/image_rect', 'depth/camera_info')
CLOUD_TOPICS = ('points', 'obstacles')
# With rcl's substitutions, such as {ns}.
TOPIC_NAME = re.compile(r'/?([A-Za-z_{][\w{}]*/)*[A-Za-z_{][\w{}]*', re.ASCII)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([
        DeclareLaunchArgument(
            'image', default_value='image',
            description='image topic; with `cameras`, below the name of each'),
        DeclareLaunchArgument(
            'camera_info', default_value='',
            description='camera_info topic; empty: the one beside the image topic'),
        DeclareLaunchArgument('namespace', default_value='', description="the node's namespace"),
        DeclareLaunchArgument('name', default_value='mtan', description="the node's name"),
        DeclareLaunchArgument(
            'params_file', default_value=str(CONFIG / 'mtan.yaml'),
            description='YAML file of parameters'),
        *(DeclareLaunchArgument(
            name, default_value='', description=f'{meaning}; empty: as in params_file')
          for name, _, meaning in OVERRIDES),
        DeclareLaunchArgument(
            'log_level', default_value='info',
            description='debug, info, warn, error or fatal, or LOGGER:=LEVEL'),
        DeclareLaunchArgument(
            'respawn', default_value='false', choices=SWITCH,
            description='start the node again when it ends, after whatever error'),
        DeclareLaunchArgument(
            'rviz', default_value='false', choices=SWITCH, description='open the RViz view'),
        DeclareLaunchArgument(
            'rviz_frame', default_value='',
            description="RViz's fixed frame, for example the frame_id of your images; empty: that "
            'of config/mtan.rviz, camera_optical_frame'),
        DeclareLaunchArgument(
            'nav2', default_value='false', choices=SWITCH,
            description='make points and obstacles fit for config/nav2_costmap.yaml: leave the '
            'ceiling and flying points out, whatever points.classes and points.max_edge_angle '
            'are in params_file (docs/navigation.md)'),
        OpaqueFunction(function=fast_dds_profile),
        OpaqueFunction(function=nodes),
    ])


def fast_dds_profile(context: LaunchContext) -> list[SetEnvironmentVariable]:
    """Give large images room in shared memory, unless a profile has been chosen already."""
    # Fast DDS 3 (Kilted and later) warns about the name that Fast DDS 2 reads.
    fast_dds_2 = context.environment.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    variable = f'{"FASTRTPS" if fast_dds_2 else "FASTDDS"}_DEFAULT_PROFILES_FILE'
    if context.environment.get(variable):
        return []
    return [SetEnvironmentVariable(variable, str(CONFIG / 'fastdds.xml'))]


def nodes(context: LaunchContext) -> list[Node]:
    """Return mtan_node, and RViz for whoever asks for it, with the arguments' values filled in."""
    arguments = context.launch_configurations
    check_rviz(context)
    image = topic_name(context, 'image')
    camera_info = (topic_name(context, 'camera_info') if arguments['camera_info']
                   else beside(image, 'camera_info'))
    namespace, name = arguments['namespace'].strip('/'), arguments['name']
    rviz_frame = arguments['rviz_frame']
    prefix = node_name(context)
    overrides = {key: parameter_value(context, key, kind)
                 for key, kind, _ in OVERRIDES if arguments[key]}
    if IfCondition(LaunchConfiguration('nav2')).evaluate(context):
        overrides = NAV2 | overrides
    file = params_file(context)
    parameters = [file] + ([overrides] if overrides else [])
    remappings = [('image', image), ('camera_info', camera_info)]
    cameras = [camera for camera in overrides.get('cameras') or cameras_in(file, prefix) if camera]
    if cameras:  # Each has its topics below its name; the view shows the first.
        for argument, topic in (('image', image), ('camera_info', camera_info)):
            if topic.startswith('/'):
                raise ValueError(
                    f'{argument}:={topic}: with several cameras it is looked for below the name '
                    f'of each ({", ".join(cameras)}); leave out the first /')
        remappings = [(f'{camera}/{topic}', f'{camera}/{name}')
                      for camera in cameras for topic, name in remappings]
        image, prefix = f'{cameras[0]}/{image}', f'{prefix}/{cameras[0]}'
    return [
        Node(
            package='rviz2', executable='rviz2', name='rviz', namespace=namespace,
            arguments=['--display-config', str(CONFIG / 'mtan.rviz')] + (
                ['--fixed-frame', rviz_frame] if rviz_frame else []),
            remappings=[('/image', image)] + [
                (f'/mtan/{topic}', f'{prefix}/{topic}')
                for topic in COLOR_TOPICS + DEPTH_TOPICS + CLOUD_TOPICS],
            parameters=[{'use_sim_time': overrides['use_sim_time']}]
            if 'use_sim_time' in overrides else None,
            condition=IfCondition(LaunchConfiguration('rviz')), output='log'),
        Node(
            package='mtan_perception', executable='mtan_node', name=name, namespace=namespace,
            parameters=parameters,
            remappings=remappings,
            ros_arguments=['--log-level', arguments['log_level']],
            respawn=LaunchConfiguration('respawn'), respawn_delay=2.0,
            output='screen', emulate_tty=True),
    ]


def check_rviz(context: LaunchContext) -> None:
    """Raise ValueError where RViz is asked for and not installed."""
    if not IfCondition(LaunchConfiguration('rviz')).evaluate(context):
        return
    try:
        get_package_prefix('rviz2')
    except PackageNotFoundError:
        distribution = context.environment.get('ROS_DISTRO', 'DISTRO')
        raise ValueError(
            f'rviz:={context.launch_configurations["rviz"]}: rviz2 is not installed; install it '
            f'(sudo apt install ros-{distribution}-rviz2), or leave rviz out') from None


def beside(topic: str, other: str) -> str:
    """Return the topic `other` in the namespace of `topic`, where a camera driver puts it."""
    namespace, slash, _ = topic.rpartition('/')
    return namespace + slash + other


def params_file(context: LaunchContext) -> str:
    """Return the parameter file; launch itself would only warn that there is none, and go on."""
    path = Path(context.launch_configurations['params_file']).expanduser()
    if not path.is_file():
        fault = 'is no file' if path.exists() else 'there is no such file'
        raise ValueError(f'params_file:={path}: {fault}')
    return str(path)


def node_name(context: LaunchContext) -> str:
    """Return the node's whole name; a group around may have pushed a part of its namespace."""
    arguments = context.launch_configurations
    return joined(arguments.get('ros_namespace', ''), arguments.get('namespace', ''),
                  arguments.get('name', 'mtan'))


def joined(*names: str) -> str:
    """Return the absolute name of names in each other; some may be empty."""
    return '/' + '/'.join(filter(None, (name.strip('/') for name in names)))


def topic_name(context: LaunchContext, argument: str) -> str:
    """Return an argument that names a topic; what rcl says of one that does not helps nobody."""
    topic = context.launch_configurations[argument]
    if not TOPIC_NAME.fullmatch(topic):
        raise ValueError(f'{argument}:={topic}: is no name of a topic; give one such as '
                         '/camera/image_raw, of letters, digits and underscores')
    return topic


def cameras_in(file: str, node: str) -> list[str]:
    """Return the parameter `cameras` of a node in a parameter file: it decides on the topics."""
    cameras = []
    with open(file, encoding='utf-8') as stream:  # so that an error names it
        tree = yaml.safe_load(stream)
    for parameters in parameters_in(tree, node):
        if not isinstance(parameters, dict):
            raise ValueError(f'params_file:={file}: ros__parameters is {parameters!r}; '
                             'it needs parameters, each with its value')
        cameras = parameters.get('cameras', cameras)
    if not (isinstance(cameras, list) and all(isinstance(name, str) for name in cameras)):
        raise ValueError(f'params_file:={file}: cameras is {cameras!r}; it needs a list of names, '
                         'for example [front, left]')
    return cameras


def parameters_in(tree: dict, node: str, namespace: str = '') -> Iterator[dict]:
    """Yield what a parameter file has for a node, given with its namespace, by rclpy's rules."""
    for key, entries in tree.items() if isinstance(tree, dict) else ():
        name = joined(namespace, str(key))
        if isinstance(entries, dict) and 'ros__parameters' in entries:
            # So `*` stands for one name, and `**` for any number of them.
            if re.fullmatch(name.replace('/*', r'(/\w+)'), node):
                yield entries['ros__parameters'] or {}
        else:
            yield from parameters_in(entries, node, name)


def parameter_value(context: LaunchContext, name: str, kind: type):
    """
    Convert an argument to its parameter's type; a list may be given as `a,b` or as `[a, b]`.

    Raise ValueError naming the argument.
    """
    text = context.launch_configurations[name]
    if kind == list[str]:
        items = [item.strip(' \'"') for item in text.strip(' []').split(',')]
        return [item for item in items if item] or ['']  # launch_ros takes no empty list
    value = ParameterValue(LaunchConfiguration(name), value_type=kind)
    try:
        value.evaluate(context)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}:={text}: a value of type '{kind.__name__}' is needed") from error
    return value
