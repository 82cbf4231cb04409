# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Kept artefacts: built once for a key, whole or not at all, and not for ever."""

import json
import logging

import pytest
import torch

from mtan_perception.inference import artefacts
from mtan_perception.inference.artefacts import fingerprint, provide

pytestmark = pytest.mark.usefixtures('cache')

KEY = {'weights': 'abc', 'size': '32x32'}


def write(text):
    return lambda path: path.write_text(text)


def refuse(path):
    raise AssertionError('must not be built')


def test_a_key_is_built_once():
    """Another key has a file of its own."""
    path = provide('m', KEY, write('one'))
    assert path.read_text() == 'one' and provide('m', KEY, refuse) == path
    other = provide('m', {**KEY, 'size': '64x64'}, write('two'))
    assert other != path and (path.read_text(), other.read_text()) == ('one', 'two')


@pytest.mark.parametrize('harm, words', [
    (lambda path: path.write_text('onf'), 'is damaged'),
    (lambda path: path.unlink(), 'cannot be read'),
    (lambda path: (path.parent / 'key.json').write_text('{'), 'cannot be read'),
    (lambda path: (path.parent / 'key.json').write_text(json.dumps(
        {'key': {**KEY, 'weights': 'old'}, 'sha256': ''})), 'was written for something else'),
], ids=['content', 'file', 'note', 'foreign'])
def test_what_is_not_right_is_built_anew(harm, words, caplog):
    """A log line says what was wrong."""
    path = provide('m', KEY, write('one'))
    harm(path)
    with caplog.at_level(logging.WARNING):
        assert provide('m', KEY, write('new')).read_text() == 'new'
    assert words in caplog.text and 'building it anew' in caplog.text


def test_a_failed_build_leaves_nothing(cache):
    def fail(path):
        path.write_text('half')
        raise RuntimeError('no compiler')
    with pytest.raises(RuntimeError, match='no compiler'):
        provide('m', KEY, fail)
    assert list(cache.iterdir()) == []
    assert provide('m', KEY, write('one')).read_text() == 'one'


def test_what_was_not_used_for_longest_is_removed(cache, monkeypatch):
    monkeypatch.setattr(artefacts, '_MAX_ARTEFACTS', 2)
    paths = [provide('m', {'size': str(size)}, write('x')) for size in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]


def test_a_fingerprint_tells_tensors_apart():
    """Value, name, shape and type count."""
    state = {'a': torch.ones(2, 2), 'b': torch.zeros(1)}
    same = {'b': torch.zeros(1), 'a': torch.ones(2, 2)}
    assert fingerprint(state) == fingerprint(same)
    others = [{**state, 'a': torch.ones(4)}, {**state, 'b': torch.ones(1)},
              {**state, 'b': torch.zeros(1).half()}, {'a': state['a'], 'c': state['b']}]
    assert len({fingerprint(other) for other in [state, *others]}) == 5
