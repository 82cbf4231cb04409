# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan evaluate``: how good weights are, as figures, JSON and pictures."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
import math
from pathlib import Path
import sys
import time
from typing import Any

from mtan_perception.cli.arguments import (
    add_engine_options,
    build_engine,
    check_file,
    check_folder,
    parse_names,
    parse_path,
    parse_seeds,
)
from mtan_perception.labels import LabelSet, NYUV2_13
from mtan_perception.tasks import DEPTH, NYUV2_TASKS, SEGMENTATION
from mtan_perception.training.layouts import LAYOUTS

_EPILOG = """\
The images go through the engine of the node as 8-bit pictures, so the figures are those that a
user gets. Synthetic scenes are rendered at the input size of the weights. An output of another
size than the truth is resized to it: classes to the nearest pixel, depth and normals bilinearly.

Depth is learnt for one focal length f_card, which the weights record in pixels of the image that
the network sees. For a camera of focal length f, in the same pixels, it is compared as
  depth = depth_network * f / f_card
Where the data or the weights do not know it, depth is compared as it is.

Figures: IoU and accuracy from one confusion matrix over all frames, classes that occur nowhere
left out of the mean; depth over pixels with a true depth; angles over pixels with a true normal.
The worst frames are those with the greatest mean of the share of wrong pixels, the relative depth
error and the mean angle / 90 degrees.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``evaluate`` subcommand."""
    parser = subparsers.add_parser(
        'evaluate', help='measure how good weights are',
        description='Compare the outputs of weights with the truth: mean IoU, pixel accuracy, '
                    'depth error, angle of the normals, IoU of each class.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--data', choices=('synthetic', *LAYOUTS, 'folder'),
                      help='synthetic: rendered rooms, which need no file; folder: a data set '
                           'described in a YAML file; the others lie below --root')
    what.add_argument('--live', action='store_true',
                      help='the running graph: the topics of /mtan against the truth that '
                           '/camera publishes for its synthetic source (13 classes of NYUv2)')
    what.add_argument('--compare', nargs=2, type=Path, metavar=('A.json', 'B.json'),
                      help='two runs written with --json, side by side')
    parser.add_argument('--root', type=Path, metavar='PATH',
                        help='folder of the data set; of --data folder: the YAML file')
    parser.add_argument('--split', choices=('test', 'val', 'train'),
                        help='part of the data (default test)')
    parser.add_argument('--seeds', metavar='START:COUNT',
                        help='synthetic scenes, in place of --split')
    parser.add_argument('--limit', type=int, metavar='N', help='only the first N frames')
    add_engine_options(parser)
    parser.add_argument('--seconds', type=float, default=30.0,
                        help='how long to watch with --live (default %(default)g)')
    parser.add_argument('--json', type=parse_path, metavar='FILE', help='write the figures here')
    parser.add_argument('--pictures', type=parse_path, metavar='FOLDER',
                        help='write confusion_matrix.png, depth_error.png, normal_angle.png and '
                             'worst_frames.png here')


def run(args: argparse.Namespace) -> None:
    """Evaluate, or compare two evaluations, and print the outcome."""
    if args.compare:
        _compare(*args.compare)
        return
    if args.limit is not None and args.limit < 1:
        raise ValueError(f'--limit: {args.limit}; evaluate at least 1 frame')
    if args.json:
        check_file('--json', args.json)
    draw = None
    if args.pictures:
        check_folder('--pictures', args.pictures)
        # Before the work, as it needs OpenCV.
        from mtan_perception.training.evaluation_pictures import draw
    start = time.monotonic()
    evaluation, about, labels = (_watch if args.live else _evaluate)(args)
    about |= {'count': evaluation.count, 'tasks': list(evaluation.metrics),
              'classes': list(labels.names) if SEGMENTATION in evaluation.metrics else []}
    if DEPTH in evaluation.metrics:
        known = evaluation.depth_known()
        about['depth_known'] = None if math.isnan(known) else known
    about |= {'versions': _versions(), 'seconds': round(time.monotonic() - start, 1)}
    _finish(args, evaluation, about, labels, draw)


