# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: steps within a budget, checkpoints, validations, and the weights at the end."""

from collections.abc import Mapping
from dataclasses import replace
import json
from pathlib import Path
import time

import torch
from torch import nn, Tensor

from mtan_perception.checkpoint import build_network, COMPACT, ModelCard, save_checkpoint
from mtan_perception.tasks import parse_tasks, SEGMENTATION
from mtan_perception.training.averaging import WeightAverage
from mtan_perception.training.config import parse_stages, TrainConfig
from mtan_perception.training.losses import choose_losses, cross_entropy
from mtan_perception.training.rooms import RoomStream, VALIDATION_SEEDS
from mtan_perception.training.schedule import Budget, learning_rate_factor
from mtan_perception.training.state import read_state, save_state
from mtan_perception.training.validation import RoomValidation, score
from mtan_perception.training.weighting import FixedWeighting

_LOG_SECONDS = 10.0
# Share of the time that is kept for the last validation, and bounds in seconds.
_CLOSING = 0.03, 8.0, 90.0


class Trainer:
    """One run: everything that its configuration decides, and its state."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device(config.device)
        self.stages = parse_stages(config.stages)
        self.card = _card(config)
        torch.manual_seed(config.seed)
        network = build_network(self.card)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.average = WeightAverage(self.network, config.ema) if config.ema else None
        self.losses = choose_losses(self.card.tasks, config.losses)
        self.weighting = FixedWeighting(self.card.tasks, config.loss_weights)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.network, config.weight_decay), lr=config.learning_rate,
            fused=self.device.type == 'cuda')
        self.class_counts = torch.zeros(self.card.tasks.get(SEGMENTATION, 1), device=self.device)
        seconds = config.minutes * 60 or None
        if seconds:
            share, least, most = _CLOSING
            seconds = max(0.5 * seconds, seconds - min(max(share * seconds, least), most))
        self.budget = Budget(seconds, config.steps or None)
        self.step, self.elapsed, self.best = 0, 0.0, float('-inf')
        self.stage, self.stage_start = 0, 0
        self.figures: dict = {}
        self._validation = None
        self._mean = torch.tensor(self.card.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(self.card.std, device=self.device).view(3, 1, 1)

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
            'stage': self.stage, 'stage_start': self.stage_start,
        }

    def resume(self) -> None:
        """Take up the run in the folder; CheckpointError if there is none that fits."""
        state = read_state(self.state_path)
        self.network.load_state_dict(state['network'])
        if self.average:
            self.average.network.load_state_dict(state['average'])
        self.weighting.load_state_dict(state['weighting'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.class_counts.copy_(state['class_counts'])
        torch.set_rng_state(state['rng'])
        for name in ('step', 'elapsed', 'best', 'stage', 'stage_start'):
            setattr(self, name, state[name])

    # ---- training ---------------------------------------------------------------------------
    def train(self) -> dict:
        """Run to the end of the budget; return the figures of the last validation."""
        config = self.config
        stream = RoomStream(self.stages, config.seed, config.focal_length, config.input_height,
                            self.device, self.out / 'frames')
        finished = False
        try:
            self._loop(stream)
            finished = True
        finally:
            stream.close(keep=not finished)
        self._validate()
        self._save_weights('last.safetensors')
        save_state(self.state_path, self.state_dict())
        return self.figures

    def _loop(self, stream: RoomStream) -> None:
        config = self.config
        clock = last_log = last_save = last_check = time.perf_counter()
        images = 0
        while (progress := self.budget.progress(self.elapsed, self.step)) < 1:
            stage = next(i for i, s in enumerate(self.stages) if progress < s.until)
            if stage != self.stage:
                self.stage, self.stage_start = stage, self.step
            batch = stream.batch(stage, self.step - self.stage_start)
            waited = time.perf_counter()
            losses = self._train_step(batch, progress)
            images += self.stages[stage].batch
            now = time.perf_counter()
            self.elapsed += now - clock
            clock = now
            if now - last_log > _LOG_SECONDS or self.step == 1:
                self._log(progress, losses, images / (now - last_log), waited)
                last_log, images = now, 0
            if now - last_save > config.checkpoint_every:
                save_state(self.state_path, self.state_dict())
                last_save = now
            if now - last_check > config.validate_every:
                self._validate()
                self._save_weights('last.safetensors')
                last_check = time.perf_counter()

    def _train_step(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        config = self.config
        rate = config.learning_rate * learning_rate_factor(progress, config.warm_up)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.network.train()
        losses = self._compute_losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.weighting(losses).backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.network, self.step)
        return {name: loss.detach() for name, loss in losses.items()}

    def _compute_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        truth, size = _thin(batch, self.config.loss_stride)
        bf16 = self.device.type == 'cuda'
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.network(self.normalise(batch['image']), out_size=size)
        losses = {}
        for name, loss in self.losses.items():
            if loss is cross_entropy:
                losses[name] = loss(outputs[name], truth[name], self._class_weights(truth[name]))
            else:
                losses[name] = loss(outputs[name], truth[name])
        return losses

    def _class_weights(self, truth: Tensor) -> Tensor | None:
        """Count the classes seen so far; return their weights, 1 on the average pixel."""
        if not self.config.class_balance:
            return None
        classes = torch.arange(len(self.class_counts), device=truth.device)
        self.class_counts += (truth.flatten()[:, None] == classes).sum(0)
        share = self.class_counts / self.class_counts.sum() + 1e-3
        weight = share ** -self.config.class_balance
        return weight / (weight * share).sum()

    def normalise(self, image: Tensor) -> Tensor:
        """Return the network's input for RGB (N, 3, H, W) in 0..1."""
        return ((image - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    # ---- what it says and writes --------------------------------------------------------------
    def _log(self, progress: float, losses: Mapping[str, Tensor], rate: float,
             waited: float) -> None:
        stage = self.stages[self.stage]
        left = 'unknown' if not progress else _clock(self.elapsed * (1 / progress - 1))
        parts = ' '.join(f'{name} {loss.item():.4f}' for name, loss in losses.items())
        print(f'{100 * progress:5.1f}% step {self.step} {stage.height}x{stage.width} {parts} '
              f'lr {self.optimizer.param_groups[0]["lr"]:.2e} {rate:.1f} images/s '
              f'{_clock(self.elapsed)} left {left}', flush=True)

    def _validate(self) -> None:
        config = self.config
        if self._validation is None:
            count = config.validation_frames
            if self.budget.seconds:
                count = max(4, min(count, int(self.budget.seconds / 30)))
            size = config.input_height, config.input_width
            self._validation = RoomValidation(VALIDATION_SEEDS[:count], size,
                                              config.focal_length, self.device)
        network = self.average.network if self.average else self.network.eval()
        self.figures = self._validation(network, self.card.tasks, self.normalise)
        print('validation', json.dumps(_short(self.figures)), flush=True)
        if (value := score(self.figures)) > self.best:
            self.best = value
            self._save_weights('best.safetensors')

    def _save_weights(self, name: str) -> None:
        network = self.average.network if self.average else self.network
        training = {'data': self.config.data, 'step': self.step,
                    'minutes': round(self.elapsed / 60, 1), 'device': str(self.device),
                    'seed': self.config.seed, 'validation': _short(self.figures),
                    'config': self.config.summary()}
        save_checkpoint(self.out / name, network, replace(self.card, training=training),
                        torch.float16)


def _card(config: TrainConfig) -> ModelCard:
    return replace(
        COMPACT, tasks=parse_tasks(config.tasks), backbone=config.backbone,
        output_stride=config.output_stride, head_channels=config.head_channels,
        aspp_rates=config.aspp_rates, input_size=(config.input_height, config.input_width),
        focal_length=config.focal_length)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Return the parameters, with weight decay for the kernels of convolutions alone."""
    kernels = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    return [{'params': kernels, 'weight_decay': weight_decay},
            {'params': others, 'weight_decay': 0.0}]


def _thin(batch: Mapping[str, Tensor], stride: int) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """
    Return the truth on every n-th row and column, and its size.

    The rows and columns are those on which the network's output of that size lies: its corners
    are the image's corners (align_corners).
    """
    height, width = batch['image'].shape[-2:]
    size = height // stride, width // stride
    if stride == 1:
        return dict(batch), size
    device = batch['image'].device
    rows = torch.linspace(0, height - 1, size[0], device=device).round().long()
    columns = torch.linspace(0, width - 1, size[1], device=device).round().long()
    truth = {name: value[..., rows[:, None], columns] for name, value in batch.items()
             if name != 'image'}
    return truth, size


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


def _short(figures: Mapping[str, Mapping]) -> dict:
    return {task: {key: round(value, 4) for key, value in values.items()
                   if isinstance(value, float)} for task, values in figures.items()}
