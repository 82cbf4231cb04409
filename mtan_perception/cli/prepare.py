# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan prepare``: bring an official data set into the layout that training reads."""

import argparse
from pathlib import Path
import sys
import time

from mtan_perception.cli.arguments import parse_size

_LINE_SECONDS = 30.0


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``prepare`` subcommand."""
    parser = subparsers.add_parser(
        'prepare', help='make a data set from the official files',
        description='Make the npy layout of NYUv2 (image, 13 classes, metric depth, fitted '
                    'normals; the official split) from the official labelled file. The same '
                    'command goes on where an interrupted one stopped. Needs h5py, and scipy for '
                    'mapping files in the MATLAB 5 format.')
    parser.set_defaults(run=run)
    parser.add_argument('data', choices=('nyuv2',))
    parser.add_argument('--mat', required=True, type=Path, metavar='nyu_depth_v2_labeled.mat')
    parser.add_argument('--classes', required=True, type=Path, nargs='+', metavar='FILE.mat',
                        help='classMapping13.mat, or classMapping40.mat class13Mapping.mat')
    parser.add_argument('--out', required=True, type=Path, metavar='ROOT',
                        help='made if it does not exist')
    parser.add_argument('--size', default='288x384', metavar='HxW',
                        help='of the images (default %(default)s)')
    parser.add_argument('--splits', type=Path, metavar='FILE.mat',
                        help='with trainNdxs and testNdxs (default: the official split)')
    parser.add_argument('--depth', choices=('filled', 'measured'), default='filled',
                        help='where the sensor measured none: the official guess, or unknown '
                             '(default %(default)s)')


def run(args: argparse.Namespace) -> None:
    """Prepare, then check what was written."""
    from mtan_perception.training.datasets import check_dataset, open_dataset
    from mtan_perception.training.prepare import prepare_nyuv2
    progress = _Progress()
    try:
        counts = prepare_nyuv2(args.mat, args.classes, args.out, parse_size(args.size, '--size'),
                               args.splits, args.depth == 'measured', progress=progress)
    finally:
        progress.end()
    for folder, split in (('train', 'train'), ('val', 'test')):
        if counts[folder]:
            check_dataset(open_dataset('nyuv2', args.out, split))
    print(f'{args.out}: {counts["train"]} frames to train, {counts["val"]} to test (in val/)')


class _Progress:
    """A line that is written over on a terminal, and one every half minute in a log."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if not terminal and done < total and now - self._last < _LINE_SECONDS:
            return
        self._last = now
        left = (now - self._start) / done * (total - done)
        line = f'{done}/{total} frames, {int(left) // 60}:{int(left) % 60:02} left'
        print(f'\r{line}  ' if terminal else line, end='' if terminal else '\n',
              file=sys.stderr, flush=True)
        self._open = terminal

    def end(self) -> None:
        """Leave the line that is written over."""
        if self._open:
            print(file=sys.stderr)
