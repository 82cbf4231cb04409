# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: steps within a budget, checkpoints, validations, and the weights at the end."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
import json
import math
import os
from pathlib import Path
import shutil
import signal
import threading
import time
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn.parallel import DistributedDataParallel

from mtan_perception.checkpoint import save_checkpoint, start_from
from mtan_perception.inference.devices import choose_device, is_made_for_bfloat16
from mtan_perception.model_card import CheckpointError
from mtan_perception.network.dilated_resnet import load_pretrained
from mtan_perception.tasks import SEGMENTATION
from mtan_perception.training import distributed
from mtan_perception.training.architectures import build_architecture
from mtan_perception.training.averaging import WeightAverage
from mtan_perception.training.batches import pad, thin
from mtan_perception.training.config import MAY_CHANGE, parse_stages, Stage, TrainConfig
from mtan_perception.training.journal import clock, Journal, ProgressLine
from mtan_perception.training.losses import choose_losses, cross_entropy, valid_pixels
from mtan_perception.training.pace import Pace
from mtan_perception.training.schedule import Budget, learning_rate_factor
from mtan_perception.training.sources import (
    count_steps,
    FileSource,
    make_card,
    open_source,
    RoomSource,
    Stream,
)
from mtan_perception.training.state import read_state, save_state
from mtan_perception.training.validation import Figures, score, validate
from mtan_perception.training.weighting import (
    combine_gradients,
    GRADIENT_WEIGHTINGS,
    make_weighting,
)

# Share of the time that is kept for the last validation, and its bounds in seconds.
_CLOSING, _CLOSING_LEAST, _CLOSING_MOST = 0.03, 8.0, 90.0
# A validation room costs seconds on a CPU: one for so many seconds of training.
_SECONDS_PER_ROOM = 30
# The log-variances of uncertainty weighting have to travel further than any weight.
_WEIGHTING_RATE = 10.0
_DEFAULT_BATCH = 8


