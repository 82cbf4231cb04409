# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