def _evaluate(args: argparse.Namespace):
    """Return the Evaluation of weights on data, what to say about it, and the classes."""
    from mtan_perception.labels import generic
    from mtan_perception.training.evaluation import choose_tasks, evaluate
    engine = build_engine(args)
    data = _open_synthetic(args, engine) if args.data == 'synthetic' else _open_dataset(args)
    wanted = parse_names(args.tasks)
    channels = choose_tasks(engine.card, data.tasks, data.labels, data.depth_unit, wanted)
    print(f"{data.about['data']}: {data.count} frames of "
          f"{'x'.join(map(str, data.about['image_size']))}; weights '{args.weights}' on "
          f'{engine.device} in {engine.precision} by {engine.backend}', flush=True)
    for task in [task for task in NYUV2_TASKS if task not in channels and not wanted]:
        owner = 'weights' if task not in engine.card.tasks else 'data'
        print(f'{task}: not judged, because the {owner} have none')
    if DEPTH in channels and engine.corrects_depth and not data.has_intrinsics:
        print('focal length of the data unknown: depth is compared as it is')
    progress = _Progress(data.count)
    try:
        evaluation = evaluate(engine, data.frames(channels), channels, progress)
    finally:
        progress.end()
        for fault in data.skipped:
            print(f'frame skipped: {fault}', file=sys.stderr)
    about = {'weights': args.weights, **data.about, 'skipped': len(data.skipped),
             'input_size': list(engine.input_size), 'device': engine.device,
             'precision': engine.precision, 'backend': engine.backend}
    if DEPTH in channels:
        about |= {'depth_unit': data.depth_unit,
                  'focal_length_corrected': data.has_intrinsics and engine.corrects_depth}
    return evaluation, about, data.labels or generic(channels.get(SEGMENTATION, 1))


@dataclass(frozen=True)
class _Data:
    """
    What is evaluated.

    `about` describes it in the report; `frames` makes the frames with the tasks that are judged,
    and fills `skipped` with what is wrong with those that are left out.
    """

    about: dict[str, Any]
    count: int
    tasks: Mapping[str, int]
    labels: LabelSet | None
    frames: Callable[[Iterable[str]], Iterable[tuple[str, Mapping]]]
    depth_unit: str = 'metre'
    has_intrinsics: bool = True
    skipped: list[str] = field(default_factory=list)


def _open_synthetic(args: argparse.Namespace, engine) -> _Data:
    from mtan_perception.training.evaluation import SPLIT_SEEDS, synthetic_frames
    if args.seeds and args.split:
        raise ValueError('--seeds and --split both choose the scenes; give one of them')
    if args.root:
        raise ValueError(f'--root: {args.root}; synthetic scenes lie in no folder')
    split = None if args.seeds else args.split or 'test'
    seeds = parse_seeds(args.seeds) if args.seeds else SPLIT_SEEDS[split]
    seeds = seeds[:args.limit]
    size = engine.card.input_size
    about = {'data': 'synthetic', 'split': split, 'seeds': f'{seeds.start}:{len(seeds)}',
             'image_size': list(size)}
    return _Data(about, len(seeds), NYUV2_TASKS, NYUV2_13,
                 lambda tasks: synthetic_frames(seeds, size, engine.device))


