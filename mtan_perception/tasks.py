# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Name the tasks of a network and how many channels each one predicts."""

from collections.abc import Iterable, Mapping
import re

SEGMENTATION = 'segmentation'
DEPTH = 'depth'
NORMAL = 'normal'

NYUV2_TASKS = {SEGMENTATION: 13, DEPTH: 1, NORMAL: 3}

# A task's name becomes part of tensor, topic and parameter names, so it has to suit all of them.
_NAME = re.compile(r'[a-z][a-z0-9_]*')
_FIXED_CHANNELS = {DEPTH: 1, NORMAL: 3}


def parse_tasks(text: str) -> dict[str, int]:
    """
    Read ``segmentation:13,depth:1,normal:3`` into an ordered mapping name -> channels.

    Raise ValueError naming an entry that is malformed or doubled, and as ``check_tasks`` does.
    """
    tasks: dict[str, int] = {}
    for entry in text.split(','):
        name, _, channels = (part.strip() for part in entry.partition(':'))
        if not channels.isdecimal():
            raise ValueError(
                f'tasks: cannot read {entry!r}; write name:channels, '
                f'for example segmentation:13,depth:1,normal:3')
        if name in tasks:
            raise ValueError(f'tasks: {name!r} is listed twice; name each task once')
        tasks[name] = int(channels)
    check_tasks(tasks)
    return tasks


def check_tasks(tasks: Mapping[str, int]) -> None:
    """
    Raise ValueError naming a task whose name or number of channels cannot be.

    A name is lower-case letters, digits and underscores. Depth has 1 channel, normal has 3,
    segmentation at most 255, any other task at least 1.
    """
    if not tasks:
        raise ValueError('tasks: none given; name at least one, for example depth:1')
    for name, channels in tasks.items():
        if not _NAME.fullmatch(name):
            raise ValueError(
                f'tasks: {name!r} cannot name a task; use lower-case letters, digits and _')
        fixed = _FIXED_CHANNELS.get(name)
        if fixed is not None and channels != fixed:
            raise ValueError(f'tasks: {name} has {fixed} channel(s), not {channels}')
        if channels < 1:
            raise ValueError(f'tasks: {name} needs at least 1 channel, not {channels}')
        if name == SEGMENTATION and channels > 255:
            raise ValueError(f'tasks: segmentation has at most 255 classes '
                             f'(255 marks unlabelled), not {channels}')


def select_tasks(names: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """
    Return the wanted ``names`` in the order of ``available``, each once.

    Raise ValueError naming an unknown task and the choices.
    """
    wanted, choices = set(names), tuple(available)
    unknown = sorted(wanted.difference(choices))
    if unknown:
        raise ValueError(
            f'tasks: unknown {", ".join(map(repr, unknown))}; '
            f'this network has {", ".join(choices)}')
    return tuple(name for name in choices if name in wanted)
