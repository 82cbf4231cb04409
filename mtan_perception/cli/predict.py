# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan predict``: run the network on image files and write what it sees."""

import argparse
from collections.abc import Iterable, Iterator
import math
from pathlib import Path
import sys

import numpy as np

from mtan_perception.cli.arguments import (
    add_engine_options,
    build_engine,
    check_folder,
    parse_names,
    parse_path,
)
from mtan_perception.cli.outputs import write_npy, write_png
from mtan_perception.cli.predict_inputs import (
    check_inputs_stay,
    check_stems,
    fault_of,
    list_images,
    SUFFIXES,
)
from mtan_perception.cli.remarks import size_remarks
from mtan_perception.files import read_picture
from mtan_perception.tasks import DEPTH

# What is written for an image, after its name and an underscore.
_OUTPUTS = ('mask.png', 'confidence.png', 'overlay.png', 'depth.png', 'depth.npy', 'normal.png',
            'normal.npy')
_SHEET = 'contact_sheet.png'
# More rows than this would make a sheet that no viewer opens with pleasure.
_SHEET_ROWS = 12


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``predict`` subcommand."""
    parser = subparsers.add_parser(
        'predict', help='run the network on images',
        description='Run the network on images. For NAME.jpg it writes NAME_mask.png (class '
                    'ids, 255 = unlabelled), NAME_confidence.png (0..255), NAME_overlay.png, '
                    'NAME_depth.png (near is warm, over the range of this image), NAME_depth.npy '
                    '(metres, NaN = unknown), NAME_normal.png and NAME_normal.npy (unit vectors: '
                    'x right, y down, z forward), and removes those of an earlier run that it '
                    f'does not write again, unless the image lies there too; and {_SHEET} '
                    f'with the first {_SHEET_ROWS} images.')
    parser.set_defaults(run=run)
    parser.add_argument('images', type=parse_path, nargs='+', metavar='IMAGE',
                        help=f'a file, or a folder for all its images ({SUFFIXES})')
    parser.add_argument('--out', required=True, type=parse_path, metavar='FOLDER',
                        help='made if it does not exist')
    add_engine_options(parser)
    parser.add_argument('--depth-range', nargs=2, type=float, default=(0.1, 10.0),
                        metavar=('MIN', 'MAX'),
                        help='depth outside is unknown, in metres (default 0.1 10)')
    parser.add_argument('--focal-length', type=float, metavar='PIXELS',
                        help="the camera's, at the size of the images; without it depth is that "
                             'of the camera that the weights were trained for')


def run(args: argparse.Namespace) -> None:
    """Predict and write each image; raise ValueError at the end for those that are no images."""
    from mtan_perception.visualization import contact_sheet  # first: it needs OpenCV
    paths = list_images(args.images)
    check_stems(paths)
    check_inputs_stay(paths, [args.out / _SHEET, *(
        output for path in paths for output in _outputs_of(args.out, path.stem))])
    faults = {path: fault_of(path) for path in paths}
    if all(faults.values()):
        _check_read(faults)
    check_folder('--out', args.out)
    engine = build_engine(args, parse_names(args.tasks))
    engine.depth_range = args.depth_range
    _check_focal_length(args.focal_length, engine)
    for remark in _remarks(engine, args.focal_length):
        print(f'mtan predict: {remark}', file=sys.stderr)
    rows = _predict(args, engine, faults)
    if rows:
        write_png(args.out / _SHEET, contact_sheet(rows, engine.card.labels))
        print(f'{args.out / _SHEET}: {len(rows)} of {len(faults)} images')
    _check_read(faults)


def _predict(args: argparse.Namespace, engine, faults: dict[Path, str | None]
             ) -> list[list[tuple[str, np.ndarray]]]:
    """
    Write what the images without a fault show, and return the rows of the contact sheet.

    The fault of an image that turns out to be none is added to `faults`.
    """
    rows = []
    keeps_others = args.out.resolve() in {path.parent.resolve() for path in faults}
    remark = f' by {engine.backend}, the building of the model included'
    for path in [path for path, fault in faults.items() if fault is None]:
        image = read_picture(path)
        if image is None:
            faults[path] = 'damaged, or no image that OpenCV can read'
            continue
        prediction = engine.infer(image[..., ::-1], focal_length=args.focal_length)
        pictures = _pictures(prediction, engine)
        if not keeps_others:
            _remove(_outputs_of(args.out, path.stem))
        _write_outputs(args.out / path.stem, prediction, pictures)
        if len(rows) < _SHEET_ROWS:
            rows.append([(path.name, prediction.image), *pictures.values()])
        milliseconds = 1000 * sum(prediction.timings.values())
        height, width = prediction.image.shape[:2]
        print(f'{path}: {height}x{width}, {milliseconds:.0f} ms{remark}')
        remark = ''
    return rows


def _remarks(engine, focal_length: float | None) -> Iterator[str]:
    """Yield what to know about the outputs to come."""
    if engine.card.is_synthetic:
        yield 'these weights know rendered rooms only: expect little of photographs'
    if DEPTH in engine.tasks and engine.card.depth_unit != 'metre':
        yield 'depth is inverse, without unit: larger is nearer, and --depth-range is of that'
    if focal_length is None and DEPTH in engine.tasks and engine.corrects_depth:
        height, width = engine.input_size
        yield (f'depth is that of a camera with a focal length of {engine.card.focal_length:g} '
               f'pixels at {height}x{width}; with --focal-length it is that of yours')
    yield from size_remarks(engine.card, engine.tasks, engine.input_size)


def _check_read(faults: dict[Path, str | None]) -> None:
    """Raise ValueError naming what could not be read, and why."""
    unreadable = [f'{path} ({fault})' for path, fault in faults.items() if fault]
    if unreadable:
        raise ValueError(f'{len(unreadable)} of {len(faults)} could not be read as images: '
                         f"{', '.join(unreadable)}")


def _check_focal_length(focal_length: float | None, engine) -> None:
    """Raise ValueError if depth cannot be corrected by it."""
    if focal_length is None:
        return
    if not 0 < focal_length < math.inf:
        raise ValueError(f'--focal-length: {focal_length:g}; give it in pixels, above 0')
    if engine.card.depth_unit != 'metre':
        raise ValueError('--focal-length: the depth of these weights is inverse, which it does '
                         'not correct; leave it out')
    if not engine.corrects_depth:
        raise ValueError('--focal-length: these weights do not say which camera their depth is '
                         'for (mtan info); leave it out')


def _pictures(prediction, engine) -> dict[str, tuple[str, np.ndarray]]:
    """Return caption and picture of each output of the prediction, by the name of its file."""
    from mtan_perception.visualization import color_depth, color_normal, depth_range, overlay
    pictures = {}
    if prediction.label is not None:
        palette = engine.card.labels.palette
        pictures['overlay'] = 'overlay', overlay(prediction.image, prediction.label, palette)
    if prediction.depth is not None:
        near, far = depth_range(prediction.depth)
        unit = ' m' if engine.card.depth_unit == 'metre' else ''
        pictures['depth'] = (f'depth {near:.1f}-{far:.1f}{unit}',
                             color_depth(prediction.depth, near, far))
    if prediction.normal is not None:
        pictures['normal'] = 'normal', color_normal(prediction.normal)
    return pictures


def _outputs_of(folder: Path, stem: str) -> list[Path]:
    """Return every file that may be written for an image of this name."""
    return [folder / f'{stem}_{name}' for name in _OUTPUTS]


def _remove(paths: Iterable[Path]) -> None:
    """Remove what an earlier run wrote: it may be of tasks that are not written now."""
    for path in paths:
        path.unlink(missing_ok=True)


def _write_outputs(stem: Path, prediction, pictures: dict[str, tuple[str, np.ndarray]]) -> None:
    for name, (_, picture) in pictures.items():
        write_png(stem.with_name(f'{stem.name}_{name}.png'), picture)
    if prediction.label is not None:
        write_png(stem.with_name(f'{stem.name}_mask.png'), prediction.label)
        write_png(stem.with_name(f'{stem.name}_confidence.png'), prediction.confidence)
    for name in ('depth', 'normal'):
        array = getattr(prediction, name)
        if array is not None:
            write_npy(stem.with_name(f'{stem.name}_{name}.npy'), array)
