# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The programs' help."""

import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from mtan_perception.node import camera_node, parameters
from mtan_perception.node.process import describe


@pytest.mark.parametrize('program, names', [
    ('mtan_node', parameters.SPECIFICATIONS), ('camera_node', camera_node.PARAMETERS)])
def test_help_names_every_parameter_and_starts_nothing(program, names):
    """With its default, what it does, and its range."""
    result = subprocess.run([sys.executable, '-m', f'mtan_perception.node.{program}', '--help'],
                            capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith(f'usage: {program} --ros-args ') and not result.stderr
    assert all(f'\n  {name}: ' in result.stdout for name in names)


def test_help_has_defaults_and_ranges():
    text = describe('mtan_node', parameters.declarations())
    assert '  input_height: 288\n' in text and '; 32 to 4096' in text.replace('\n      ', ' ')
    assert 'one of auto, fp32, fp16, bf16' in text.replace('\n      ', ' ')
