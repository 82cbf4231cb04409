# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several subcommands read in the same way."""

import argparse
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtan_perception.inference import Engine


def parse_size(text: str, option: str = '--input-size') -> tuple[int, int]:
    """Read ``288x384``, the value of `option`, as (height, width) in pixels."""
    height, _, width = text.partition('x')
    if not all(length.isdecimal() and int(length) for length in (height, width)):
        raise ValueError(f'{option}: {text!r}; write HEIGHTxWIDTH, for example 288x384')
    from mtan_perception.geometry import INPUT_LIMITS  # and numpy
    size, most = (int(height), int(width)), INPUT_LIMITS[1]
    if max(size) > most:
        raise ValueError(f'{option}: {text}; height and width must be at most {most} pixels')
    return size


def parse_seeds(text: str) -> range:
    """Read ``0:100``, the value of --seeds, as a start and a count."""
    start, _, count = text.partition(':')
    if not (start.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError(f'--seeds: {text!r}; write START:COUNT, at least one, for '
                         'example 0:100')
    return range(int(start), int(start) + int(count))


def parse_names(text: str | None) -> list[str] | None:
    """Read ``depth,normal``, the value of --tasks; None where it was not given."""
    return None if text is None else text.split(',')


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `build_engine`, and --tasks."""
    parser.add_argument('--weights', default='default', metavar='W.safetensors',
                        help='a weights file, default or random (default %(default)s)')
    parser.add_argument('--tasks', metavar='NAME,...',
                        help='of segmentation, depth and normal; by default all')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--precision', default='auto', help='auto, fp32, fp16 or bf16')
    parser.add_argument('--backend', default='auto',
                        help='what runs the network: auto, torch, triton, compile, openvino or '
                             'onnxruntime')
    parser.add_argument('--input-size', metavar='HxW',
                        help='size to fit the image into; by default that of the weights')


def build_engine(args: argparse.Namespace, tasks: list[str] | None = None) -> 'Engine':
    """Return the engine that the options describe, for the tasks or for all."""
    from mtan_perception.inference import Engine
    return Engine(args.weights, args.device, args.precision, tasks,
                  parse_size(args.input_size) if args.input_size else None, args.backend)


def parse_path(text: str) -> Path:
    """Read a path; nothing at all, as an unset variable of a shell gives, is none."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path; give one, . for the present folder")
    return Path(text)


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueError where a folder cannot be written or made: before the work, not after it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f'{option}: cannot write to {folder}, because {existing} is not a '
                         f'folder that may be written to ({error.strerror}); give another one'
                         ) from error


def check_suffix(option: str, path: Path, suffix: str, what: str) -> None:
    """Raise ValueError where the name of a file to write does not end as `what` does."""
    if path.suffix != suffix:
        raise ValueError(f'{option}: {path}; {what} ends in {suffix}')


def check_file(option: str, path: Path) -> None:
    """Raise ValueError where a file cannot be written: before the work, not after it."""
    if path.is_dir():
        raise ValueError(f'{option}: {path} is a folder; name a file in it')
    check_folder(option, path.parent)
