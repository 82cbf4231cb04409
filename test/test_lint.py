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
PATHS = [str(ROOT / 'setup.py'), *(str(ROOT / name) for name in FOLDERS)]


def test_ruff():
    pytest.importorskip('ruff', reason='ruff comes with requirements/test.txt, not with ROS')
    result = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise'],
        cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ament_flake8():
    pytest.importorskip('ament_flake8', reason='ament_flake8 is not installed')
    from ament_flake8.main import main_with_errors
    code, errors = main_with_errors(argv=['--config', str(ROOT / 'setup.cfg'), *PATHS])
    assert code == 0, '\n'.join(errors)


def test_ament_pep257(capsys):
    pytest.importorskip('ament_pep257', reason='ament_pep257 is not installed')
    from ament_pep257.main import main
    # Missing docstrings and the imperative mood are left to ruff: it knows tests and properties.
    code = main(argv=[
        '--convention', 'pep257',
        '--add-ignore', 'D101', 'D102', 'D103', 'D105', 'D107', 'D401', '--', *PATHS])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_licence_header(path):
    assert path.read_text(encoding='utf-8').startswith(HEADER)