class Trainer:
    """
    One run: everything that its configuration decides, and its state.

    :param source: the data set; None for the one that the configuration names.
    :raises ValueError: naming the key, or the file and its fault.
    """

    def __init__(self, config: TrainConfig, source: RoomSource | FileSource | None = None) -> None:
        self.config = config
        self.rank, self.world, local_rank = distributed.start()
        self.device = _choose_device(config.device, local_rank)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.source = open_source(config) if source is None else source
        self.stages = self._make_stages()
        self.card = make_card(self.source, config)
        self.dtype, self.autocast = _choose_precision(config.precision, self.device)
        kinds = {name: self.source.kinds[name] for name in self.card.tasks}
        self.losses = choose_losses(kinds, self.source.usual_losses, config.losses)
        self.budget = self._make_budget()

        torch.manual_seed(config.seed)
        self.network = self._make_network()
        self.weighting = make_weighting(
            config.weighting, list(self.card.tasks), config.loss_weights, self._period()
        ).to(self.device)
        self.model = self._parallel()
        self.average = WeightAverage(self.network, config.ema) if config.ema else None
        self.optimizer = self._make_optimizer()
        self.class_counts = torch.zeros(self.card.tasks.get(SEGMENTATION, 1), device=self.device)
        # From here on every process draws its own numbers: dropout must differ between them.
        torch.manual_seed(config.seed + 1 + self.rank)

        self.step, self.elapsed, self.best = 0, 0.0, float('-inf')
        self.stage = 0
        self.stage_steps = [0] * len(self.stages)  # taken in each stage
        self.figures: Figures = {}
        self.validated = 0
        """The step of these figures."""
        self.failed_saves = 0
        self._validation: Iterable | None = None
        self._mean, self._std = (
            torch.tensor(values, device=self.device, dtype=self.dtype).view(3, 1, 1)
            for values in (self.card.mean, self.card.std))
        self.out = Path(config.out)
        if self.rank == 0:
            self._make_folder()
            self._check_space()

    # ---- setting up -------------------------------------------------------------------------
    def _make_stages(self) -> tuple[Stage, ...]:
        height, width = self.source.size
        stages = parse_stages(self.config.stages
                              or f'1:{height}x{width}:{_DEFAULT_BATCH}')
        for stage in stages:
            if stage.batch % self.world:
                raise ValueError(f'stages: a batch of {stage.batch} cannot be shared by '
                                 f'{self.world} processes; make it a multiple')
        return stages

    def _make_budget(self) -> Budget:
        config = self.config
        if sum(map(bool, (config.minutes, config.epochs, config.steps))) != 1:
            raise ValueError('length: give one of minutes, epochs and steps')
        if not config.minutes:
            return Budget(None, config.steps or count_steps(
                config.epochs, self.source.length, self.stages))
        seconds = 60 * config.minutes
        closing = min(max(_CLOSING * seconds, _CLOSING_LEAST), _CLOSING_MOST)
        return Budget(max(0.5 * seconds, seconds - closing), None)

    def _period(self) -> int:
        if self.source.length is None:
            return self.config.period
        return count_steps(1, self.source.length, self.stages)

    def _make_network(self) -> nn.Module:
        config = self.config
        network = build_architecture(config.architecture, self.card)
        if config.pretrained:
            source = True if config.pretrained == 'imagenet' else config.pretrained
            for module in network.modules():
                if hasattr(module, 'trunk'):
                    load_pretrained(module.trunk, config.backbone, source)
        if config.weights:
            self._start_from_weights(network)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
        if self.world > 1:
            network = distributed.synchronise_batch_norm(network, self.device)
        return network.to(self.device, self.dtype, memory_format=torch.channels_last)

    def _start_from_weights(self, network: nn.Module) -> None:
        """Go on from other weights, in the input scaling that they know."""
        if self.config.architecture != 'mtan':
            raise ValueError(f'weights: {self.config.weights} are of architecture mtan, not '
                             f'{self.config.architecture}; train with architecture=mtan, or '
                             'without weights')
        card, anew = start_from(network, self.config.weights, self.card.labels)
        self.card = replace(self.card, mean=card.mean, std=card.std)
        if self.rank == 0:
            modules = sorted({name.rpartition('.')[0] for name in anew})
            print(f'weights: {self.config.weights}; '
                  + (f'these start anew: {", ".join(modules)}' if anew else 'all of them fit'),
                  flush=True)

    def _parallel(self) -> nn.Module:
        # Gradient weightings average the gradients of each task themselves.
        if self.world == 1 or self.config.weighting in GRADIENT_WEIGHTINGS:
            return self.network
        return DistributedDataParallel(
            self.network, [self.device] if self.device.type == 'cuda' else None)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        kernels = [p for p in self.network.parameters() if p.dim() > 1]
        others = [p for p in self.network.parameters() if p.dim() <= 1]
        # Weight decay is for the kernels of convolutions: BatchNorm's scales and biases are few
        # and have no reason to be small.
        groups = [{'params': kernels, 'weight_decay': config.weight_decay},
                  {'params': others, 'weight_decay': 0.0}]
        if weights := list(self.weighting.parameters()):
            groups.append({'params': weights, 'weight_decay': 0.0, 'rate': _WEIGHTING_RATE})
        if config.optimizer == 'sgd':
            return torch.optim.SGD(groups, config.learning_rate, momentum=0.9)
        kinds = {'adamw': torch.optim.AdamW, 'adam': torch.optim.Adam}
        if config.optimizer not in kinds:
            raise ValueError(f'optimizer: {config.optimizer!r}; choose adamw, adam or sgd')
        return kinds[config.optimizer](groups, config.learning_rate, fused=True)

    def _make_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'out: {self.out} cannot be made ({error.strerror}); choose another '
                             'folder with --out') from None

    def _check_space(self) -> None:
        """Stop before the training rather than at its first checkpoint."""
        size = sum(p.numel() * p.element_size() for p in self.network.parameters())
        # Weights, two moments and the average; and once more, because the old one stays meanwhile.
        needed, free = 8 * size, shutil.disk_usage(self.out).free
        if free < needed:
            raise OSError(f'{self.out}: {free / 1e9:.1f} GB are free and checkpoints need '
                          f'{needed / 1e9:.1f} GB; make room or choose another folder with --out')

    # ---- state ------------------------------------------------------------------------------
    @property
    def state_path(self) -> Path:
        """The file that a run is resumed from."""
        return self.out / 'state.pt'

    def state_dict(self) -> dict:
        """Return all that a later process needs to go on."""
        return {
            'network': self.network.state_dict(),
            'average': self.average.network.state_dict() if self.average else {},
            'weighting': self.weighting.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'class_counts': self.class_counts,
            'rng': torch.get_rng_state(),
            'step': self.step, 'elapsed': self.elapsed, 'best': self.best,
            'stage': self.stage, 'stage_steps': self.stage_steps,
            'figures': self.figures, 'validated': self.validated,
            'configuration': self.config.summary(),
        }

    def resume(self) -> None:
        """
        Take up the run in the folder.

        :raises CheckpointError: if there is none, or it is of another configuration.
        """
        state = read_state(self.state_path)
        try:
            self._check_configuration(state['configuration'])
            self.network.load_state_dict(state['network'])
            if self.average:
                self.average.network.load_state_dict(state['average'])
            self.weighting.load_state_dict(state['weighting'])
            self.optimizer.load_state_dict(state['optimizer'])
            self.class_counts.copy_(state['class_counts'])
            torch.set_rng_state(state['rng'])
            for name in ('step', 'elapsed', 'best', 'stage', 'stage_steps', 'figures',
                         'validated'):
                setattr(self, name, state[name])
        except KeyError as error:
            raise CheckpointError(
                f'{self.state_path}: lacks {error}, so another release wrote it; go on with that '
                'one, or train into another folder') from error
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'{self.state_path}: is the state of another training ({error}); resume with the '
                'configuration that it was started with, or train into another folder') from error
        if self.rank:
            # The stored one is the first process's; what matters is that they differ.
            torch.manual_seed(self.config.seed + self.step + 1 + self.rank)

    def _check_configuration(self, before: Mapping[str, Any]) -> None:
        """Raise ValueError for keys of which the training so far depends on the former value."""
        changed = [f'{name} was {before[name]!r} and is {value!r}'
                   for name, value in self.config.summary().items()
                   if name not in MAY_CHANGE and before[name] != value]
        if changed:
            raise ValueError(', '.join(changed))

    def _save_state(self) -> None:
        """Write what a run is resumed from, unless there is nothing in it to go on with."""
        if self.rank:
            return
        self._check_weights()
        with self._tolerating_a_full_disk(), _uninterrupted():
            save_state(self.state_path, self.state_dict())

    def _check_weights(self) -> None:
        """Raise ValueError where the weights are lost; what was saved before is not."""
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            raise self._divergence()

    def _divergence(self) -> ValueError:
        return ValueError(
            f'the training has diverged: at step {self.step} losses or weights are not finite; '
            f'lower learning_rate ({self.config.learning_rate:g}), or set clip '
            f'({self.config.clip:g}; 0 is none), and start anew or, from the last checkpoint if '
            'there is one, with --resume')

    @contextmanager
    def _tolerating_a_full_disk(self) -> Iterator[None]:
        """Go on where something cannot be written: the disk may be cleared before the end."""
        try:
            yield
        except OSError as error:
            self.failed_saves += 1
            print(f'warning: {error} ({self.failed_saves} so far)', flush=True)

    # ---- training ---------------------------------------------------------------------------
    def train(self) -> Figures:
        """
        Run to the end of the budget; return the figures of the last validation.

        :raises OSError: if the weights cannot be written at the end.
        """
        stream = self.source.stream(self.stages, self.device, self.out / 'frames', self.rank,
                                    self.world, self.step)
        journal = None
        if self.rank == 0:
            journal = Journal(self.out)
            journal.rewind(self.step)
        finished = False
        try:
            self._loop(stream, journal)
            if self.rank == 0:
                with _uninterrupted():
                    save_state(self.state_path, self.state_dict())
            finished = True
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            # The frames of an unfinished run are kept: it may be resumed.
            stream.close(keep=not finished)
            if journal is not None:
                journal.close()
        return self.figures

    def _stop(self) -> None:
        """Write what has been learnt, to go on with and to be used."""
        if self.rank or not self.step:
            return
        failed = self.failed_saves
        with _uninterrupted():
            self._save_state()
            with self._tolerating_a_full_disk():
                self._save_weights('last.safetensors')
            ProgressLine().say(f'stopped at step {self.step}; ' + (
                '--resume goes on' if failed == self.failed_saves else 'not all of it is written'))

    def _loop(self, stream: Stream, journal: Journal | None) -> None:
        config, line = self.config, ProgressLine()
        pace = Pace(len(self.card.tasks), self.device)
        last_save = last_check = started = pace.now
        while True:
            progress, log, check = distributed.agree([
                self.budget.progress(self.elapsed, self.step),
                pace.steps and (self.step == 1 or pace.waited >= config.log_every),
                pace.now - last_check >= config.validate_every])
            if log:
                losses, rate = pace.take()
                if not all(map(math.isfinite, losses)):
                    raise self._divergence()
                if journal is not None:
                    with self._tolerating_a_full_disk():
                        journal.write('train', self.step, self._row(progress, losses, rate))
            if check and progress < 1:
                self._validate(line)
                with self._tolerating_a_full_disk():
                    self._close_chapter(journal)
                last_check = pace.reset()
            if progress >= 1:
                break
            self._enter_stage(progress, stream)
            batch = stream.batch(self.stage, self.stage_steps[self.stage])
            with _uninterrupted():  # else what is saved would be half a step ahead of itself
                losses = self.train_step(batch, progress)
                self.stage_steps[self.stage] += 1
                self.elapsed += pace.lap(losses, self.stages[self.stage].batch)
            if self.rank == 0 and pace.due(line.seconds):
                line.show(self._describe(progress, pace))
            if pace.now - last_save >= config.checkpoint_every:
                self._save_state()
                last_save = pace.now
        if self.validated != self.step:  # else a finished run has been resumed
            self._validate(line)
            with _uninterrupted():  # a run that is resumed would not write it any more
                self._close_chapter(journal)
        if self.rank == 0:
            line.say(f'{self.step} steps in {clock(self.elapsed)}; with validation '
                     f'{clock(time.perf_counter() - started)} in this process; see {self.out}')

    def _enter_stage(self, progress: float, stream: Stream) -> None:
        """
        Go on to the next stage when it is time; by the clock, not before it has frames.

        A run that is resumed with a longer budget goes back, and then at once; to frames that it
        has not had.
        """
        due = next(i for i, stage in enumerate(self.stages) if progress < stage.until)
        if due == self.stage:
            return
        (ready,) = distributed.agree([
            self.budget.steps is not None or due < self.stage or stream.ready(due)])
        if ready:
            self.stage = due

    def train_step(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Take one step; return the losses of this process by task, on the device."""
        config = self.config
        rate = config.learning_rate * learning_rate_factor(progress, config.warm_up)
        for group in self.optimizer.param_groups:
            group['lr'] = rate * group.get('rate', 1.0)
        self.network.train()
        batch = self._padded(batch)
        truth, size = thin(batch, config.loss_stride)
        with self._mixed():
            outputs = self.model(self.normalise(batch['image']), out_size=size)
        self._count_classes(truth)
        losses = self.compute_losses(outputs, truth)
        self.optimizer.zero_grad(set_to_none=True)
        if method := GRADIENT_WEIGHTINGS.get(config.weighting):
            combine_gradients(list(losses.values()), list(self.network.parameters()), method)
        else:
            self.weighting(losses).backward()
            for parameter in self.weighting.parameters():
                parameter.grad = distributed.mean_over_processes(parameter.grad)
        if config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.network, self.step)
        return {name: loss.detach() for name, loss in losses.items()}

    def compute_losses(self, outputs: Mapping[str, Tensor],
                       truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each task for outputs and truth of one size."""
        losses = {}
        for name, loss in self.losses.items():
            target = truth[name]
            target = target.to(self.dtype) if target.is_floating_point() else target
            arguments = [outputs[name], target, valid_pixels(self.source.kinds[name], target)]
            if name == SEGMENTATION and loss is cross_entropy:
                arguments.append(self._class_weights())
            losses[name] = loss(*arguments)
        return losses

    def _count_classes(self, truth: Mapping[str, Tensor]) -> None:
        """Count in the classes of a training batch, where they are to be weighted."""
        if not self.config.class_balance or SEGMENTATION not in self.losses:
            return
        label, count = truth[SEGMENTATION], len(self.class_counts)
        valid = valid_pixels(self.source.kinds[SEGMENTATION], label)
        # Not bincount, which waits for the device to learn the size of its result.
        seen = torch.zeros(count + 1, device=label.device).scatter_add_(
            0, label.where(valid, count).flatten(), valid.flatten().float())[:-1]
        self.class_counts += distributed.mean_over_processes(seen)

    def _class_weights(self) -> Tensor | None:
        """Return weights by the classes of training so far, which are 1 on average."""
        power = self.config.class_balance
        if not power:
            return None
        share = self.class_counts / self.class_counts.sum().clamp(min=1) + 1e-3
        weight = share ** -power
        return (weight / (weight * share).sum()).to(self.dtype)

    def _padded(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return pad(batch, self.source.kinds, self.card.size_multiple)

    def normalise(self, image: Tensor) -> Tensor:
        """Return the network's input for RGB (N, 3, H, W) in 0..1."""
        image = (image.to(self.dtype) - self._mean) / self._std
        return image.contiguous(memory_format=torch.channels_last)

    def _mixed(self):
        return (torch.autocast(self.device.type, torch.bfloat16) if self.autocast
                else nullcontext())

    # ---- what it says and writes ------------------------------------------------------------
    def _describe(self, progress: float, pace: Pace) -> str:
        stage = self.stages[self.stage]
        left = clock(self.elapsed * (1 / progress - 1)) if progress else '?'
        losses = ' '.join(f'{name} {value:.3f}'
                          for name, value in zip(self.card.tasks, pace.mean(), strict=True))
        return (f'{100 * progress:5.1f}% step {self.step} {stage.height}x{stage.width} {losses} '
                f'lr {self.optimizer.param_groups[0]["lr"]:.1e} {pace.rate:.1f} images/s '
                f'{clock(self.elapsed)}, left {left}')

    def _row(self, progress: float, losses: list[float], rate: float) -> dict[str, float]:
        return {'progress': progress, 'seconds': self.elapsed,
                'learning_rate': self.optimizer.param_groups[0]['lr'], 'images_per_second': rate,
                **dict(zip(self.card.tasks, losses, strict=True))}

    @property
    def _learnt(self) -> nn.Module:
        """The network that is judged and written: the average, where there is one."""
        return (self.average.network if self.average else self.network).eval()

    def _validate(self, line: ProgressLine) -> None:
        self._check_weights()
        if self._validation is None:
            frames = self.config.validation_frames
            if self.source.length is None and self.budget.seconds:
                frames = max(4, min(frames, int(self.budget.seconds / _SECONDS_PER_ROOM)))
            self._validation = self.source.validation(frames, self.device)
        with self._mixed():
            self.figures = validate(
                self._learnt, map(self._padded, self._validation), self.card.tasks,
                self.normalise, self.compute_losses)
        self.validated = self.step
        if self.rank == 0:
            line.say('validation ' + json.dumps(_rounded(self.figures)))

    def _close_chapter(self, journal: Journal | None) -> None:
        """Write the weights, and then, which matters less, the figures of the validation."""
        # Every process has the same figures, since losses are means over all; one writes them.
        if journal is None:
            return
        self._save_weights('last.safetensors')
        if (value := score(self.figures, self.source.kinds)) > self.best:
            self._save_weights('best.safetensors')
            self.best = value
        with self._tolerating_a_full_disk():
            journal.write('validation', self.step, {
                f'{task}.{key}': value for task, values in self.figures.items()
                for key, value in values.items() if isinstance(value, float)})
            journal.draw()

    def _save_weights(self, name: str) -> None:
        if self.config.architecture != 'mtan':
            return
        training = {'data': self.config.data, 'steps': self.step,
                    'minutes': round(self.elapsed / 60, 1), 'device': _device_name(self.device),
                    'processes': self.world, 'validation': _rounded(self.figures),
                    'validation_step': self.validated,
                    'configuration': self.config.summary()}
        save_checkpoint(self.out / name, self._learnt, replace(self.card, training=training),
                        torch.float16)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C, and SIGTERM where it means the same, to the end of the block."""
    held = [number for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is signal.default_int_handler
            and threading.current_thread() is threading.main_thread()]
    asked = threading.Event()
    for number in held:
        signal.signal(number, lambda *_: asked.set())
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
        if asked.is_set():  # whatever else has gone wrong: it is to end
            raise KeyboardInterrupt


def _choose_device(name: str, local_rank: int) -> torch.device:
    """Return the device of a process, of which each of several on a machine has its own."""
    if local_rank and name in ('auto', 'cuda') and torch.cuda.device_count():
        name = f'cuda:{local_rank}'
    device = torch.device(choose_device(name))
    if device.type == 'cuda':
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # a stage's sizes never change
    return device


def _choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """Return the type of the weights, and whether to compute in bfloat16 where that is safe."""
    if name == 'auto':
        name = 'bf16' if is_made_for_bfloat16(str(device)) else 'fp32'
    if name not in ('fp32', 'bf16', 'fp64'):
        raise ValueError(f'precision: {name!r}; choose auto, fp32, bf16 or fp64')
    return torch.float64 if name == 'fp64' else torch.float32, name == 'bf16'


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{device.type}, {torch.get_num_threads()} of {os.cpu_count()} cores'


def _rounded(figures: Figures) -> Figures:
    return {task: {key: round(value, 4) for key, value in values.items()
                   if isinstance(value, float)} for task, values in figures.items()}
