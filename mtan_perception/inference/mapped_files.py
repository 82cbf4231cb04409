# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Files mapped into memory, whose pages need not stay there.

A runtime that packs weights for itself has them in memory once: the system may drop pages of a
file, and does so in ``reading_once`` as soon as they are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import ctypes
import mmap
import tempfile
import threading
from typing import BinaryIO
import weakref

import numpy as np
from numpy.typing import DTypeLike

from mtan_perception.inference.artefacts import artefact_folder

_EVICTION_PERIOD = 0.005  # seconds

# What is in use of the files mapped here.
_MAPS: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_MAPS_LOCK = threading.Lock()


def map_file(file: BinaryIO, dtype: DTypeLike) -> np.ndarray:
    """Return the values of an open file."""
    file.flush()
    # Private: torch wants memory that it could write to, and the file stays as it is.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with _MAPS_LOCK:
        _MAPS.add(mapped)
    return np.frombuffer(mapped, dtype)


def mapped_copy(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy, in a file without a name; in memory where there can be none."""
    array = np.ascontiguousarray(array)
    try:
        with tempfile.TemporaryFile(dir=artefact_folder()) as file:
            array.tofile(file)
            return map_file(file, array.dtype).reshape(array.shape)
    except OSError:
        return array


@contextmanager
def reading_once() -> Iterator[None]:
    """
    Meanwhile give pages back as they are read; one read again is loaded again.

    Not those of files that were mapped before: others may be reading them.
    """
    with _MAPS_LOCK:
        others = weakref.WeakSet(_MAPS)
    done = threading.Event()
    thread = threading.Thread(target=_evict, args=[done, others], name='weights-eviction')
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        trim()


def _evict(done: threading.Event, others: weakref.WeakSet) -> None:
    if not hasattr(mmap, 'MADV_DONTNEED'):  # not on Linux
        return
    ended = False
    while not ended:
        ended = done.wait(_EVICTION_PERIOD)
        with _MAPS_LOCK:
            for mapped in _MAPS:
                if mapped not in others:
                    mapped.madvise(mmap.MADV_DONTNEED)


def trim() -> None:
    """Give the system what malloc has kept of intermediates: half as much as the weights."""
    with suppress(AttributeError, OSError):  # only the GNU library has it
        ctypes.CDLL(None).malloc_trim(0)
