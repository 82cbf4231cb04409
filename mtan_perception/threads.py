# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How the threads of a forward pass behave toward everything else on the machine."""

import os
from pathlib import Path

_set: set[str] = set()
"""The variables that were not in the environment before."""


def share_cores() -> None:
    """
    Let OpenMP's threads sleep between two operations instead of spinning, and OpenCV have none.

    Spinning threads of two processes on the same cores wait for each other: on two shared cores a
    frame then takes ten times as long. OpenCV's spin for about a millisecond after each operation
    that it divides, most of which take less. Call it before torch and OpenCV are imported; what
    the environment says already is left alone.
    """
    for name, value in (('OMP_WAIT_POLICY', 'PASSIVE'), ('OPENCV_FOR_THREADS_NUM', '1')):
        if name not in os.environ:
            os.environ[name] = value
            _set.add(name)


def environment_before() -> dict[str, str]:
    """Return the environment without what `share_cores` has added to it."""
    return {name: value for name, value in os.environ.items() if name not in _set}


def compute_threads() -> int:
    """Return how many threads to compute with: $OMP_NUM_THREADS, else one for each usable core."""
    wanted = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0]
    return int(wanted) if wanted.isdecimal() and int(wanted) else _count_cores()


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
