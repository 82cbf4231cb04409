# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The style of every Python file: ruff, ament's flake8 and pep257, the licence header."""

from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('mtan_perception', 'launch', 'test')
FILES = [ROOT / 'setup.py'] + [
    path for name in FOLDERS for path in sorted((ROOT / name).rglob('*.py'))]
HEADER = ('# Copyright 2026 The mtan_perception authors\n'
          '# SPDX-License-Identifier: Apache-2.0\n')
PATHS = ('setup.py', *FOLDERS)


def check(*command: str) -> None:
    """Run a linter's module in a process of its own; fail with its output."""
    result = subprocess.run(
        [sys.executable, '-m', *command], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff():
    pytest.importorskip('ruff', reason='ruff comes with requirements/test.txt, not with ROS')
    check('ruff', 'check', '--no-cache', '--output-format', 'concise')


def test_ament_flake8():
    pytest.importorskip('ament_flake8', reason='ament_flake8 is not installed')
    check('ament_flake8.main', '--config', 'setup.cfg', *PATHS)


def test_ament_pep257():
    pytest.importorskip('ament_pep257', reason='ament_pep257 is not installed')
    # Missing docstrings, the imperative mood and capitals are left to ruff, which knows tests,
    # properties and abbreviations.
    ignored = ('D101', 'D102', 'D103', 'D105', 'D107', 'D401', 'D403')
    check('ament_pep257.main', '--convention', 'pep257', '--add-ignore', *ignored, '--', *PATHS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_licence_header(path):
    assert path.read_text(encoding='utf-8').startswith(HEADER)
