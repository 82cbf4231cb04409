# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How subcommands write pictures and arrays: whole or not at all, in a folder made for them."""

import io
from pathlib import Path

import numpy as np

from mtan_perception.files import written_whole


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write RGB (H, W, 3) or grey (H, W); raise OSError naming a file that cannot be written."""
    import cv2
    encoded = cv2.imencode('.png', picture[..., ::-1] if picture.ndim == 3 else picture)[1]
    _write(path, encoded.tobytes())


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array; raise OSError naming a file that cannot be written."""
    content = io.BytesIO()  # straight into a file NumPy would hide why that cannot be written
    np.save(content, array)
    _write(path, content.getbuffer())


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OSError(f'{path}: cannot be written ({error.strerror or error}); make room, or '
                      'choose another folder') from error
