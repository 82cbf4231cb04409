# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in a mapped file: the same network, folded once, and no pages that nobody reads."""

import logging
from pathlib import Path
import re

import numpy as np
import pytest
import torch
from torch import nn

from mtan_perception.checkpoint import load_network
from mtan_perception.inference.convolution import Convolution, cpu_convolution, split_convolution
from mtan_perception.inference.mapped_files import mapped_copy, reading_once
from mtan_perception.inference.mapped_weights import fingerprint, optimize_mapped
from mtan_perception.inference.optimize import OptimizedMTAN

pytestmark = pytest.mark.usefixtures('cache')

FORMATS = [torch.contiguous_format, torch.channels_last]


def load():
    return load_network('random')[0]


def resident(path):
    """Return the KiB of a mapped file that are in this process's memory."""
    maps = Path('/proc/self/smaps').read_text()
    found = re.findall(rf'{re.escape(str(path))}\n(?:\w+:.*\n)*?Rss: +(\d+) kB', maps)
    assert found, f'{path} is not mapped'
    return sum(map(int, found))


@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('factory', [Convolution, cpu_convolution, split_convolution])
def test_the_file_holds_the_same_weights(factory, memory_format):
    """Written, and read by a later start: each buffer is the one folded in memory."""
    expected = OptimizedMTAN(load(), factory).state_dict()
    for _ in range(2):
        network = optimize_mapped(load(), factory, memory_format)
        found = network.state_dict()
        assert list(found) == list(expected)
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), name
            assert tensor.dim() != 4 or tensor.is_contiguous(memory_format=memory_format), name
            assert tensor.data_ptr() % 64 == 0, name


def test_a_later_start_folds_nothing(caplog):
    """Other weights have a file of their own."""
    with caplog.at_level(logging.INFO):
        optimize_mapped(load(), Convolution, torch.channels_last)
        assert caplog.text.count('building weights.bin') == 1
        optimize_mapped(load(), Convolution, torch.channels_last)
        assert caplog.text.count('building weights.bin') == 1
        other = load()
        torch.nn.init.ones_(other.decoders['depth'][-1].bias)
        network = optimize_mapped(other, Convolution, torch.channels_last)
    assert caplog.text.count('building weights.bin') == 2
    assert network.heads['depth'].out.bias == 1


def test_pages_that_were_read_are_given_back(cache):
    """While they are read as well, and what is read again is right."""
    expected = OptimizedMTAN(load(), Convolution).state_dict()
    before = mapped_copy(np.ones(5000))
    with reading_once():
        network = optimize_mapped(load(), Convolution, torch.channels_last)
        path = next(cache.glob('*/weights.bin'))
        for _ in range(3):
            for name, tensor in network.state_dict().items():
                assert torch.equal(tensor, expected[name]), name
    assert resident(path) == 0
    assert (before == 1).all()
    x = torch.randn(1, 3, 32, 32)
    found = network.logits(x)['depth']
    assert resident(path) > 0
    assert torch.equal(found, OptimizedMTAN(load(), Convolution).logits(x)['depth'])


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_a_copy_is_mapped_for_as_long_as_it_is_used(cache, dtype):
    """And its pages are given back like those of the weights."""
    cache.mkdir()
    rows = np.arange(3 * 5000, dtype=dtype).reshape(3, 5000)[:, ::2]
    with reading_once():
        copy = mapped_copy(rows)
        path = re.search(rf'{re.escape(str(cache))}/\S+ \(deleted\)',
                         Path('/proc/self/maps').read_text())[0]
        assert copy.flags.c_contiguous and copy.dtype == dtype
        assert np.array_equal(copy, rows)
    assert resident(path) == 0
    assert np.array_equal(copy, rows)
    with reading_once():  # of others
        pass
    assert resident(path) > 0
    del copy
    assert path not in Path('/proc/self/maps').read_text()


def test_without_a_cache_the_weights_are_in_memory(cache, caplog):
    """A warning names the folder and the remedy."""
    cache.write_text('a file where a folder should be')
    network = optimize_mapped(load(), Convolution, torch.channels_last)
    assert np.array_equal(mapped_copy(np.eye(3, dtype=np.float32).T), np.eye(3))
    with reading_once():
        found = network.logits(torch.zeros(1, 3, 32, 32))
    assert set(found) == {'segmentation', 'depth', 'normal'}
    assert str(cache) in caplog.text and '$MTAN_CACHE' in caplog.text


def test_a_fingerprint_tells_networks_apart():
    """Values, names, shapes and types count, and what no tensor tells."""
    def network(name='a', value=1.0, shape=(2, 2), dtype=torch.float32, dilation=1):
        module = nn.Module()
        module.register_buffer(name, torch.full(shape, value, dtype=dtype))
        module.convolution = nn.Conv2d(1, 1, 3, dilation=dilation)
        nn.init.ones_(module.convolution.weight)
        nn.init.zeros_(module.convolution.bias)
        return module
    assert fingerprint(network()) == fingerprint(network())
    others = [network('b'), network(value=2.0), network(shape=(4,)), network(dtype=torch.half),
              network(dilation=2)]
    assert len({fingerprint(other) for other in [network(), *others]}) == 6
