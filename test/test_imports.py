# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the folders' order, ROS in node/ only, heavy libraries where needed."""

import ast
from pathlib import Path
import sys
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'mtan_perception'
ROOT = ''  # the modules that lie directly in the package

# Folder -> the other folders that it may import. `node` never gets `training`, and what runs
# without ROS never gets `node`.
ALLOWED = {
    'network': set(),
    ROOT: {'network'},
    'inference': {ROOT, 'network'},
    'synthetic': {ROOT},
    'training': {ROOT, 'network', 'inference', 'synthetic'},
    'node': {ROOT, 'network', 'inference', 'synthetic'},
    'cli': {ROOT, 'network', 'inference', 'synthetic', 'training'},
}
# Of these a folder may import only inside the functions that use them: the command's `--live`
# needs the graph, and everything else of it works without ROS.
ALLOWED_LAZILY = {'cli': {'node'}}
# The libraries that a module outside node/ may need to be imported at all; what else it uses is
# imported inside the functions that use it. Folder or root module -> libraries.
USUAL = {'torch', 'numpy', 'safetensors'}
LIBRARIES = {
    'network': {'torch'},
    'tasks': set(),
    'model_card': {'safetensors'},
    'files': {'numpy'},
    'threads': set(),
    'labels': {'numpy'},
    'geometry': {'numpy'},
    'visualization': {'numpy', 'cv2'},
    'charts': {'numpy', 'cv2'},
    'cli': USUAL | {'cv2', 'yaml'},
}
# Modules that are imported only where the library is there: by the backend, by the benchmark.
MODULE_LIBRARIES = {**{f'openvino_{part}': {'openvino'}
                       for part in ('convolution', 'graph', 'images', 'runtime')},
                    'original': {'torchvision'}, 'triton_kernels': {'triton'},
                    'triton_layers': {'triton'}, 'triton_choices': {'triton'}}


class Import(NamedTuple):
    """One imported module; `lazy` when it stands inside a function."""

    module: str
    line: int
    lazy: bool
    relative: bool = False
    star: bool = False

    @property
    def library(self) -> str:
        return self.module.partition('.')[0]


class _Finder(ast.NodeVisitor):

    def __init__(self) -> None:
        self.found: list[Import] = []
        self._depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.found.append(Import(alias.name, node.lineno, self._depth > 0))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ''
        lazy, relative = self._depth > 0, node.level > 0
        for alias in node.names:
            # `from mtan_perception import tasks` imports the module mtan_perception.tasks.
            inside = f'{module}.{alias.name}' if module == 'mtan_perception' else module
            self.found.append(Import(inside, node.lineno, lazy, relative, alias.name == '*'))


def find_imports(source: str) -> list[Import]:
    finder = _Finder()
    finder.visit(ast.parse(source))
    return finder.found


def folder_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else ROOT


def target_folder(module: str) -> str | None:
    """Return the folder of ours that a module name lies in, None for `mtan_perception` itself."""
    parts = module.split('.')
    if len(parts) == 1:
        return None
    return parts[1] if parts[1] in ALLOWED else ROOT


def faults(path: Path, source: str) -> list[str]:
    """Return what is wrong with a module's imports, one line for each."""
    folder, found = folder_of(path), []
    for item in find_imports(source):
        where = f'{path.relative_to(PACKAGE.parent)}:{item.line}: {item.module}'
        if item.relative or item.star:
            found.append(f'{where}: import absolutely, name by name')
        elif item.library == 'mtan_perception':
            target = target_folder(item.module)
            lazily = ALLOWED_LAZILY.get(folder, set()) if item.lazy else set()
            if target not in (None, folder) and target not in ALLOWED[folder] | lazily:
                found.append(f'{where}: {folder or "a root module"} must not import {target}')
        elif folder != 'node':
            found.extend(f'{where}: {fault}' for fault in _library_faults(path, folder, item))
    return found


def _library_faults(path: Path, folder: str, item: Import) -> list[str]:
    if item.library in ('rclpy', 'rcl_interfaces') or item.library.endswith('_msgs'):
        return ['ROS is imported in node/ only']
    allowed = LIBRARIES.get(folder or path.stem, USUAL) | MODULE_LIBRARIES.get(path.stem, set())
    if item.lazy or item.library in allowed or item.library in sys.stdlib_module_names:
        return []
    return [f'{folder or path.stem} works without it: import it inside the function that needs it']


@pytest.mark.parametrize(
    'path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_rules(path):
    assert faults(path, path.read_text()) == []


@pytest.mark.parametrize('module, source, fault', [
    ('network/attention.py', 'import mtan_perception.tasks', 'must not import'),
    ('network/attention.py', 'import numpy', 'inside the function'),
    ('network/attention.py', 'import torchvision', 'inside the function'),
    ('inference/engine.py', 'from mtan_perception.node import outputs', 'must not import node'),
    ('training/trainer.py', 'def f():\n    import rclpy', 'node/ only'),
    ('synthetic/rooms.py', 'from sensor_msgs.msg import Image', 'node/ only'),
    ('node/mtan_node.py', 'def f():\n    from mtan_perception import training', 'import training'),
    ('cli/main.py', 'from mtan_perception.node.parameters import x', 'must not import node'),
    ('labels.py', 'import yaml', 'inside the function'),
    ('geometry.py', 'import torch', 'inside the function'),
    ('tasks.py', 'from mtan_perception.inference import Engine', 'must not import inference'),
    ('tasks.py', 'from . import labels', 'absolutely'),
    ('tasks.py', 'from math import *', 'name by name'),
])
def test_a_forbidden_import_is_found(module, source, fault):
    assert any(fault in found for found in faults(PACKAGE / module, source))


@pytest.mark.parametrize('module, source', [
    ('network/dilated_resnet.py', 'def f():\n    import torchvision'),
    ('labels.py', 'def f():\n    import yaml'),
    ('node/mtan_node.py', 'import cv2, rclpy\nfrom mtan_perception.inference import Engine'),
    ('training/trainer.py', 'from mtan_perception.synthetic import render'),
    ('cli/evaluate.py', 'def f():\n    from mtan_perception.node.live_moments import x'),
])
def test_an_allowed_import_passes(module, source):
    assert faults(PACKAGE / module, source) == []
