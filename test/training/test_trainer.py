# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on a small data set in memory: it repeats, resumes, and loses nothing."""

import csv
from dataclasses import replace
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from train_in_memory import make_config, make_source, train_both

from mtan_perception.checkpoint import load_network, save_checkpoint
from mtan_perception.inference import devices, Engine
from mtan_perception.labels import LabelSet, NYUV2_13
from mtan_perception.model_card import CheckpointError, read_card
from mtan_perception.tasks import NYUV2_TASKS
from mtan_perception.training import trainer as trainer_module
from mtan_perception.training.batches import pad, thin
from mtan_perception.training.evaluation import to_image
from mtan_perception.training.layouts import DEFAULT_KINDS
from mtan_perception.training.losses import valid_pixels
from mtan_perception.training.sources import FileSource
from mtan_perception.training.trainer import Trainer
from mtan_perception.training.validation import score

SCRIPT = Path(__file__).with_name('train_in_memory.py')


def read_losses(out):
    with open(out / 'train.csv', newline='') as file:
        return [[float(row[name]) for name in NYUV2_TASKS] for row in csv.DictReader(file)]


class Killed(Exception):
    pass


class Dying(Trainer):
    """Does not live to take its fifth step."""

    def train_step(self, batch, progress):
        if self.step == 4:
            self._save_state()
            raise Killed
        return super().train_step(batch, progress)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Return a trainer that has run without interruption."""
    trainer = Trainer(make_config(tmp_path_factory.mktemp('whole')), make_source())
    trainer.train()
    return trainer


def test_a_run_ends_with_weights_that_say_how_they_came_about(whole):
    network, card = load_network(whole.out / 'last.safetensors')
    assert card.training['steps'] == 6
    assert card.training['validation']['depth']['rel'] == pytest.approx(
        whole.figures['depth']['rel'], abs=1e-4)
    for ours, stored in zip(whole.average.network.parameters(), network.parameters(),
                            strict=True):
        torch.testing.assert_close(ours, stored, rtol=1e-3, atol=1e-4)
    assert read_card(whole.out / 'best.safetensors') == card
    assert (whole.out / 'train.png').stat().st_size > 1000


def test_tensorboard_shows_what_the_tables_hold(whole):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    board = events.EventAccumulator(str(whole.out / 'tensorboard'))
    board.Reload()
    for place, name in enumerate(NYUV2_TASKS):
        shown = board.Scalars(f'train/{name}')
        assert [event.step for event in shown] == [1, 2, 3, 4, 5, 6]
        assert [event.value for event in shown] == pytest.approx(
            [losses[place] for losses in read_losses(whole.out)])
    assert board.Scalars('validation/depth.rel')[-1].value == pytest.approx(
        whole.figures['depth']['rel'])


def test_a_killed_run_resumes_as_if_nothing_had_happened(whole, tmp_path):
    config = make_config(tmp_path)
    with pytest.raises(Killed):
        Dying(config, make_source()).train()
    rest = Trainer(config, make_source())
    rest.resume()
    assert rest.step == 4
    rest.train()
    assert read_losses(tmp_path) == read_losses(whole.out)
    for ours, theirs in zip(rest.network.state_dict().values(),
                            whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_in_the_last_chapter_waits_for_its_end(tmp_path):
    """A run that is resumed takes it for written."""
    class Interrupted(Trainer):

        def _save_weights(self, name):
            os.kill(os.getpid(), signal.SIGINT)
            super()._save_weights(name)
    trainer = Interrupted(make_config(tmp_path, steps=1), make_source())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / 'best.safetensors').is_file()
    assert len((tmp_path / 'validation.csv').read_text().splitlines()) == 2


def test_a_finished_run_has_nothing_to_add(whole, tmp_path):
    shutil.copytree(whole.out, tmp_path, dirs_exist_ok=True)
    again = Trainer(make_config(tmp_path), make_source())
    again.resume()
    assert again.train()['depth'] == whole.figures['depth']
    tables = [folder / 'validation.csv' for folder in (tmp_path, whole.out)]
    assert tables[0].read_bytes() == tables[1].read_bytes()


class Recorded:
    """A stream that remembers which batches were asked for."""

    def __init__(self, stream, asked):
        self._stream, self._asked = stream, asked

    def batch(self, stage, step):
        self._asked.append((stage, step))
        return self._stream.batch(stage, step)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def test_a_longer_budget_goes_back_to_a_stage_but_not_to_its_batches(tmp_path):
    asked = []
    for steps in (4, 8):
        source = make_source()
        stream = source.stream
        source.stream = lambda *args, stream=stream: Recorded(stream(*args), asked)
        trainer = Trainer(make_config(tmp_path, steps=steps, stages='0.75:32x48:2,1:32x48:4'),
                          source)
        if steps > 4:
            trainer.resume()
        trainer.train()
    assert asked == [*((0, step) for step in range(3)), (1, 0),
                     *((0, step) for step in range(3, 5)), (1, 1), (1, 2)]
    with pytest.raises(CheckpointError, match=r"stages was '0\.75:32x48:2,1:32x48:4' and is '1:"):
        Trainer(make_config(tmp_path), make_source()).resume()


def test_epochs_count_what_each_stage_takes(tmp_path):
    config = make_config(tmp_path, steps=0, epochs=2, stages='0.5:32x48:2,1:32x48:4')
    # Two epochs of 9 samples: three steps of 2, three of 4.
    assert Trainer(config, make_source(9)).budget.steps == 6


@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(whole, tmp_path):
    """What is saved is a whole number of steps, so that the rest is that of an unbroken run."""
    class Interrupted(Trainer):

        def compute_losses(self, outputs, truth):
            if self.step == 3 and self.network.training:
                os.kill(os.getpid(), signal.SIGINT)
            return super().compute_losses(outputs, truth)

    config = make_config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(config, make_source()).train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = Trainer(config, make_source())
    rest.resume()
    assert rest.step == 4
    rest.train()
    for ours, theirs in zip(rest.network.state_dict().values(),
                            whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_while_the_state_is_written_waits_for_its_end(tmp_path):
    """Torch's writer may abort the process when it is left in the middle."""
    class Interrupted(Trainer):

        def state_dict(self):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)  # as of a user who does not see it end
            return super().state_dict()

    with pytest.raises(KeyboardInterrupt):
        Interrupted(make_config(tmp_path, checkpoint_every=0.0), make_source()).train()
    rest = Trainer(make_config(tmp_path), make_source())
    rest.resume()
    assert rest.step == 3
    assert read_card(tmp_path / 'last.safetensors').training['steps'] == 3


