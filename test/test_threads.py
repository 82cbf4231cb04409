# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node's threads leave to other processes on the same cores."""

import os
import subprocess
import sys

import pytest

from mtan_perception.threads import _count_cores, compute_threads

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
    assert milliseconds < 1.0  # each of 20 times; spinning ones take 3 to 9


def test_what_the_environment_says_is_left_alone():
    threads, policy, _, before = run(OPENCV_FOR_THREADS_NUM='2', OMP_WAIT_POLICY='ACTIVE')
    assert (threads, policy, before) == (2, 'ACTIVE', 'ACTIVE')


@pytest.mark.parametrize('wanted, found', [('3', 3), ('5,2', 5), ('', 2), ('0', 2), ('many', 2)])
def test_threads_to_compute_with(wanted, found, monkeypatch):
    """What the environment asks for, if it is a number of threads."""
    monkeypatch.setenv('OMP_NUM_THREADS', wanted)
    monkeypatch.setattr('mtan_perception.threads._count_cores', lambda: 2)
    assert compute_threads() == found


def test_a_core_counts_once(tmp_path, monkeypatch):
    """Of two cores with two processors each, three of which may be used; without such files."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 2}, raising=False)
    for processor, core in enumerate(('0,2', '1,3', '0,2', '1,3')):
        folder = tmp_path / f'cpu{processor}' / 'topology'
        folder.mkdir(parents=True)
        (folder / 'core_cpus_list').write_text(f'{core}\n')
    assert _count_cores(tmp_path) == 2
    assert _count_cores(tmp_path / 'nowhere') == 3
