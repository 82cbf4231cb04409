# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The state of an interrupted training on disk: written whole or not at all."""

from pathlib import Path
import pickle
from typing import Any

import torch

from mtan_perception.files import written_whole
from mtan_perception.model_card import CheckpointError


def save_state(path: Path, state: dict[str, Any]) -> None:
    """
    Write tensors and plain values so that a failure leaves the old file as it was.

    :raises OSError: naming the file, if it cannot be written (a full disk, say).
    """
    try:
        with written_whole(path) as temporary, open(temporary, 'wb') as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns a failed write into the latter
        raise OSError(f'{path}: cannot be written ({error}); the one before is kept') from error


def read_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote, tensors on the CPU; CheckpointError names the file."""
    try:
        file = open(path, 'rb')
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be opened ({error.strerror}); start without '
                              '--resume, or give the folder of a run') from error
    with file:
        try:
            return torch.load(file, map_location='cpu', weights_only=True)
        except (EOFError, KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(f'{path}: is no training state or is damaged ({error}); '
                                  'remove it to start anew') from error
