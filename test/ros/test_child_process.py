# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a child process of the demo, the benchmark and the tests finds in its environment."""

from pathlib import Path
import re

import pytest
import rclpy


@pytest.mark.skipif('fastrtps' not in rclpy.get_rmw_implementation_identifier(),
                    reason='the profile is for Fast DDS')
def test_fast_dds_reads_the_profile(start_process):
    """Each version reads another variable; without the profile images do not fit."""
    child = start_process('mtan_perception.node.mtan_node', '--ros-args', '-p', 'autostart:=false')
    assert child.wait_for_line('unconfigured', 60)
    maps = Path(f'/proc/{child.pid}/maps').read_text()
    sizes = [int(end, 16) - int(start, 16) for start, end in re.findall(
        r'^([0-9a-f]+)-([0-9a-f]+) .* /dev/shm/fast', maps, re.MULTILINE)]
    assert max(sizes) >= 32 << 20
