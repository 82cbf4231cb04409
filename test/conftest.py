# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

import os

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