@pytest.mark.usefixtures('interruptible')
def test_ctrl_c_is_not_lost_in_a_write_that_fails(tmp_path, monkeypatch, capsys):
    def fail(path, state):
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError(f'{path}: cannot be written')

    monkeypatch.setattr(trainer_module, 'save_state', fail)
    with pytest.raises(KeyboardInterrupt):
        Trainer(make_config(tmp_path, checkpoint_every=0.0), make_source()).train()
    assert 'stopped at step 1; not all of it is written' in capsys.readouterr().out


def test_what_a_stop_writes_says_when_it_was_judged(whole, tmp_path):
    """Which is known after a resume, too."""
    trainer = Trainer(make_config(tmp_path, validate_every=0.0, steps=3), make_source())
    trainer.train()
    again = Trainer(make_config(tmp_path, steps=9), make_source())
    again.resume()
    again.step = 4
    again._stop()
    training = read_card(tmp_path / 'last.safetensors').training
    assert (training['steps'], training['validation_step']) == (4, 3)
    assert training['validation']['depth']['rel'] == pytest.approx(
        trainer.figures['depth']['rel'], abs=1e-4)


def test_a_state_of_another_release_is_called_that(tmp_path):
    trainer = Trainer(make_config(tmp_path), make_source())
    state = trainer.state_dict()
    del state['configuration']
    trainer_module.save_state(trainer.state_path, state)
    with pytest.raises(CheckpointError, match="lacks 'configuration', so another release wrote"):
        trainer.resume()


