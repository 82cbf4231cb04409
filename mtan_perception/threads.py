# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How the threads of a forward pass behave toward everything else on the machine."""

import math
import os
from pathlib import Path

_set: set[str] = set()
"""The variables that were not in the environment before."""


def share_cores() -> None:
    """
    Let OpenMP's threads sleep between two operations instead of spinning, and OpenCV have none.

    Spinning threads of two processes on the same cores wait for each other: on two shared cores a
    frame then takes ten times as long. OpenCV's spin for about a millisecond after each operation
    that it divides, most of which take less. Where a container's quota allows less than there
    are cores, OpenMP has that many threads: more would use it up, and all stand still until the
    next. Call it before torch and OpenCV are imported; what the environment says already is left
    alone.
    """
    values = {'OMP_WAIT_POLICY': 'PASSIVE', 'OPENCV_FOR_THREADS_NUM': '1'}
    if usable_cores() < _count_cores():
        values['OMP_NUM_THREADS'] = str(usable_cores())
    for name, value in values.items():
        if name not in os.environ:
            os.environ[name] = value
            _set.add(name)


def environment_before() -> dict[str, str]:
    """Return the environment without what `share_cores` has added to it."""
    return {name: value for name, value in os.environ.items() if name not in _set}


def compute_threads() -> int:
    """Return how many threads to compute with: $OMP_NUM_THREADS, else one for each usable core."""
    wanted = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0]
    return int(wanted) if wanted.isdecimal() and int(wanted) else usable_cores()


def usable_cores() -> int:
    """Return the cores that this process may use, or that a container's quota keeps busy."""
    # Rounded up: of a quota of 1.25 two threads make more than one does.
    return max(1, math.ceil(min(_count_cores(), _cpu_quota())))


def _count_cores(topology: Path = Path('/sys/devices/system/cpu')) -> int:
    """Return the cores that this process may use, one where two processors share it."""
    usable = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(
        os.cpu_count() or 1)
    cores = set()
    for processor in usable:
        try:
            cores.add((topology / f'cpu{processor}/topology/core_cpus_list').read_text())
        except OSError:  # outside Linux
            cores.add(str(processor))
    return len(cores)


def _cpu_quota(own: Path = Path('/proc/self/cgroup'), mount: Path = Path('/sys/fs/cgroup')
               ) -> float:
    """
    Return how many processors' time this process may use, infinity without a limit.

    Linux's control groups say so, each for all below it: version 2's, or version 1's of cpu.
    """
    quota = math.inf
    try:
        entries = [line.split(':', 2) for line in own.read_text().splitlines()]
    except OSError:  # outside Linux
        return quota
    for _, controllers, path in entries:
        if controllers and 'cpu' not in controllers.split(','):
            continue
        root = mount / ('cpu' if controllers else '')  # however its folder is called, a link is
        group = root / path.lstrip('/')
        for folder in (group, *group.parents):
            quota = min(quota, _quota_of(folder))
            if folder == root:
                break
    return quota


def _quota_of(group: Path) -> float:
    for names in (('cpu.max',), ('cpu.cfs_quota_us', 'cpu.cfs_period_us')):
        try:
            limit, period = ' '.join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):  # another version's, or nothing is limited here
            continue
        if limit not in ('max', '-1'):
            return int(limit) / int(period)
    return math.inf
