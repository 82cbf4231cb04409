# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests."""

import os

import pytest


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory):
    """Keep the tests' artefacts, and those of their child processes, out of the user's cache."""
    before = os.environ.get('MTAN_CACHE')
    os.environ['MTAN_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    os.environ.pop('MTAN_CACHE')
    if before is not None:
        os.environ['MTAN_CACHE'] = before