def test_a_training_that_diverges_ends_and_keeps_what_was_sound(tmp_path):
    keys = {'learning_rate': 1e30, 'warm_up': 0.0, 'clip': 0.0, 'checkpoint_every': 0.0}
    trainer = Trainer(make_config(tmp_path, **keys), make_source())
    trainer._save_state()
    with pytest.raises(ValueError, match=r'diverged: at step \d .*lower learning_rate \(1e\+30\)'):
        trainer.train()
    assert not (tmp_path / 'last.safetensors').exists()
    again = Trainer(make_config(tmp_path), make_source())
    again.resume()
    assert all(parameter.isfinite().all() for parameter in again.network.parameters())


def test_files_of_others_in_the_folder_are_left_alone(tmp_path):
    """Tables that are no record of a training, one that cannot be written, one cut off."""
    people = 'name,age\nAda,36\n'
    (tmp_path / 'people.csv').write_text(people)
    (tmp_path / 'validation.csv').write_text('step,segm')  # as a full disk leaves it
    (tmp_path / 'train.csv').mkdir()
    trainer = Trainer(make_config(tmp_path, steps=2), make_source())
    trainer.train()
    assert (tmp_path / 'people.csv').read_text() == people
    assert not (tmp_path / 'people.png').exists()
    assert trainer.failed_saves == 2, 'of the rows of train.csv'
    assert (tmp_path / 'validation.csv').read_text().startswith('step,segmentation.loss,')
    assert (tmp_path / 'best.safetensors').exists()


def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, capsys, full_disk):
    trainer = Trainer(make_config(tmp_path), make_source())
    trainer._save_state()
    trainer.step = 17
    with full_disk():
        trainer._save_state()
    assert 'state.pt: cannot be written' in capsys.readouterr().out
    assert trainer.failed_saves == 1
    assert [path.name for path in tmp_path.iterdir()] == ['state.pt']
    again = Trainer(make_config(tmp_path), make_source())
    again.resume()
    assert again.step == 0
    monkeypatch.setattr(trainer_module.shutil, 'disk_usage',
                        lambda path: type('Usage', (), {'free': 10_000_000}))
    with pytest.raises(OSError, match=r'0\.0 GB are free.*choose another folder with --out'):
        Trainer(make_config(tmp_path), make_source())


def test_a_state_that_does_not_fit_is_named(whole, tmp_path):
    with pytest.raises(CheckpointError, match='cannot be opened'):
        Trainer(make_config(tmp_path), make_source()).resume()
    other = Trainer(make_config(whole.out, architecture='split'), make_source())
    with pytest.raises(CheckpointError, match='state of another training'):
        other.resume()
    changed = make_config(whole.out, weight_decay=0.5, learning_rate=1e-4, minutes=0.0)
    with pytest.raises(CheckpointError, match=r'another training \(weight_decay was 0\.02'):
        Trainer(changed, make_source()).resume()
    longer = Trainer(make_config(whole.out, learning_rate=1e-4, steps=9), make_source())
    longer.resume()
    assert longer.step == 6
    # What is left after a power failure on a file system without order.
    (tmp_path / 'state.pt').write_bytes((whole.out / 'state.pt').read_bytes()[:5000])
    with pytest.raises(CheckpointError, match='is damaged'):
        Trainer(make_config(tmp_path), make_source()).resume()


