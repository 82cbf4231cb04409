# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are written, and pictures that are read, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = frozenset(('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
                            '.webp'))
"""Of the pictures that OpenCV reads wherever it is installed, in lower case."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """
    Give an empty file beside `path` that takes its place, on the disk, when the block ended well.

    :raises OSError: if it cannot be written; what `path` held before is still there.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.touch()  # a folder that cannot be written is an OSError, whoever writes
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors leaves a file that only its owner may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def decode_picture(data: bytes | memoryview, unchanged: bool = False,
                   upright: bool = True) -> np.ndarray | None:
    """
    Return the picture in the bytes of a JPEG, PNG or whatever else OpenCV reads, None for others.

    :param unchanged: as it is stored: (H, W) or (H, W, C), uint8 or uint16; else uint8 (H, W, 3).
        Colours are BGR.
    :param upright: whether the latter is turned as its EXIF says.
    """
    import cv2  # here, as those who only write need no OpenCV
    array = np.frombuffer(data, np.uint8)
    flags = cv2.IMREAD_UNCHANGED if unchanged else cv2.IMREAD_COLOR
    if not upright:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(array, flags) if array.size else None
    except cv2.error:  # its header tells of more pixels than OpenCV would make room for
        return None


def read_picture(path: Path) -> np.ndarray | None:
    """Return the picture in a file, (H, W, 3) uint8 BGR, upright; None where there is none."""
    try:
        return decode_picture(path.read_bytes())
    except OSError:
        return None


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by their suffixes, in the order of their names."""
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
