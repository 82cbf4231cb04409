# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A weights file that is read more than once, and must not be another by then."""

import functools
import os
from pathlib import Path

from mtan_perception.inference.artefacts import file_hash
from mtan_perception.inference.errors import EngineError
from mtan_perception.model_card import locate


class WeightsFile:
    """
    Weights that are to stay what they are now: one engine gives the results of one network.

    :param weights: see mtan_perception.checkpoint.load_network.
    :raises OSError: if the file cannot be read.
    :raises mtan_perception.model_card.CheckpointError: see `locate`.
    """

    def __init__(self, weights: str | os.PathLike) -> None:
        self.name = self.digest = 'random'
        """What `load_network` takes, in whatever folder; and a hash of it."""
        self._path = None
        if str(weights) != 'random':
            self._path = locate(weights).absolute()
            self._state = _state(self._path)
            self.name, self.digest = str(self._path), _hash(self._path, self._state)

    def check(self) -> None:
        """Raise EngineError if the content is another than it was."""
        if self._path is None:
            return
        try:
            state = _state(self._path)
            # A copy in its place, or another time, is nothing to mind.
            is_same = state == self._state or _hash(self._path, state) == self.digest
        except OSError:
            is_same = False
        if not is_same:
            raise EngineError(f'weights: {self.name} has changed since it was first read; '
                              'restart, so that all is computed by the same network')


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written to or replaced."""
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4)  # an engine and its backend ask for the same
def _hash(path: Path, state: tuple[int, ...]) -> str:
    return file_hash(path)
