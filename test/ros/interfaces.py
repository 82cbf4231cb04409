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

# Up to Jazzy Fast DDS looks a type up by the second as well.
TYPE_SUPPORTS = 'rosidl_typesupport_fastrtps_c', 'rosidl_typesupport_introspection_c'
LIBRARIES = (*TYPE_SUPPORTS, 'rosidl_runtime_c', 'rosidl_typesupport_c',
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
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport
    for generator, folder in (
        (GenerateC('c'), target),
        (GeneratePython('py', typesupport_implementations=['rosidl_typesupport_c']), target),
        (GenerateCTypesupport('c', typesupport_implementations=TYPE_SUPPORTS), target),
        # Each has files of the same names.
        (GenerateFastRTPSCTypesupport('fastrtps_c'), _folder_of(TYPE_SUPPORTS[0], target)),
        (GenerateIntrospectionCTypesupport('introspection_c'),
         _folder_of(TYPE_SUPPORTS[1], target)),
    ):
        generator.generate(package, files, [f'{sys.prefix}/share'], folder)


def _folder_of(type_support: str, target: Path) -> Path:
    return target.parents[1] / type_support / target.name


def _compile(target: Path, prefix: Path, dependencies: tuple[str, ...]) -> None:
    """Compile the module that rclpy loads, and the libraries that come with it, beside it."""
    import numpy
    folders = [_folder_of(name, target) for name in TYPE_SUPPORTS]
    includes = [*(folder.parent for folder in (target, *folders)),
                Path(sysconfig.get_paths()['include']), Path(numpy.get_include()),
                prefix / 'include', *sorted((prefix / 'include').iterdir())]
    libraries = [*LIBRARIES, *(
        f'{dependency}__{kind}' for dependency in dependencies for kind in (
            'rosidl_generator_c', 'rosidl_generator_py', 'rosidl_typesupport_c',
            *TYPE_SUPPORTS))]

    def link(name: str, sources: list[Path], own: list[str]) -> None:
        objects = []
        for source in sources:
            objects.append(source.with_suffix(source.suffix + '.o'))
            _run('gcc' if source.suffix == '.c' else 'g++', '-w', '-fPIC',
                 *(f'-I{folder}' for folder in includes), '-c', source, '-o', objects[-1])
        _run('g++', '-shared', '-o', target / name, f'-Wl,-soname,{name}', *objects,
             f'-L{prefix}/lib', f'-L{target}', f'-Wl,-rpath,{prefix}/lib:$ORIGIN',
             '-Wl,--no-as-needed', *(f'-l{library}' for library in own),
             '-Wl,--as-needed', *(f'-l{library}' for library in libraries))

    structures, detail = f'{target.name}__rosidl_generator_c', _sources(target / 'msg' / 'detail')
    link(f'lib{structures}.so', detail, [])
    supports = [f'{target.name}__{name}' for name in TYPE_SUPPORTS]
    for support, folder in zip(supports, folders, strict=True):
        link(f'lib{support}.so', _sources(folder), [structures])
    # A type support is looked up by the name of its library; loaded with the module, it is found.
    link(f'{target.name}_s__rosidl_typesupport_c.so',
         [source for source in _sources(target) if source not in detail],
         [structures, *supports])


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.suffix in ('.c', '.cpp'))


def _run(*command) -> None:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=100)
    if result.returncode:
        raise RuntimeError(f'{command[0]} failed:\n{result.stderr}')


if __name__ == '__main__':
    _run_generators(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
