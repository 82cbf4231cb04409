# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How subcommands write pictures."""

from pathlib import Path

import numpy as np


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write RGB (H, W, 3) or grey (H, W); raise OSError where OpenCV only returns False."""
    import cv2
    encoded = cv2.imencode('.png', picture[..., ::-1] if picture.ndim == 3 else picture)[1]
    path.write_bytes(encoded.tobytes())
