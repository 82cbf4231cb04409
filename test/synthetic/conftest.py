# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Keep these tests quick on a busy machine."""

import pytest
import torch


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Keep torch to one thread: where others compute too, two mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