def test_a_run_starts_from_other_weights(whole, tmp_path, capsys):
    weights = str(whole.out / 'last.safetensors')
    same = Trainer(make_config(tmp_path, weights=weights), make_source())
    assert 'all of them fit' in capsys.readouterr().out
    learnt, card = load_network(weights)
    for name, tensor in learnt.state_dict().items():
        torch.testing.assert_close(same.network.state_dict()[name], tensor, msg=name)
        torch.testing.assert_close(same.average.network.state_dict()[name], tensor, msg=name)

    source = make_source()
    source.tasks = {**NYUV2_TASKS, 'segmentation': 5}
    other = Trainer(make_config(tmp_path, weights=weights), source)
    # The output layer alone depends on the number of classes.
    assert 'these start anew: decoders.segmentation.4\n' in capsys.readouterr().out
    assert other.network.decoders['segmentation'][4].out_channels == 5
    for name, tensor in learnt.state_dict().items():
        if not name.startswith('decoders.segmentation.4'):
            torch.testing.assert_close(other.network.state_dict()[name], tensor, msg=name)

    renamed = make_source()
    renamed.labels = LabelSet('mine', tuple('abcdefghijklm'), NYUV2_13.colors)
    save_checkpoint(tmp_path / 'named', learnt, replace(card, labels=NYUV2_13))
    Trainer(make_config(tmp_path, weights=str(tmp_path / 'named')), renamed)
    assert 'these start anew: decoders.segmentation.4\n' in capsys.readouterr().out

    with pytest.raises(CheckpointError, match=r'(?s)is a resnet18.*mis-shaped: trunk\.layer1'):
        Trainer(make_config(tmp_path, weights=weights, backbone='resnet50'), make_source())
    with pytest.raises(ValueError, match='architecture mtan, not split'):
        Trainer(make_config(tmp_path, weights=weights, architecture='split'), make_source())


@pytest.mark.parametrize('keys', (
    {'weighting': 'nash'}, {'weighting': 'uncertainty', 'architecture': 'split'},
    {'weighting': 'gls', 'architecture': 'single', 'loss_stride': 2, 'optimizer': 'sgd'},
    {'precision': 'bf16', 'ema': 0.0, 'losses': {'depth': 'relative'}}), ids=str)
def test_a_few_steps_of_every_kind_lower_the_loss(tmp_path, keys):
    trainer = Trainer(make_config(tmp_path, warm_up=0.01, dropout=0.0, **keys), make_source())
    stream = trainer.source.stream(trainer.stages, trainer.device, tmp_path, 0, 1, 0)
    batch = stream.batch(0, 0)
    history = [sum(trainer.train_step(batch, 0.1).values()).item() for _ in range(8)]
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize('flag, made_for_it', [
    ('amx_bf16', True), ('avx512_bf16', True), ('avx512_vnni', False)])
def test_a_processor_with_bfloat16_trains_in_it(tmp_path, monkeypatch, flag, made_for_it):
    monkeypatch.setattr(devices, 'describe_processor', lambda entry: f'avx512f {flag}')
    trainer = Trainer(make_config(tmp_path), make_source())
    assert trainer.autocast is made_for_it
    assert next(trainer.network.parameters()).dtype == torch.float32


