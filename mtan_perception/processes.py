# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that others start."""

import ctypes
import os
import signal
import sys

# Here, since between fork and exec nothing may be loaded.
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def end_with_parent(parent: int | None = None) -> None:
    """
    Ask Linux to send this process SIGTERM when the thread that started it ends.

    That is prctl's PR_SET_PDEATHSIG.

    :param parent: id of the process that started it, which may have ended before this; then this
        one ends at once.
    """
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)
