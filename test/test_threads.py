# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node's threads leave to other processes on the same cores."""

import math
import os
import subprocess
import sys

import pytest

from mtan_perception.threads import (
    _count_cores,
    _cpu_quota,
    compute_threads,
    environment_before,
    share_cores,
)

SCRIPT = """
from mtan_perception.threads import share_cores
share_cores()
import os, time
import cv2, numpy as np, torch
torch.set_num_threads(2)  # whatever the machine has
pixels = np.zeros((480, 640, 3), np.uint8)
def use():
    torch.ones(1 << 20).add_(1).sum()
    cv2.cvtColor(cv2.addWeighted(pixels, 0.5, pixels, 0.5, 0), cv2.COLOR_RGB2BGR)
def cpu_of_others():
    return time.process_time() - time.thread_time()
use()
before = cpu_of_others()
for _ in range(20):
    use()
    time.sleep(0.02)
from mtan_perception.threads import environment_before
print(cv2.getNumThreads(), os.environ['OMP_WAIT_POLICY'], 1000 * (cpu_of_others() - before) / 20,
      environment_before().get('OMP_WAIT_POLICY'))
"""


def run(**environment: str) -> tuple[int, str, float, str]:
    names = 'OMP_WAIT_POLICY', 'OPENCV_FOR_THREADS_NUM', 'GOMP_SPINCOUNT'
    clean = {name: value for name, value in os.environ.items() if name not in names}
    output = subprocess.run([sys.executable, '-c', SCRIPT], env={**clean, **environment},
                            capture_output=True, text=True, timeout=120, check=True).stdout
    threads, policy, milliseconds, before = output.split()
    return int(threads), policy, float(milliseconds), before


def test_other_threads_sleep_between_operations():
    threads, policy, milliseconds, before = run()
    assert threads == 1
    assert policy == 'PASSIVE' and before == 'None'
    assert milliseconds < 2.0  # each of 20 times; spinning ones take 3 to 9


def test_what_the_environment_says_is_left_alone():
    threads, policy, _, before = run(OPENCV_FOR_THREADS_NUM='2', OMP_WAIT_POLICY='ACTIVE')
    assert (threads, policy, before) == (2, 'ACTIVE', 'ACTIVE')


@pytest.mark.parametrize('wanted, found', [('3', 3), ('5,2', 5), ('', 2), ('0', 2), ('many', 2)])
def test_threads_to_compute_with(wanted, found, monkeypatch):
    """What the environment asks for, if it is a number of threads."""
    monkeypatch.setenv('OMP_NUM_THREADS', wanted)
    monkeypatch.setattr('mtan_perception.threads._count_cores', lambda: 2)
    monkeypatch.setattr('mtan_perception.threads._cpu_quota', lambda: math.inf)
    assert compute_threads() == found


@pytest.mark.parametrize('quota, found', [
    (0.5, 1), (1.2, 2), (2, 2), (9, 4), (math.inf, 4)])
def test_no_more_threads_than_a_quota_keeps_busy(quota, found, monkeypatch):
    """On four cores; OpenMP is told only where there are more of them than that."""
    monkeypatch.setattr('mtan_perception.threads._count_cores', lambda: 4)
    monkeypatch.setattr('mtan_perception.threads._cpu_quota', lambda: quota)
    monkeypatch.setattr('mtan_perception.threads._set', set())
    for name in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'OPENCV_FOR_THREADS_NUM'):
        monkeypatch.setenv(name, '')  # so that it is put back
        monkeypatch.delenv(name)
    assert compute_threads() == found
    share_cores()
    assert os.environ.get('OMP_NUM_THREADS') == (str(found) if found < 4 else None)
    assert 'OMP_NUM_THREADS' not in environment_before()


@pytest.mark.parametrize('own, files, quota', [
    ('0::/', {'cpu.max': '200000 100000'}, 2),  # in a container, which sees itself alone
    ('0::/', {'cpu.max': 'max 100000'}, math.inf),
    ('0::/', {}, math.inf),
    ('0::/user/robot', {'user/cpu.max': '150000 100000', 'user/robot/cpu.max': '400000 100000'},
     1.5),  # what holds above holds below
    ('0::/host/only', {'cpu.max': '300000 100000'}, 3),
    ('0::/../other', {'cpu.max': '300000 100000'}, 3),
    ('12:memory:/a\n4:cpu,cpuacct:/a\n0::/',
     {'cpu/a/cpu.cfs_quota_us': '250000', 'cpu/a/cpu.cfs_period_us': '100000',
      'memory/a/cpu.max': '1 100000'}, 2.5),
    ('4:cpu:/a', {'cpu/a/cpu.cfs_quota_us': '-1', 'cpu/a/cpu.cfs_period_us': '100000'}, math.inf),
])
def test_the_quota_of_control_groups(own, files, quota, tmp_path):
    (tmp_path / 'own').write_text(own + '\n')
    for name, text in files.items():
        path = tmp_path / 'mount' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n')
    assert _cpu_quota(tmp_path / 'own', tmp_path / 'mount') == quota
    assert _cpu_quota(tmp_path / 'nowhere', tmp_path / 'mount') == math.inf


def test_a_core_counts_once(tmp_path, monkeypatch):
    """Of two cores with two processors each, three of which may be used; without such files."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 2}, raising=False)
    for processor, core in enumerate(('0,2', '1,3', '0,2', '1,3')):
        folder = tmp_path / f'cpu{processor}' / 'topology'
        folder.mkdir(parents=True)
        (folder / 'core_cpus_list').write_text(f'{core}\n')
    assert _count_cores(tmp_path) == 2
    assert _count_cores(tmp_path / 'nowhere') == 3
