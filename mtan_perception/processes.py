# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that others start."""

import ctypes
import signal
import sys

# Here, since between fork and exec nothing may be loaded.
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent ends (prctl PR_SET_PDEATHSIG)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)
