# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Kept artefacts: built once for a key, whole or not at all, and not for ever."""

import json
import logging
import os
from pathlib import Path
import subprocess
import sys
import time

import pytest

from mtan_perception.inference import artefacts
from mtan_perception.inference.artefacts import provide

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
        {'key': {**KEY, 'weights': 'old'}, 'hashes': {}})), 'was written for something else'),
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
    """Of ours, and of one name: somebody may keep other things in the folder."""
    monkeypatch.setattr(artefacts, '_MAX_ARTEFACTS', 2)
    foreign = cache / 'photographs'
    foreign.mkdir(parents=True)
    other = provide('another', KEY, write('x'))
    for folder in (foreign, other.parent):
        os.utime(folder, (0, 0))
    paths = [provide('m', {'size': str(size)}, write('x')) for size in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert foreign.exists() and other.exists()


def test_what_a_killed_process_was_building_is_removed(cache):
    """Not so what another one builds now."""
    folders = [cache / f'.building-{name}' for name in ('killed', 'running')]
    for folder, age in zip(folders, (7200, 60), strict=True):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    provide('m', KEY, write('one'))
    assert [folder.exists() for folder in folders] == [False, True]


def test_what_a_process_builds_that_has_ended_is_removed(cache):
    """At the next start, though nothing is built then; while it lives it keeps what it builds."""
    program = (
        'import time; from mtan_perception.inference.artefacts import provide\n'
        'provide("m", {}, lambda path: print("begun", flush=True) or time.sleep(60))')
    path = provide('m', KEY, write('one'))
    child = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b'begun\n'
        folder, = cache.glob('.building-*')
        os.utime(folder, (time.time() - 7200,) * 2)
        provide('m', KEY, refuse)
        assert folder.exists()
    finally:
        child.kill()
        child.communicate(timeout=20)
    assert provide('m', KEY, refuse) == path
    assert not folder.exists()


def test_whoever_is_slower_leaves_the_other_ones_file():
    """Two starts at once: the first may be reading it by then."""
    def build(path):
        path.write_text('one')
        other = provide('m', KEY, write('one'))
        build.number = other.stat().st_ino
    assert provide('m', KEY, build).stat().st_ino == build.number


def test_a_file_whose_time_cannot_be_set_is_used(monkeypatch):
    """In a read-only image of a robot's system, or where another user built it."""
    path = provide('m', KEY, write('one'))

    def refuse_time(*_):
        raise PermissionError
    monkeypatch.setattr(os, 'utime', refuse_time)
    assert provide('m', KEY, refuse) == path


def test_no_home_folder_is_an_os_error(monkeypatch):
    """Which whoever wants to keep something is ready for."""
    def unknown():
        raise RuntimeError('Could not determine home directory.')
    for name in ('MTAN_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, 'home', unknown)
    with pytest.raises(OSError, match='home directory'):
        provide('m', KEY, write('one'))


def test_the_folder_may_be_given_from_the_users_home(monkeypatch):
    """A unit file or a Dockerfile has no shell that would know what ~ is."""
    monkeypatch.setenv('HOME', '/home/robot')
    monkeypatch.setenv('MTAN_CACHE', '~/cache')
    assert artefacts.artefact_folder() == Path('/home/robot/cache')
