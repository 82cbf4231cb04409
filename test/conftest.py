# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

from contextlib import contextmanager
import os
import signal

import pytest
import torch

# Without a GPU Triton's kernels are interpreted. It looks here when it is imported, as torchvision
# does for one.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
    """Keep the tests' artefacts, and those of their child processes, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MTAN_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a cache folder that does not exist yet."""
    monkeypatch.setenv('MTAN_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


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


@pytest.fixture
def interruptible():
    """Let SIGINT end this process and its children: in the background it may be ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