def _open_dataset(args: argparse.Namespace) -> _Data:
    from mtan_perception.training.datasets import open_dataset
    from mtan_perception.training.evaluation import dataset_frames
    if args.seeds:
        raise ValueError(f'--seeds: {args.seeds}; only synthetic scenes have seeds')
    if not args.root:
        raise ValueError(f'--data {args.data} needs --root: where does it lie?')
    source = args.data, args.root, args.split or 'test'
    wanted = parse_names(args.tasks)
    dataset = open_dataset(*source, wanted)
    skipped: list[str] = []
    about = {'data': args.data, 'root': str(args.root), 'split': dataset.split,
             'image_size': list(dataset.size)}
    return _Data(about, min(len(dataset), args.limit or len(dataset)), dataset.tasks,
                 dataset.labels,
                 # Opened anew, so that the files of no other task are read.
                 lambda tasks: dataset_frames(open_dataset(*source, tasks), args.limit, skipped),
                 dataset.depth_unit, dataset.focal_length is not None, skipped)


def _watch(args: argparse.Namespace):
    """Return the Evaluation of the running graph, what to say about it, and the classes."""
    try:
        from mtan_perception.node.live_moments import live_moments
    except ImportError as error:
        if error.name == 'cv2':
            raise
        raise ValueError(f'--live needs ROS 2: {error}; source its setup file first') from error
    from mtan_perception.tasks import select_tasks
    from mtan_perception.training.evaluation import Evaluation
    wanted = parse_names(args.tasks)
    tasks = select_tasks(NYUV2_TASKS if wanted is None else wanted, NYUV2_TASKS)
    print(f'watching the graph for {args.seconds:g} s from its first frame on', flush=True)
    evaluation = Evaluation({task: NYUV2_TASKS[task] for task in tasks})
    for moment in live_moments(tasks, args.seconds, args.limit):
        name = f'frame {evaluation.count}'
        evaluation.update(name, moment.image, moment.output, moment.truth)
        size = moment.output[tasks[0]].shape[:2]
    return evaluation, {'data': 'live', 'image_size': list(size)}, NYUV2_13


def _finish(args: argparse.Namespace, evaluation, about: dict[str, Any],
            labels: LabelSet | None, draw: Callable | None) -> None:
    from mtan_perception.training.report import make_report, table, write_report
    report = make_report(evaluation.result(), about)
    print(f'\n{table(report)}\n')
    known = about.get('depth_known')
    if known is not None and known < 1:
        print(f'Depth was predicted for {100 * known:.2f} % of the pixels that have a true one; '
              'its figures are those of these pixels.')
    skipped = f", {about['skipped']} skipped," if about.get('skipped') else ''
    print(f"{evaluation.count} frames{skipped} in {about['seconds']:g} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.json, report)
        print(f'{args.json}: figures')
    if draw is not None:
        from mtan_perception.cli.outputs import write_png
        for name, picture in draw(evaluation, labels, about.get('depth_unit', 'metre')).items():
            write_png(args.pictures / f'{name}.png', picture)
            print(f"{args.pictures / f'{name}.png'}")


def _compare(first: Path, second: Path) -> None:
    from mtan_perception.training.report import comparison
    reports = _read_report(first), _read_report(second)
    print(f'A  {first}\nB  {second}\n\n{comparison(*reports)}')


def _read_report(path: Path) -> dict[str, Any]:
    from mtan_perception.training.report import read_report
    try:
        return read_report(path)
    except OSError as error:
        raise ValueError(f'--compare: {path} cannot be read ({error.strerror}); give a file that '
                         'mtan evaluate wrote with --json') from error


def _versions() -> dict[str, str]:
    import numpy as np
    import torch

    from mtan_perception import __version__
    return {'mtan_perception': __version__, 'python': sys.version.split()[0],
            'torch': torch.__version__, 'numpy': np.__version__}


class _Progress:
    """Frames done, their rate and the time left: one line on a terminal, else every 10 s."""

    def __init__(self, total: int) -> None:
        self._total, self._start = total, time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = self._start

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else 10) and done < self._total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        left = (self._total - done) / rate
        text = f'{done}/{self._total} frames, {rate:.1f}/s, {_clock(left)} left'
        print(f'\r\x1b[K{text}' if self._terminal else text, end='' if self._terminal else '\n',
              file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._terminal:
            print('\r\x1b[K', end='', file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes}:{seconds:02}'
