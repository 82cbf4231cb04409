# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The package's metadata, and what a workspace gets when colcon builds it."""

import ast
from importlib.util import find_spec
import os
from pathlib import Path
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import mtan_perception

ROOT = Path(__file__).resolve().parent.parent
NAME = 'mtan_perception'
EXECUTABLES = {
    'mtan_node': 'mtan_perception.node.programs:mtan_node',
    'camera_node': 'mtan_perception.node.programs:camera_node',
    'mtan': 'mtan_perception.cli.main:main',
}
# Python module -> its key in package.xml; a module that is not listed has its own name as key.
KEYS = {'cv2': 'python3-opencv', 'numpy': 'python3-numpy', 'tf2_ros': 'tf2_ros_py',
        'yaml': 'python3-yaml'}
# No rosdep key resolves everywhere: README.md gives the pip line.
NO_KEY = {'torch', 'torchvision', 'safetensors', 'rosbags'}
# Needed by one command or backend alone, which asks for it with its pip line.
OPTIONAL = {'h5py', 'onnx', 'onnxruntime', 'openvino', 'scipy', 'triton'}

needs_ros = pytest.mark.skipif(find_spec('rclpy') is None, reason='rclpy is not installed')


@pytest.fixture(scope='module')
def manifest():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def test_manifest_describes_this_package(manifest):
    assert manifest.get('format') == '3'
    assert manifest.findtext('name') == NAME
    assert manifest.findtext('version') == mtan_perception.__version__
    assert manifest.findtext('license') == 'Apache-2.0'
    assert (ROOT / manifest.find('license').get('file')).is_file()
    assert manifest.findtext('export/build_type') == 'ament_python'
    # colcon builds a package with an invalid address as plain Python, without a word.
    assert re.fullmatch(r'[\w.+-]+@[\w-]+(\.[\w-]+)+', manifest.find('maintainer').get('email'))


def test_manifest_names_every_dependency(manifest):
    declared = {item.text for item in manifest.iter('exec_depend')}
    used = {library for folder in (ROOT / NAME, ROOT / 'launch')
            for path in folder.rglob('*.py') for library in _libraries(path.read_text())}
    assert {KEYS.get(library, library) for library in used} - NO_KEY - OPTIONAL <= declared
    assert {'vision_msgs', 'cv_bridge', 'launch', 'launch_ros', 'std_srvs'} <= declared
    assert 'torch' not in ' '.join(declared)


def _libraries(source: str) -> set[str]:
    """Return the top-level names of what is imported and is neither ours nor Python's."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    found = {name.partition('.')[0] for name in found}
    return found - {NAME} - set(sys.stdlib_module_names)


def test_entry_points_exist():
    assert _setup_py('--name', '--version') == [NAME, mtan_perception.__version__]
    for target in EXECUTABLES.values():
        module, function = target.split(':')
        path = ROOT / f'{module.replace(".", "/")}.py'
        functions = {node.name for node in ast.parse(path.read_text()).body
                     if isinstance(node, ast.FunctionDef)}
        assert function in functions, f'{path} has no {function}()'


def _setup_py(*options: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, 'setup.py', '--quiet', *options], cwd=ROOT, capture_output=True,
        text=True, timeout=60, check=True)
    return result.stdout.split()


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """Return an empty colcon workspace."""
    if find_spec('colcon_ros') is None:
        pytest.skip('colcon is not installed (it is in requirements/test.txt)')
    return tmp_path_factory.mktemp('workspace')


@pytest.fixture(scope='module')
def installed(workspace):
    """Build the checkout with colcon; return the install prefix."""
    _colcon(workspace, 'build')
    return workspace / 'install' / NAME


def _colcon(workspace: Path, verb: str, *options: str) -> str:
    result = _run(
        [sys.executable, '-m', 'colcon', '--log-base', workspace / 'log', verb,
         '--base-paths', ROOT, '--build-base', workspace / 'build',
         '--install-base', workspace / 'install', '--packages-select', NAME, *options],
        cwd=workspace)
    assert 'Finished <<< mtan_perception' in result.stdout, result.stdout + result.stderr
    return result.stdout


def _run(command, **options) -> subprocess.CompletedProcess:
    # colcon finds ament, which turns the package into a ROS package, by AMENT_PREFIX_PATH.
    environment = {'AMENT_PREFIX_PATH': sys.prefix, **os.environ, 'PYTHONDONTWRITEBYTECODE': ''}
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True,
        timeout=100, **options)


def test_colcon_installs_every_file(installed):
    share = installed / 'share' / NAME
    expected = [Path('package.xml')] + [
        path.relative_to(ROOT) for folder in ('launch', 'config')
        for path in sorted((ROOT / folder).rglob('*.*')) if '__pycache__' not in path.parts]
    assert len(expected) >= 7
    for path in expected:
        assert (share / path).read_bytes() == (ROOT / path).read_bytes(), path
    index = installed / 'share/ament_index/resource_index/packages' / NAME
    assert index.is_file()


def test_colcon_installs_every_module_and_weights(installed):
    library, = installed.glob(f'lib/python3*/site-packages/{NAME}')
    wanted = [path for pattern in ('*.py', '*.safetensors')
              for path in sorted((ROOT / NAME).rglob(pattern))]
    assert len(wanted) > 10
    for path in wanted:
        assert (library / path.relative_to(ROOT / NAME)).is_file(), path


def test_colcon_installs_executables_where_ros_looks(installed):
    folder = installed / 'lib' / NAME
    assert {path.name for path in folder.iterdir()} == set(EXECUTABLES)
    assert all(os.access(path, os.X_OK) for path in folder.iterdir())


def test_colcon_runs_the_tests_with_pytest(installed, workspace):
    output = _colcon(
        workspace, 'test', '--event-handlers', 'console_cohesion+',
        '--pytest-args', '--collect-only', '-q', 'test/test_geometry.py')
    assert 'test/test_geometry.py::' in output


@needs_ros
@pytest.mark.parametrize('executable', ['mtan_node', 'camera_node'])
def test_a_signal_while_a_node_is_being_imported_ends_it_quietly(executable):
    code = f"""if True:
        import signal, sys
        class Interrupt:
            def find_spec(name, *arguments):
                if name in ('rclpy', 'torch'):
                    signal.raise_signal(signal.SIGINT)
        sys.meta_path.insert(0, Interrupt)
        from mtan_perception.node.programs import {executable}
        sys.exit({executable}())"""
    result = _run([sys.executable, '-c', code], cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@needs_ros
@pytest.mark.parametrize('executable', ['mtan_node', 'camera_node'])
def test_installed_node_runs(installed, executable):
    parameter = {'mtan_node': 'precision', 'camera_node': 'source'}[executable]
    setup = installed.parent / 'local_setup.bash'
    result = _run(['bash', '-c', f'. {setup} && exec {installed}/lib/{NAME}/{executable} '
                   f'--ros-args -p {parameter}:=nonsense'], cwd='/')
    # It started, read its parameters, refused one and said which.
    assert result.returncode == 1
    assert f'{executable}: cannot start: ' in result.stderr
    assert parameter in result.stderr and 'nonsense' in result.stderr
    assert 'Traceback' not in result.stderr
