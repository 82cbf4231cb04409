# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a training: its keys, their defaults, presets and overrides."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
import math
from pathlib import Path
from typing import Any

from mtan_perception.tasks import DEPTH, NORMAL, parse_tasks, SEGMENTATION


@dataclass(frozen=True)
class Stage:
    """
    A part of a training with one image size.

    :param until: share of the whole training, 0 to 1, at which it ends.
    :param height: and `width`, in pixels.
    :param batch: images in a step, over all processes.
    :param reuse: how many times a rendered frame is drawn on average.
    """

    until: float
    height: int
    width: int
    batch: int
    reuse: float = 3.0


def parse_stages(text: str) -> tuple[Stage, ...]:
    """
    Read ``0.7:144x192:16:3,1:288x384:4`` as until:HEIGHTxWIDTH:batch and, if given, :reuse.

    :raises ValueError: naming the entry that cannot be read, or stages that do not end at 1.
    """
    stages = []
    for entry in text.split(','):
        try:
            until, size, batch, *reuse = entry.split(':')
            height, width = size.split('x')
            stage = Stage(float(until), int(height), int(width), int(batch), *map(float, reuse))
        except (TypeError, ValueError):
            raise ValueError(f'stages: cannot read {entry!r}; write until:HEIGHTxWIDTH:batch and, '
                             'if wanted, :reuse, for example 0.7:144x192:16') from None
        if min(stage.height, stage.width, stage.batch) < 1 or stage.reuse <= 0:
            raise ValueError(f'stages: {entry!r}: sizes, batch and reuse must be above 0')
        if stage.until <= (stages[-1].until if stages else 0):
            raise ValueError(f'stages: {entry!r} ends before it begins; let them end one after '
                             'the other, the last at 1')
        stages.append(stage)
    if stages[-1].until != 1:
        raise ValueError(f'stages: the last one ends at {stages[-1].until}, not at 1')
    return tuple(stages)


@dataclass(frozen=True)
class TrainConfig:
    """The keys of a training configuration; each can be set in YAML and on the command line."""

    data: str = 'synthetic'
    """synthetic, a data set known by name (nyuv2, ...), or folder for one described in YAML."""
    root: str = ''
    """Folder of the data set; for folder its YAML file."""
    tasks: str = ''
    """name:channels of the wanted tasks, comma-separated; all that the data set has if empty."""
    architecture: str = 'mtan'
    """mtan, split (hard sharing) or single (a network for each task)."""
    backbone: str = 'resnet18'
    """resnet18, resnet34, resnet50 or resnet101."""
    output_stride: int = 16
    """Input pixels per pixel of the deepest features: 8, 16 or 32."""
    head_channels: int = 128
    """Of each task's pyramid."""
    aspp_rates: tuple[int, ...] = (3, 6, 9)
    """Dilations of its branches, in pixels of those features."""
    pretrained: str = ''
    """Path of a torchvision ResNet state dict for the trunk, or imagenet to fetch one."""
    weights: str = ''
    """Weights to start from: the path of a weights file, or default. Classes with other names, or
    of another number, start anew; the trunk has to fit."""

    minutes: float = 0.0
    """Length of the training by time, the last validation included; or give epochs or steps."""
    epochs: float = 0.0
    """Length of the training by how often each frame of a file data set is drawn."""
    steps: int = 0
    stages: str = ''
    """Image sizes and batches in turn, as until:HEIGHTxWIDTH:batch[:reuse]; if empty one stage
    of the data set's size and batch 8."""
    input_height: int = 288
    """The size of synthetic images that the network is meant for."""
    input_width: int = 384
    focal_length: float = 288.0
    """Pixels at that size: the camera that synthetic depth is brought to."""
    pool_gigabytes: float = 2.0
    """Memory for the rendered frames of a stage."""
    scales: tuple[float, ...] = (1.0, 1.2, 1.5)
    """Zooms of file data sets, one drawn for each frame."""
    flip: float = 0.5
    """Probability of mirroring a frame."""
    jitter: float = 0.0
    """Brightness, contrast and saturation of file data sets are multiplied by 1 ± this at most."""
    workers: int = 0
    """Processes that read files."""

    optimizer: str = 'adamw'
    """adamw, adam or sgd (with momentum 0.9)."""
    learning_rate: float = 1e-3
    """At its highest, after warm_up; from there it falls to nothing by a cosine."""
    weight_decay: float = 0.02
    """Of the kernels of convolutions."""
    warm_up: float = 0.04
    """Share of the training in which the learning rate rises."""
    clip: float = 5.0
    """Greatest norm of the gradient; 0 for no limit."""
    dropout: float = 0.1
    """In the heads; the original has 0.5."""
    ema: float = 0.05
    """Share of the steps so far over which weights are averaged; 0 for no averaging."""

    weighting: str = 'equal'
    """equal, fixed, uncertainty, dwa, gls, pcgrad, cagrad or nash."""
    period: int = 100
    """Steps of a period of dynamic weight averaging, where the data set has no epochs."""
    losses: Mapping[str, str] = field(default_factory=dict)
    """task: cross_entropy, l1, mse, relative, cosine or chord, where it should not be the usual
    one."""
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    """task: factor, for weighting fixed."""
    class_balance: float = 0.0
    """Power of a class's inverse frequency that weights its cross-entropy; 0: all alike."""
    loss_stride: int = 1
    """Compute losses on every n-th row and column."""

    seed: int = 0
    """Of the weights, the order of frames and the rooms that are drawn."""
    device: str = 'auto'
    """auto, cpu, cuda or cuda:N."""
    precision: str = 'auto'
    """fp32, bf16 (mixed) or fp64; auto: bf16 where the device is made for it (GPUs from Ampere on,
    CPUs with AMX or AVX-512's bfloat16), else fp32."""
    threads: int = 0
    """Threads of the CPU; 0 for one a core."""
    out: str = 'runs/train'
    """Folder for weights, checkpoints, tables and curves."""
    checkpoint_every: float = 45.0
    """Seconds between checkpoints."""
    log_every: float = 10.0
    """Seconds between rows of the log; 0 for every step."""
    validate_every: float = 600.0
    """Seconds between validations."""
    validation_frames: int = 48
    """At most so many; fewer in a short training on rooms, which have to be rendered."""

    def summary(self) -> dict[str, Any]:
        """Return the keys as JSON can hold them."""
        return asdict(self)


