# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Which images ``mtan predict`` reads, and why a path is none of them."""

from collections.abc import Iterable
from pathlib import Path

from mtan_perception.files import IMAGE_SUFFIXES, list_pictures

SUFFIXES = ', '.join(sorted(IMAGE_SUFFIXES))
_VIDEO_SUFFIXES = frozenset(('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm',
                             '.wmv'))
_MAX_NAMED = 5


def list_images(named: Iterable[Path]) -> list[Path]:
    """Return the named paths, each once; in place of a folder its images, if it has some."""
    paths: list[Path] = []
    for path in named:
        paths += (list_pictures(path) if path.is_dir() else []) or [path]
    return list(dict.fromkeys(paths))


def fault_of(path: Path) -> str | None:
    """Return why a path is no image, as far as can be told without reading it; None if it may."""
    if path.is_dir():
        return f'a folder without images: {SUFFIXES}'
    if not path.exists():
        return 'no such file'
    if path.suffix.lower() in _VIDEO_SUFFIXES:
        return 'a video, which predict does not read; camera_node plays it, as its source'
    return None


def check_stems(paths: Iterable[Path]) -> None:
    """Raise ValueError where outputs would be written over those of another image; name all."""
    named: dict[str, list[str]] = {}
    for path in paths:
        named.setdefault(path.stem, []).append(str(path))
    clashes = [f'{" and ".join(same)} would be written to the same {stem}_*'
               for stem, same in named.items() if len(same) > 1]
    if clashes:
        raise ValueError(f'{"; ".join(clashes)}; predict them into different folders')


def check_inputs_stay(paths: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Raise ValueError where an output would be written over an image that is to be read."""
    written = {path.resolve() for path in outputs}
    covered = [str(path) for path in paths if path.resolve() in written]
    if covered:
        more = [f'{len(covered) - _MAX_NAMED} more'] if len(covered) > _MAX_NAMED else []
        raise ValueError(f'--out: outputs would be written over {len(covered)} of the images '
                         f'({", ".join(covered[:_MAX_NAMED] + more)}); choose another folder, or '
                         'leave these images out')