def test_two_processes_train_as_one_does(tmp_path):
    """The frames of one process lack more truth than those of the other."""
    two = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone',
                            '--nproc-per-node=2', str(SCRIPT), str(tmp_path / 'two')])
    try:
        train_both(tmp_path / 'one')
        assert two.wait(240) == 0  # half a minute; other work can make it many times as long
    finally:
        two.terminate()  # torchrun passes it on
        two.wait(20)
    for name in ('gls', 'pcgrad'):
        curves = [torch.tensor(read_losses(tmp_path / processes / name), dtype=torch.float64)
                  for processes in ('one', 'two')]
        assert len(curves[0]) == 3
        torch.testing.assert_close(*curves, rtol=0, atol=1e-5)
    mixed = torch.tensor(read_losses(tmp_path / 'two' / 'bf16'))
    assert mixed.shape == (1, 3) and mixed.isfinite().all()
    # However each draws its numbers, or their weights would drift apart.
    gradients = [torch.load(tmp_path / 'two' / f'gradients_{rank}.pt') for rank in (0, 1)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_size_that_is_no_multiple_is_padded_as_the_engine_does(tmp_path):
    """Or the network would be trained to see things somewhere else than the engine looks."""
    trainer = Trainer(make_config(tmp_path, output_stride=16), make_source())
    save_checkpoint(tmp_path / 'w.safetensors', trainer.network, trainer.card)
    image = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    image = (255 * image).round() / 255
    batch = pad({'image': image, 'segmentation': torch.zeros(1, 50, 70, dtype=torch.int64),
                 'depth': torch.ones(1, 1, 50, 70), 'normal': torch.ones(1, 3, 50, 70),
                 'albedo': torch.ones(1, 3, 50, 70), 'intrinsics': torch.eye(3)[None]},
                {**DEFAULT_KINDS, 'albedo': 'regression'}, trainer.card.size_multiple)
    for name, kind in {**DEFAULT_KINDS, 'albedo': 'regression'}.items():
        valid = valid_pixels(kind, batch[name]).view(1, -1, 64, 80)
        assert valid[..., :50, :70].all() and valid.sum() == valid.shape[1] * 50 * 70, name
    with torch.inference_mode():
        ours = trainer.network.eval()(trainer.normalise(batch['image']))['normal'][0]
    engine = Engine(tmp_path / 'w.safetensors', 'cpu', input_size=(50, 70), backend='torch')
    theirs = engine.infer(to_image(image[0]), ['normal']).normal
    assert theirs == pytest.approx(ours[:, :50, :70].permute(1, 2, 0).numpy(), abs=1e-3)


def test_the_weights_are_chosen_by_what_is_judged():
    """Where errors of inverse depth are many times the depth, by its loss."""
    figures = {'segmentation': {'loss': 1.0, 'miou': 0.5}, 'depth': {'loss': 0.02, 'rel': 33.6},
               'normal': {'loss': 0.1, 'mean': 9.0}}
    assert score(figures, DEFAULT_KINDS) == pytest.approx(0.5 - 33.6 - 0.1)
    inverse = {**DEFAULT_KINDS, 'depth': 'inverse_depth'}
    assert score(figures, inverse) == pytest.approx(0.5 - 0.02 - 0.1)


def test_validation_takes_frames_from_all_parts_of_the_data():
    samples = [{'number': torch.tensor(index)} for index in range(10)]
    source = FileSource(samples, samples, NYUV2_TASKS, DEFAULT_KINDS, {}, (32, 48))
    for wanted, found in ((4, [0, 2, 5, 7]), (20, list(range(10)))):
        batches = source.validation(wanted, torch.device('cpu'))
        assert [int(batch['number']) for batch in batches] == found


def test_validation_does_not_count_the_classes(tmp_path):
    """With an average of weights, too, which is what is validated."""
    trainer = Trainer(make_config(tmp_path, class_balance=0.5, ema=0.1, validation_frames=1),
                      make_source())
    trainer.train()
    # Of the eight frames, k % 5 of six blocks of 256 pixels have no truth; six steps of four.
    known = sum(6 - k % 5 for k in range(8)) * 256
    assert trainer.class_counts.sum() == 3 * known


def test_truth_is_thinned_where_the_output_lies():
    places = torch.arange(9.0)[:, None] + torch.arange(5) / 10
    truth, size = thin({'image': torch.zeros(1, 3, 9, 5), 'depth': places.expand(1, 1, 9, 5),
                        'intrinsics': torch.eye(3)[None]}, 2)
    assert size == (4, 2)
    # Corner to corner, as align_corners has it.
    assert truth['depth'][0, 0, :, 0].tolist() == [0, 3, 5, 8]
    assert truth['depth'][0, 0, 0].tolist() == pytest.approx([0, 0.4])
    assert 'intrinsics' not in truth


def test_what_cannot_be_trained_is_named(tmp_path):
    with pytest.raises(ValueError, match='give one of minutes, epochs and steps'):
        Trainer(make_config(tmp_path, minutes=1.0), make_source())
    with pytest.raises(ValueError, match="precision: 'fp8'; choose"):
        Trainer(make_config(tmp_path, precision='fp8'), make_source())
    with pytest.raises(ValueError, match="architecture: 'unet'; choose one of mtan, split"):
        Trainer(make_config(tmp_path, architecture='unet'), make_source())
    trainer = Trainer(make_config(tmp_path, stages='1:64x96:4'), make_source())
    with pytest.raises(ValueError, match='64x96, but the images of this data set are 32x48'):
        trainer.train()
