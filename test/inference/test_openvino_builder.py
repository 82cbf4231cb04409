# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's models: written by a process of their own, kept, and what may go wrong with it."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from mtan_perception.checkpoint import build_network, save_checkpoint
from mtan_perception.inference import Engine
from mtan_perception.inference.backends import build_backend, openvino_builder, openvino_runtime
from mtan_perception.inference.backends.openvino_builder import write_model
from mtan_perception.inference.errors import BackendError, EngineError
from mtan_perception.inference.weights_file import WeightsFile
from mtan_perception.model_card import CheckpointError, COMPACT, ModelCard

pytestmark = pytest.mark.usefixtures('cache')
pytest.importorskip('openvino')

X = np.random.default_rng(0).normal(size=(1, 3, 32, 40)).astype(np.float32)


def depth():
    backend = build_backend('openvino', 'random', 'cpu', 'fp32', 'optical')
    return backend(X, ('depth',))['depth']


def fail(*_):
    raise BackendError('it fails')


def write(path, weights=None):
    write_model(path, weights or WeightsFile('random'), 'Convolution', (32, 40), ('depth',),
                'optical', True)


def test_a_model_is_kept_and_a_broken_one_replaced(cache, caplog):
    """The second start builds nothing; damage is found before the runtime reads it."""
    with caplog.at_level(logging.INFO):
        first = depth()
        assert 'building mtan.xml' in caplog.text and 'depth at 32x40' in caplog.text
        caplog.clear()
        assert np.array_equal(depth(), first)
        assert 'building mtan.xml' not in caplog.text
        for suffix in ('xml', 'bin'):
            caplog.clear()
            path, = cache.glob(f'*/mtan.{suffix}')
            path.write_bytes(path.read_bytes()[:-1])
            assert np.array_equal(depth(), first)
            assert 'is damaged; building it anew' in caplog.text


def test_other_weights_are_not_taken_for_the_same(tmp_path):
    """A file written anew under its old name."""
    found = []
    for _ in range(2):
        network = build_network(COMPACT)
        save_checkpoint(tmp_path / 'a.safetensors', network, COMPACT)
        backend = build_backend('openvino', tmp_path / 'a.safetensors', 'cpu', 'fp32', 'optical')
        found.append(backend(X, ('depth',))['depth'])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_weights_that_are_replaced_while_an_engine_runs(tmp_path):
    """What it has built goes on; nothing is built, or run by torch, of another network."""
    path = tmp_path / 'a.safetensors'
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    engine = Engine(path, 'cpu', input_size=(64, 64))
    small, large = np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    first = engine.infer(small).depth
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    for act in (engine.infer, lambda image: engine.prepare([image])):
        with pytest.raises(EngineError, match=r'weights: .*a\.safetensors has changed .*restart'):
            act(large)
    assert np.array_equal(engine.infer(small).depth, first, equal_nan=True)


def test_without_a_cache_the_model_is_written_for_the_moment(monkeypatch, tmp_path, caplog):
    """A warning names the remedy; nothing is left behind."""
    wanted = depth()
    monkeypatch.setenv('MTAN_CACHE', '/proc/nowhere')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'for-the-moment'))
    (tmp_path / 'for-the-moment').mkdir()
    assert depth() == pytest.approx(wanted, abs=1e-5)  # weights in memory add up in another order
    assert 'will have to build the model again: give $MTAN_CACHE a folder' in caplog.text
    assert not list((tmp_path / 'for-the-moment').iterdir())


def test_without_any_folder_torch_takes_its_place(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv('MTAN_CACHE', '/proc/nowhere')
    monkeypatch.setattr('tempfile.tempdir', '/proc/nowhere')
    engine = Engine('random', 'cpu', input_size=(32, 40))
    assert engine.infer(np.zeros((32, 40, 3), np.uint8)).depth is not None
    assert engine.backend == 'torch'
    assert 'backend: failed (openvino cannot build the network: [Errno 2]' in caplog.text


def test_weights_that_do_not_fit_their_card(tmp_path):
    """The file is named, and what does not fit."""
    path = tmp_path / 'wrong.safetensors'
    save_checkpoint(path, build_network(COMPACT), ModelCard({'depth': 1}, 'resnet18'))
    engine = Engine(path, 'cpu', input_size=(32, 40))
    with pytest.raises(CheckpointError, match=r'(?s)wrong\.safetensors: .*unknown: .*decoders'):
        engine.warm_up()


def test_a_process_that_ends_without_a_word(monkeypatch, tmp_path):
    """As the system ends one that takes too much memory."""
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    with pytest.raises(BackendError, match='cannot build the network: its process ended with 1'):
        write(tmp_path / 'm.xml')


def test_a_ctrl_c_while_it_is_written(monkeypatch, tmp_path):
    """It reaches both processes; no other backend is to begin then."""
    program = tmp_path / 'python'
    program.write_text('#!/bin/sh\nkill -INT $$\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(program))
    with pytest.raises(EngineError, match='interrupted'):
        Engine('random', 'cpu', input_size=(32, 40), backend='openvino').warm_up()


def test_a_model_that_cannot_be_built_beside_another(monkeypatch, caplog):
    """As where there is no memory for its process: the one that is there goes on."""
    engine = Engine('random', 'cpu', input_size=(64, 64))
    small, large = np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    first = engine.infer(small).depth
    with monkeypatch.context() as context:
        context.setattr(sys, 'executable', '/bin/false')
        engine.prepare([large])
    assert 'its process ended with 1; going on without a model of its own' in caplog.text
    assert engine.infer(large).depth is not None
    assert not engine.prepare([large]), 'refused once, it is not tried for each frame'
    assert engine.backend == 'openvino'
    assert np.array_equal(engine.infer(small).depth, first, equal_nan=True)


def test_nor_is_torch_given_other_weights(monkeypatch, tmp_path):
    """Where openvino fails later on; once they are back it takes its place."""
    path = tmp_path / 'a.safetensors'
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    engine, image = Engine(path, 'cpu', input_size=(32, 64)), np.zeros((32, 64, 3), np.uint8)
    first = engine.infer(image).depth
    content = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as context:
        context.setattr(openvino_runtime, 'infer', fail)
        for _ in range(2):
            with pytest.raises(EngineError, match='has changed'):
                engine.infer(image)
    path.write_bytes(content)
    assert engine.infer(image).depth == pytest.approx(first, abs=1e-4, nan_ok=True)
    assert engine.backend == 'torch'


def test_weights_that_change_while_they_are_read(tmp_path):
    """A model of others is not kept under their name."""
    path = tmp_path / 'a.safetensors'
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    before = WeightsFile(path)
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    with pytest.raises(CheckpointError, match=r'a\.safetensors: changed while it was read'):
        write(tmp_path / 'm.xml', before)


def test_the_same_content_in_another_file_is_the_same(tmp_path):
    path = tmp_path / 'a.safetensors'
    save_checkpoint(path, build_network(COMPACT), COMPACT)
    weights = WeightsFile(path)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(EngineError, match='has changed'):
        weights.check()
    path.write_bytes(content)
    weights.check()


def test_the_process_that_asked_is_gone(tmp_path):
    """Before the other could ask to be ended with it."""
    done = subprocess.run([sys.executable, '-m', openvino_builder.__name__, '1', '[]'],
                          capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b'')
