# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Build message packages that no wheel has, with rosidl's generators and the C compiler."""

import logging
import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig

LIBRARIES = ('rosidl_runtime_c', 'rosidl_typesupport_c', 'rosidl_typesupport_fastrtps_c',
             'rosidl_typesupport_fastrtps_cpp', 'fastcdr', 'rcutils', 'rmw')


class NotBuildable(RuntimeError):
    """What this machine lacks to build a message package."""


def build_interfaces(folder: Path, package: str, messages: dict[str, str],
                     dependencies: tuple[str, ...]) -> Path:
    """
    Build a message package into `folder` and return the folder for PYTHONPATH.

    :param messages: definition of each message by its name.
    :param dependencies: packages whose messages they use.
    :raises NotBuildable: naming what is missing.
    """
    prefix = Path(sys.prefix)
    for tool in ('gcc', 'g++'):
        if shutil.which(tool) is None:
            raise NotBuildable(f'{tool} is not installed')
    if not (prefix / 'include/rosidl_runtime_c').is_dir():
        raise NotBuildable(f'{prefix} has no headers of rosidl')
    if not (Path(sysconfig.get_paths()['include']) / 'Python.h').is_file():
        raise NotBuildable('Python.h is not installed')
    for name, definition in messages.items():
        path = folder / package / 'msg' / f'{name}.msg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(definition)
    target = folder / 'built' / package
    try:
        _generate(folder / package, package, [f'msg/{name}.msg' for name in messages], target)
        _compile(target, prefix, dependencies)
    except ImportError as error:
        raise NotBuildable(f'rosidl is incomplete: {error}') from error
    return folder / 'built'


def _generate(source: Path, package: str, files: list[str], target: Path) -> None:
    # In a process of its own: the generators look up files from the working folder.
    subprocess.run(
        [sys.executable, __file__, package, str(target), *files], cwd=source, check=True,
        env={**os.environ, 'AMENT_PREFIX_PATH': sys.prefix}, timeout=60, capture_output=True)


def _run_generators(package: str, target: Path, files: list[str]) -> None:
    # The wheels register each generator twice, of which rosidl's own command makes an error.
    logging.disable(logging.WARNING)
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    for generator in (
        GenerateC('c'),
        GeneratePython('py', typesupport_implementations=['rosidl_typesupport_c']),
        # With one type support alone it is linked, not looked for as a library of its own.
        GenerateCTypesupport('c', typesupport_implementations=['rosidl_typesupport_fastrtps_c']),
        GenerateFastRTPSCTypesupport('fastrtps_c'),
    ):
        generator.generate(package, files, [f'{sys.prefix}/share'], target)


def _compile(target: Path, prefix: Path, dependencies: tuple[str, ...]) -> None:
    """Compile everything into the one extension module that rclpy loads."""
    import numpy
    includes = [target.parent, Path(sysconfig.get_paths()['include']), Path(numpy.get_include()),
                prefix / 'include', *sorted((prefix / 'include').iterdir())]
    libraries = [*LIBRARIES, *(
        f'{dependency}__{kind}' for dependency in dependencies for kind in (
            'rosidl_generator_c', 'rosidl_generator_py', 'rosidl_typesupport_c',
            'rosidl_typesupport_fastrtps_c'))]
    objects = []
    for compiler, pattern in (('gcc', '*.c'), ('g++', '*.cpp')):
        for path in sorted(target.rglob(pattern)):
            objects.append(path.with_suffix(path.suffix + '.o'))
            _run(compiler, '-w', '-fPIC', *(f'-I{folder}' for folder in includes),
                 '-c', path, '-o', objects[-1])
    _run('g++', '-shared', '-o', target / f'{target.name}_s__rosidl_typesupport_c.so', *objects,
         f'-L{prefix}/lib', f'-Wl,-rpath,{prefix}/lib', '-Wl,--as-needed',
         *(f'-l{library}' for library in libraries))


def _run(*command) -> None:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=100)
    if result.returncode:
        raise RuntimeError(f'{command[0]} failed:\n{result.stderr}')


if __name__ == '__main__':
    _run_generators(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
