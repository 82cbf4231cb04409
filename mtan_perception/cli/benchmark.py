# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan benchmark``: how fast the network is here, next to the original."""

import argparse
from itertools import combinations
import json
from pathlib import Path
import sys
import tempfile

from mtan_perception.cli.arguments import parse_size
from mtan_perception.tasks import NYUV2_TASKS

_SIZES = '288x384,480x640'
# The compilers take minutes on a CPU: ours is left to who asks for it.
_LEFT_OUT = ('ours/compile',)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``benchmark`` subcommand."""
    parser = subparsers.add_parser(
        'benchmark', help='measure speed, memory and agreement with the original',
        description='Run the network on ResNet-50 with random weights, each contender in a '
                    'process of its own, one after the other in each round: the straight '
                    'transcription of the original in several runtimes, and each backend of '
                    'ours, post-processing included; then each subset of the tasks in the '
                    'fastest of ours. Medians and spread, time to the first result, peak '
                    'memory, agreement with the original in eager fp32.')
    parser.set_defaults(run=run)
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--precision', default='auto', choices=('auto', 'fp32', 'fp16', 'bf16'),
                        help='of ours: auto is fp16 on CUDA and fp32 on a CPU')
    parser.add_argument('--sizes', default=_SIZES, metavar='HxW,...', help='(default %(default)s)')
    parser.add_argument('--contenders', metavar='NAME,...',
                        help='by default all that can run, without ours/compile')
    parser.add_argument('--rounds', type=int, default=5,
                        help='at the first size; half as many at others (default %(default)s)')
    parser.add_argument('--patience', type=float, default=150, metavar='SECONDS',
                        help='give up on what takes longer to build (default %(default)s)')
    parser.add_argument('--quick', action='store_true',
                        help='one small size, two rounds and no subsets: to see that it runs')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the measurements too')


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    from mtan_perception.inference.benchmark import comparison
    from mtan_perception.inference.benchmark.contenders import CONTENDERS
    from mtan_perception.inference.engine import choose_device
    sizes = [parse_size(text, '--sizes')
             for text in ('96x128' if args.quick else args.sizes).split(',')]
    for size in sizes:
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f'--sizes: {size[0]}x{size[1]}; the original takes multiples of 8')
    names = [name for name in CONTENDERS if name not in _LEFT_OUT]
    if args.contenders:
        names = args.contenders.split(',')
        for name in names:
            if name not in CONTENDERS:
                raise ValueError(f'--contenders: {name!r}; choose of {", ".join(CONTENDERS)}')
    elif args.quick:
        names.remove('original/compile')
    rounds = 2 if args.quick else args.rounds
    if rounds < 1:
        raise ValueError(f'--rounds: {args.rounds}; give at least 1')
    device = str(choose_device(args.device))
    precision = args.precision
    if precision == 'auto':
        precision = 'fp32' if device == 'cpu' else 'fp16'

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    everything, results, processes = tuple(NYUV2_TASKS), [], {}
    with tempfile.TemporaryDirectory(prefix='mtan-benchmark-') as folder:
        folder = Path(folder)
        say('writing random weights ...')
        comparison.write_weights(folder)
        try:
            for size in sizes:
                image = _image(*size)
                # What failed would fail again, and compiling for another size takes as long again.
                able = [name for name in names if name not in
                        {result.contender for result in results if result.problem}
                        and not (results and name == 'original/compile')]
                results += comparison.measure(
                    able, folder, image, everything, processes,
                    rounds if size == sizes[0] else (rounds + 1) // 2, device, precision, say,
                    args.patience)
                fastest = _fastest_of_ours(results)
                if size == sizes[0] and fastest and not args.quick:
                    for tasks in _true_subsets():
                        results += comparison.measure([fastest], folder, image, tasks, processes,
                                                      rounds, device, precision, say,
                                                      args.patience)
        finally:
            comparison.close(processes)
    extra = {}
    if device != 'cpu':
        extra['floors'] = {f'{height}x{width}': comparison.floors(
            device, (height, width), everything) for height, width in sizes}
    report = comparison.report(results, _image(*sizes[0]), device, precision, extra)
    print(comparison.table(results))
    print(f"\n{json.dumps({'host': report['host'], 'versions': report['versions'], **extra})}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')
        print(f'{args.json}: {len(results)} measurements')


def _fastest_of_ours(results) -> str | None:
    ours = [result for result in results
            if result.contender.startswith('ours/') and result.seconds]
    return min(ours, key=lambda result: result.median).contender if ours else None


def _true_subsets() -> list[tuple[str, ...]]:
    return [tasks for count in (1, 2) for tasks in combinations(NYUV2_TASKS, count)]


def _image(height: int, width: int):
    """Return a rendered room as the network's input, (1, 3, height, width) float32."""
    import numpy as np

    from mtan_perception.checkpoint import IMAGENET_MEAN, IMAGENET_STD
    from mtan_perception.synthetic import render
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1)
                 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (render([0], height, width).rgb.numpy() - mean) / std
