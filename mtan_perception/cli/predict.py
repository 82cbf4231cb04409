# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan predict``: run the network on image files and write what it sees."""

import argparse
from collections.abc import Iterator
import math
from pathlib import Path
import sys

import numpy as np

from mtan_perception.cli.arguments import add_engine_options, build_engine, parse_names
from mtan_perception.cli.png import write_png
from mtan_perception.files import read_picture
from mtan_perception.tasks import DEPTH

# More rows than this would make a sheet that no viewer opens with pleasure.
_SHEET_ROWS = 12


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``predict`` subcommand."""
    parser = subparsers.add_parser(
        'predict', help='run the network on images',
        description='Run the network on images. For NAME.jpg it writes NAME_mask.png (class '
                    'ids, 255 = unlabelled), NAME_confidence.png (0..255), NAME_overlay.png, '
                    'NAME_depth.png, NAME_depth.npy (metres, NaN = unknown), NAME_normal.png and '
                    'NAME_normal.npy (unit vectors: x right, y down, z forward); and '
                    f'contact_sheet.png with the first {_SHEET_ROWS} images.')
    parser.set_defaults(run=run)
    parser.add_argument('images', type=Path, nargs='+', metavar='IMAGE')
    parser.add_argument('--out', required=True, type=Path, metavar='FOLDER',
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
    from mtan_perception.visualization import contact_sheet
    _check_names(args.images)
    engine = build_engine(args, parse_names(args.tasks))
    engine.depth_range = args.depth_range
    _check_focal_length(args.focal_length, engine)
    _make_folder(args.out)
    for remark in _remarks(engine, args.focal_length):
        print(f'mtan predict: {remark}', file=sys.stderr)
    rows, unreadable = [], []
    remark = f' by {engine.backend}, the building of the model included'
    for path in args.images:
        image = _read_image(path)
        if image is None:
            unreadable.append(f'{path} ({_fault(path)})')
            continue
        prediction = engine.infer(image, focal_length=args.focal_length)
        pictures = _pictures(prediction, engine)
        _write_outputs(args.out / path.stem, prediction, pictures)
        if len(rows) < _SHEET_ROWS:
            captions = {'depth': f'depth {args.depth_range[0]:g}-{args.depth_range[1]:g} m'}
            rows.append([(path.name, prediction.image), *(
                (captions.get(name, name), picture) for name, picture in pictures.items())])
        milliseconds = 1000 * sum(prediction.timings.values())
        height, width = prediction.image.shape[:2]
        print(f'{path}: {height}x{width}, {milliseconds:.0f} ms{remark}')
        remark = ''
    if rows:
        write_png(args.out / 'contact_sheet.png', contact_sheet(rows, engine.card.labels))
        print(f"{args.out / 'contact_sheet.png'}: {len(rows)} of {len(args.images)} images")
    if unreadable:
        raise ValueError(f'{len(unreadable)} of {len(args.images)} could not be read as images: '
                         f"{', '.join(unreadable)}")


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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f'--out: {path} is a file; give a folder') from None
    except OSError as error:
        raise ValueError(f'--out: {path} cannot be made ({error.strerror}); give a folder that '
                         'you may write to') from None


def _fault(path: Path) -> str:
    """Return why a path is no image."""
    if path.is_dir():
        return 'a folder: name its images'
    if not path.exists():
        return 'no such file'
    return 'damaged, or no image that OpenCV can read'


def _check_names(paths: list[Path]) -> None:
    """Raise ValueError if the outputs of two images would overwrite each other."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(f'{other} and {path} would both be written to {path.stem}_*; '
                             'predict them into different folders')


def _check_focal_length(focal_length: float | None, engine) -> None:
    """Raise ValueError if depth cannot be corrected by it."""
    if focal_length is None:
        return
    if not 0 < focal_length < math.inf:
        raise ValueError(f'--focal-length: {focal_length:g}; give it in pixels, above 0')
    if not engine.corrects_depth:
        raise ValueError('--focal-length: these weights do not say which camera their depth is '
                         'for (mtan info); leave it out')


def _read_image(path: Path) -> np.ndarray | None:
    """Return (H, W, 3) uint8 RGB, turned upright as its EXIF says, or None."""
    image = read_picture(path)
    return None if image is None else image[..., ::-1]


def _pictures(prediction, engine) -> dict[str, np.ndarray]:
    """Return a picture for each output of the prediction, by the name of its file."""
    from mtan_perception.visualization import color_depth, color_normal, overlay
    pictures = {}
    if prediction.label is not None:
        palette = engine.card.labels.palette
        pictures['overlay'] = overlay(prediction.image, prediction.label, palette)
    if prediction.depth is not None:
        pictures['depth'] = color_depth(prediction.depth, *engine.depth_range)
    if prediction.normal is not None:
        pictures['normal'] = color_normal(prediction.normal)
    return pictures


def _write_outputs(stem: Path, prediction, pictures: dict[str, np.ndarray]) -> None:
    for name, picture in pictures.items():
        write_png(stem.with_name(f'{stem.name}_{name}.png'), picture)
    if prediction.label is not None:
        write_png(stem.with_name(f'{stem.name}_mask.png'), prediction.label)
        write_png(stem.with_name(f'{stem.name}_confidence.png'), prediction.confidence)
    for name in ('depth', 'normal'):
        array = getattr(prediction, name)
        if array is not None:
            np.save(stem.with_name(f'{stem.name}_{name}.npy'), array)
