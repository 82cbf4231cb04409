# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several commands are tested with."""

from contextlib import contextmanager

import pytest


@pytest.fixture
def full_disk():
    """Return a context in which a write fails half-way, after a MiB, as on a disk that is full."""
    resource = pytest.importorskip('resource')

    @contextmanager
    def limited():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return limited
