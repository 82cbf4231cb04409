# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The launch files, run by the real launch on stand-ins for the executables.

A stand-in writes down how it was started: arguments, environment and parameter files.
"""

from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import yaml

from mtan_perception.tasks import DEPTH, NORMAL

# launch is left to child processes: it changes this one's loggers as soon as it is imported.
if find_spec('launch_ros') is None:
    pytest.skip('launch_ros comes with a ROS 2 installation, not with wheels',
                allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'config'

RUN_LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [item.split(':=', 1) for item in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)]))
sys.exit(service.run())
"""

DESCRIBE = """
import json, runpy, sys
from launch import LaunchContext
from launch.launch_description_sources import PythonLaunchDescriptionSource

description = PythonLaunchDescriptionSource(sys.argv[1]).get_launch_description(LaunchContext())
types = {name: getattr(kind, '__origin__', kind).__name__
         for name, kind, _ in runpy.run_path(sys.argv[1])[sys.argv[2]]}
print(json.dumps({
    'arguments': {item.name: item.description for item in description.get_launch_arguments()},
    'types': types}))
"""

# The demo ends with either of its processes, so each waits until both have begun.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys, time
files = {{name: pathlib.Path(name).read_text() for option, name in zip(sys.argv, sys.argv[1:])
         if option == '--params-file'}}
folder, me = pathlib.Path(os.environ['STARTED']), pathlib.Path(sys.argv[0]).name
path = folder / 'unfinished' / me
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps({{'argv': sys.argv[1:], 'env': dict(os.environ), 'files': files}}))
path.rename(folder / f'{{me}}.json')
while not all((folder / f'{{name}}.json').exists() for name in os.environ['TOGETHER'].split()):
    time.sleep(0.01)
with open(folder / 'starts', 'a') as starts:
    print(me, file=starts)
if me == os.environ.get('STAYS'):
    time.sleep(float(os.environ['SECONDS']))