MAY_CHANGE = frozenset((
    'root', 'minutes', 'epochs', 'steps', 'pool_gigabytes', 'workers', 'learning_rate', 'warm_up',
    'clip', 'device', 'precision', 'threads', 'out', 'checkpoint_every', 'log_every',
    'validate_every', 'validation_frames'))
"""The keys of which a resumed training may have other values than it began with."""

LENGTHS = 'minutes', 'epochs', 'steps'
"""The keys that say how long a training is, of which one is given."""

# key -> least and greatest value.
_RANGES = {
    **dict.fromkeys(('head_channels', 'output_stride', 'input_height', 'input_width', 'period',
                     'loss_stride', 'validation_frames'), (1, math.inf)),
    **dict.fromkeys((*LENGTHS, 'focal_length', 'pool_gigabytes', 'jitter', 'workers',
                     'learning_rate', 'weight_decay', 'clip', 'threads', 'checkpoint_every',
                     'log_every', 'validate_every', 'class_balance'), (0, math.inf)),
    **dict.fromkeys(('flip', 'dropout', 'ema'), (0, 1)),
    'warm_up': (0, 0.99),
}

# What the figures are judged by: relative depth error, mean angle, share of right pixels; rare
# classes count a little more. The world is endless, so that dropout has nothing to prevent.
_JUDGED = {
    'losses': {DEPTH: 'relative', NORMAL: 'chord'},
    'weighting': 'fixed',
    'loss_weights': {SEGMENTATION: 1.0, DEPTH: 4.0, NORMAL: 2.5},
    'class_balance': 0.15,
    'dropout': 0.0,
}

# preset -> kind of device -> keys. Presets are Python, so that training needs no YAML package.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The weights that ship: rooms, small images first because they are cheap, then real size.
    'default': {
        'cpu': {**_JUDGED, 'stages': '0.25:96x128:8:5,0.6:144x192:6:5,1:288x384:4:3',
                'loss_stride': 2},
        'cuda': {**_JUDGED, 'stages': '0.6:144x192:256:4,1:288x384:96:4',
                 'learning_rate': 2e-3, 'pool_gigabytes': 16.0},
    },
}


def make_config(overrides: Mapping[str, Any], preset: str | None = None,
                device: str = 'cpu') -> TrainConfig:
    """
    Return a configuration: the defaults, then the preset, then the overrides.

    :param overrides: key -> value; a text is converted to the key's type.
    :param device: kind of device, cpu or cuda, that the preset is chosen for.
    :raises ValueError: naming an unknown preset or key, or a value that does not fit.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f'preset: {preset!r}; choose one of {", ".join(PRESETS)}')
    keys = dict(PRESETS[preset][device]) if preset else {}
    known = {entry.name: entry for entry in fields(TrainConfig)}
    for name, value in overrides.items():
        if name not in known:
            raise ValueError(f'configuration: unknown key {name!r}; keys are {", ".join(known)}')
        keys[name] = _convert(name, value, getattr(TrainConfig(), name))
        least, greatest = _RANGES.get(name, (-math.inf, math.inf))
        if name in _RANGES and not least <= keys[name] <= greatest:
            limits = f'{least:g} or more' if greatest == math.inf else f'{least:g} to {greatest:g}'
            raise ValueError(f'{name}: {value}; give {limits}')
    config = replace(TrainConfig(), **keys)
    if config.tasks:
        parse_tasks(config.tasks)
    if config.stages:
        parse_stages(config.stages)
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys of a YAML configuration; ValueError names the file if it is none."""
    import yaml  # here, because presets must work without it
    try:
        keys = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'{path}: cannot be opened ({error.strerror}); give a YAML file with '
                         'keys of the configuration') from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: is not YAML ({error})') from error
    if not isinstance(keys, dict):
        raise ValueError(f'{path}: holds no keys; write lines such as learning_rate: 0.001')
    return keys


def _convert(name: str, value: Any, default: Any) -> Any:
    """Return the value in the type of the key's default."""
    try:
        if isinstance(default, Mapping):
            if isinstance(value, str):
                value = dict(entry.split('=') for entry in value.split(',') if entry)
            number = name == 'loss_weights'
            return {str(key): float(item) if number else str(item) for key, item in value.items()}
        if isinstance(default, tuple):
            items = value.split(',') if isinstance(value, str) else value
            return tuple(type(default[0])(item) for item in items)
        if isinstance(default, float):
            return float(value)
        if isinstance(default, int):
            if int(value) != float(value):
                raise ValueError
            return int(value)
        return str(value)
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f'{name}: cannot read {value!r}; the default is {default!r}') from None