"""


class _TupleLoader(yaml.SafeLoader):
    """Reads a list as launch_ros writes it: with a tag that ROS passes over."""


_TupleLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple', lambda loader, node: loader.construct_sequence(node))


class Started(NamedTuple):
    """How a process was started."""

    argv: list[str]
    env: dict[str, str]
    files: dict[str, str]

    @property
    def rules(self) -> dict[str, str]:
        """Return the remapping rules, `__node` and `__ns` among them."""
        pairs = zip(self.argv, self.argv[1:], strict=False)
        return dict(value.split(':=', 1) for option, value in pairs if option == '-r')

    @property
    def overrides(self) -> dict:
        """Return the parameters that come on top of the first parameter file."""
        merged = {}
        for text in [text for name, text in self.files.items() if Path(name).parent != CONFIG]:
            for node in yaml.load(text, _TupleLoader).values():
                merged |= node['ros__parameters']
        return merged


class Launch:
    """Runs a launch file where the executables are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package, names in (('mtan_perception', ('mtan_node', 'camera_node')),
                               ('rviz2', ('rviz2',))):
            index = folder / 'prefix/share/ament_index/resource_index/packages'
            index.mkdir(parents=True, exist_ok=True)
            (index / package).touch()
            for name in names:
                path = folder / 'prefix/lib' / package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(STAND_IN)
                path.chmod(0o755)

    def __call__(self, name: str, *arguments: str, fails: bool = False, **variables: str):
        """Return what was started, by executable; the text of the failure where one is due."""
        records = self.folder / 'started'
        records.mkdir(exist_ok=True)
        for path in records.glob('*.json'):
            path.unlink()
        environment = {key: value for key, value in os.environ.items()
                       if 'PROFILES_FILE' not in key}
        environment |= {
            'ROS_DISTRO': 'kilted', 'STARTED': str(records), 'ROS_LOG_DIR': str(self.folder),
            'TOGETHER': 'mtan_node camera_node' if name.startswith('demo') else '',
            'AMENT_PREFIX_PATH': str(self.folder / 'prefix'), **variables}
        result = subprocess.run(
            [sys.executable, '-c', RUN_LAUNCH, str(ROOT / 'launch' / name), *arguments],
            env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert (result.returncode != 0) == fails, result.stdout + result.stderr
        if fails:
            return result.stdout + result.stderr
        return {path.stem: Started(**json.loads(path.read_text()))
                for path in records.glob('*.json')}


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


def describe(name: str, table: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return a launch file's arguments with their descriptions, and its table's types by name."""
    result = subprocess.run(
        [sys.executable, '-c', DESCRIBE, str(ROOT / 'launch' / name), table],
        capture_output=True, text=True, timeout=60, check=True)
    content = json.loads(result.stdout)
    return content['arguments'], content['types']


def test_defaults_leave_every_parameter_to_the_file(launch):
    node, = launch('mtan.launch.py').values()
    assert list(node.files) == [str(CONFIG / 'mtan.yaml')]
    assert {'__ns': '/'} | node.rules == {
        '__ns': '/', '__node': 'mtan', 'image': 'image', 'camera_info': 'camera_info'}
    assert node.argv[node.argv.index('--log-level') + 1] == 'info'


def test_arguments_become_parameters_of_the_right_type(launch):
    node = launch(
        'mtan.launch.py', 'weights:=/w.safetensors', 'device:=0', 'precision:=off',
        'backend:=torch', 'tasks:=depth,normal', 'input_height:=96', 'input_width:=128',
        'image_transport:=compressed', 'max_rate:=5', 'confidence_threshold:=1',
        'autostart:=false', 'use_sim_time:=True')['mtan_node']
    expected = {
        'weights': '/w.safetensors', 'device': '0', 'precision': 'off', 'backend': 'torch',
        'tasks': [DEPTH, NORMAL], 'input_height': 96, 'input_width': 128,
        'image_transport': 'compressed', 'max_rate': 5.0, 'confidence_threshold': 1.0,
        'autostart': False, 'use_sim_time': True}
    assert node.overrides == expected
    assert {name: type(value) for name, value in node.overrides.items()} \
        == {name: type(value) for name, value in expected.items()}


@pytest.mark.parametrize('text, tasks', [
    ('depth', [DEPTH]),
    ('[depth, normal]', [DEPTH, NORMAL]),
    ("['depth','normal']", [DEPTH, NORMAL]),
])
def test_tasks_may_be_written_as_a_list(launch, text, tasks):
    assert launch('mtan.launch.py', f'tasks:={text}')['mtan_node'].overrides == {'tasks': tasks}


@pytest.mark.parametrize('argument', [
    'input_height:=tall', 'input_width:=38.5', 'max_rate:=fast', 'autostart:=perhaps'])
def test_argument_of_the_wrong_type_is_refused(launch, argument):
    text = launch('mtan.launch.py', argument, fails=True)
    assert f"{argument}: a value of type '" in text


def test_every_argument_is_described_and_has_the_parameters_type():
    from mtan_perception.node.parameters import SPECIFICATIONS
    arguments, types = describe('mtan.launch.py', 'OVERRIDES')
    for name, description in arguments.items():
        assert len(description) > 8, name
    assert set(types) <= set(arguments)
    assert types.pop('use_sim_time') == 'bool'
    assert types == {name: type(SPECIFICATIONS[name].default).__name__ for name in types}


@pytest.mark.parametrize('image, camera_info', [
    ('/camera/image_raw', '/camera/camera_info'),
    ('/image', '/camera_info'),
    ('left', 'camera_info'),
    ('{ns}/image', '{ns}/camera_info'),
])
def test_camera_info_lies_beside_the_image(launch, image, camera_info):
    rules = launch('mtan.launch.py', f'image:={image}')['mtan_node'].rules
    assert (rules['image'], rules['camera_info']) == (image, camera_info)


def test_camera_info_namespace_name_and_log_level_can_be_chosen(launch):
    node = launch(
        'mtan.launch.py', 'image:=/a/image', 'camera_info:=/b/info', 'namespace:=/robot',
        'name:=eye', 'log_level:=eye:=debug')['mtan_node']
    assert node.rules == {
        '__node': 'eye', '__ns': '/robot', 'image': '/a/image', 'camera_info': '/b/info'}
    assert node.argv[node.argv.index('--log-level') + 1] == 'eye:=debug'


def test_several_cameras_have_their_topics_below_their_names(launch):
    started = launch('mtan.launch.py', 'cameras:=front,left', 'image:=image_raw', 'rviz:=true')
    node = started['mtan_node']
    assert node.overrides == {'cameras': ['front', 'left']}
    assert {k: v for k, v in node.rules.items() if '/' in k} == {
        'front/image': 'front/image_raw', 'front/camera_info': 'front/camera_info',
        'left/image': 'left/image_raw', 'left/camera_info': 'left/camera_info'}
    rules = started['rviz2'].rules
    assert rules['/image'] == 'front/image_raw'
    assert rules['/mtan/depth/color'] == '/mtan/front/depth/color'


@pytest.mark.parametrize('content', [
    '/**: {ros__parameters: {cameras: [front, left]}}',
    '/robot/mtan: {ros__parameters: {cameras: [front, left], max_rate: 1.0}}',
    'robot: {mtan: {ros__parameters: {cameras: [front, left]}}}\n'
    'other: {ros__parameters: {cameras: [none]}}',
    '/*/mtan: {ros__parameters: {cameras: [front, left]}}\n'
    '/other/mtan: {ros__parameters: {cameras: [none]}}\n'
    'mtan: {ros__parameters: {cameras: [none]}}',
], ids=['all nodes', 'one node', 'below a namespace', 'in any namespace'])
def test_cameras_of_a_params_file_have_their_topics_below_their_names(launch, tmp_path, content):
    path = tmp_path / 'own.yaml'
    path.write_text(content)
    node = launch('mtan.launch.py', f'params_file:={path}', 'namespace:=robot',
                  'image:=image_raw')['mtan_node']
    assert {k: v for k, v in node.rules.items() if '/' in k} == {
        'front/image': 'front/image_raw', 'front/camera_info': 'front/camera_info',
        'left/image': 'left/image_raw', 'left/camera_info': 'left/camera_info'}
    for argument in ('image', 'camera_info'):
        text = launch('mtan.launch.py', f'params_file:={path}', 'namespace:=robot',
                      'image:=image_raw', f'{argument}:=/topic', fails=True)
        assert (f'{argument}:=/topic: with several cameras it is looked for below the name of '
                'each (front, left); leave out the first /') in text


@pytest.mark.parametrize('content, fault', [
    ('/**: {ros__parameters: {cameras: }}', 'cameras is None; it needs a list of names'),
    ('/**: {ros__parameters: {cameras: front}}', "cameras is 'front'; it needs a list of names"),
    ('/**: {ros__parameters: {cameras: [x, on]}}', "cameras is ['x', True]; it needs a list of"),
    ('/**: {ros__parameters: [x]}', "ros__parameters is ['x']; it needs parameters"),
])
def test_a_params_file_that_cannot_be_used_is_named(launch, tmp_path, content, fault):
    path = tmp_path / 'own.yaml'
    path.write_text(content)
    text = launch('mtan.launch.py', f'params_file:={path}', fails=True)
    assert f'params_file:={path}: {fault}' in text


@pytest.mark.parametrize('argument', [
    'image:=/cam/image_raw/', 'image:=a-b', 'image:=~/a', 'camera_info:=1a', 'image:=/bäcker/rgb'])
def test_what_is_no_name_of_a_topic_is_refused(launch, argument):
    text = launch('mtan.launch.py', argument, fails=True)
    assert f'{argument}: is no name of a topic' in text


def test_nav2_sets_what_the_costmap_needs(launch):
    node = launch('mtan.launch.py', 'nav2:=true', 'confidence_threshold:=0.4')['mtan_node']
    assert node.overrides == {'points.classes': ['-ceiling'], 'points.max_edge_angle': 80.0,
                              'confidence_threshold': 0.4}
    assert launch('mtan.launch.py', 'nav2:=false')['mtan_node'].overrides == {}


def test_own_params_file(launch, tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text('/**: {ros__parameters: {max_depth: 4.0}}')
    node = launch('mtan.launch.py', f'params_file:={path}', 'max_rate:=2.5')['mtan_node']
    assert next(iter(node.files)) == str(path)  # what comes later overrides it
    assert node.overrides == {'max_depth': 4.0, 'max_rate': 2.5}


@pytest.mark.parametrize('argument', ['rviz:=perhaps', 'nav2:=perhaps', 'respawn:=perhaps'])
def test_a_switch_is_true_or_false(launch, argument):
    text = launch('mtan.launch.py', argument, fails=True)
    name = argument.partition(':')[0]
    assert f'"{name}" provided value "perhaps" is not valid' in text
    assert set(launch('mtan.launch.py', f'{name}:=0')) == {'mtan_node'}


def test_rviz_that_is_not_installed_is_an_error_before_anything_starts(launch):
    (launch.folder / 'prefix/share/ament_index/resource_index/packages/rviz2').unlink()
    text = launch('mtan.launch.py', 'rviz:=true', fails=True)
    assert 'rviz:=true: rviz2 is not installed' in text and 'ros-kilted-rviz2' in text
    assert not list((launch.folder / 'started').iterdir())


@pytest.mark.parametrize('argument', ['image:=/a', 'camera_info:=/b', 'cameras:=front,left'])
def test_demo_refuses_a_camera(launch, argument, tmp_path):
    """It has its own."""
    text = launch('demo.launch.py', argument, fails=True)
    assert f'{argument}: demo.launch.py brings its own camera' in text
    path = tmp_path / 'own.yaml'
    path.write_text('/robot/mtan: {ros__parameters: {cameras: [front, left]}}')
    arguments = f'params_file:={path}', 'namespace:=robot'
    text = launch('demo.launch.py', *arguments, fails=True)
    assert f'{arguments[0]}: demo.launch.py brings its own camera' in text
    launch('demo.launch.py', arguments[0])  # which has nothing for this node


def test_missing_params_file_is_an_error(launch):
    text = launch('mtan.launch.py', 'params_file:=/none.yaml', fails=True)
    assert 'params_file:=/none.yaml: there is no such file' in text
    text = launch('mtan.launch.py', 'params_file:=/', fails=True)
    assert 'params_file:=/: is no file' in text


@pytest.mark.parametrize('distro, variable, other', [
    ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
    ('lyrical', 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
    ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'),
    ('humble', 'FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'),
])
def test_fast_dds_profile_by_distribution(launch, distro, variable, other):
    env = launch('mtan.launch.py', ROS_DISTRO=distro)['mtan_node'].env
    assert env[variable] == str(CONFIG / 'fastdds.xml')
    assert other not in env


def test_own_fast_dds_profile_is_kept(launch):
    env = launch('mtan.launch.py', FASTDDS_DEFAULT_PROFILES_FILE='/own.xml')['mtan_node'].env
    assert env['FASTDDS_DEFAULT_PROFILES_FILE'] == '/own.xml'


def test_rviz_shows_the_topics_of_this_node(launch):
    started = launch(
        'mtan.launch.py', 'rviz:=true', 'image:=/cam/image', 'namespace:=robot', 'name:=eye')
    rviz = started['rviz2']
    assert rviz.files == {}
    assert rviz.argv[rviz.argv.index('--display-config') + 1] == str(CONFIG / 'mtan.rviz')
    view = (CONFIG / 'mtan.rviz').read_text()
    for shown, topic in rviz.rules.items():
        if shown.startswith('/mtan/'):
            assert topic == shown.replace('/mtan/', '/robot/eye/')
            assert shown in view or shown == '/mtan/depth/camera_info'
    assert rviz.rules['/image'] == '/cam/image'
    assert sum(shown.startswith('/mtan/') for shown in rviz.rules) == 7
    assert '--fixed-frame' not in rviz.argv
    argv = launch('mtan.launch.py', 'rviz:=true', 'rviz_frame:=base_link')['rviz2'].argv
    assert argv[argv.index('--fixed-frame') + 1] == 'base_link'


def test_demo_starts_a_camera_and_the_node_on_it(launch):
    started = launch('demo.launch.py')
    assert set(started) == {'mtan_node', 'camera_node'}
    camera, node = started['camera_node'], started['mtan_node']
    assert camera.rules == {'__node': 'camera', '__ns': '/camera'}
    assert camera.files == {}
    assert node.rules['image'] == 'camera/image_raw'
    assert node.rules['camera_info'] == 'camera/camera_info'
    assert camera.env['FASTDDS_DEFAULT_PROFILES_FILE'] == str(CONFIG / 'fastdds.xml')


@pytest.mark.parametrize('stays', ['camera_node', 'mtan_node'])
def test_demo_ends_with_either_of_its_processes(launch, stays):
    start = time.monotonic()
    started = launch('demo.launch.py', STAYS=stays, SECONDS='30')
    assert set(started) == {'mtan_node', 'camera_node'}
    assert time.monotonic() - start < 25


def test_demo_goes_on_where_the_node_is_started_again(launch, tmp_path):
    launch('demo.launch.py', 'respawn:=true', STAYS='camera_node', SECONDS='5')
    assert (tmp_path / 'started/starts').read_text().split().count('mtan_node') > 1


def test_demo_hands_its_arguments_on(launch):
    started = launch(
        'demo.launch.py', 'source:=0', 'rate:=15', 'width:=640', 'loop:=false', 'namespace:=robot',
        'weights:=random')
    camera, node = started['camera_node'], started['mtan_node']
    assert camera.overrides == {'source': '0', 'rate': 15.0, 'width': 640, 'loop': False}
    assert type(camera.overrides['rate']) is float
    assert camera.rules['__ns'] == '/robot/camera'
    assert node.rules['__ns'] == '/robot'
    assert node.overrides == {'weights': 'random'}


def test_demo_tells_all_of_its_processes(launch):
    """Whose clock, how much to say, and which frame to look from."""
    started = launch('demo.launch.py', 'use_sim_time:=true', 'log_level:=debug', 'rviz:=true',
                     'frame_id:=eye')
    for name in ('camera_node', 'mtan_node', 'rviz2'):
        assert started[name].overrides['use_sim_time'] is True
    for name in ('camera_node', 'mtan_node'):
        argv = started[name].argv
        assert argv[argv.index('--log-level') + 1] == 'debug'
    argv = started['rviz2'].argv
    assert argv[argv.index('--fixed-frame') + 1] == 'eye'
    argv = launch('demo.launch.py', 'rviz:=true', 'frame_id:=eye', 'rviz_frame:=map')['rviz2'].argv
    assert argv[argv.index('--fixed-frame') + 1] == 'map'


def test_demo_arguments_are_parameters_of_camera_node():
    from mtan_perception.node.camera_node import PARAMETERS
    arguments, types = describe('demo.launch.py', 'CAMERA')
    assert set(types) <= set(arguments)
    assert {'weights', 'tasks', 'rviz'} <= set(arguments)  # those of mtan.launch.py
    assert types == {name: type(PARAMETERS[name][0]).__name__ for name in types}
