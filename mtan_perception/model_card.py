# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a weights file says of itself: read without its tensors, and without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open, SafetensorError

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.labels import generic, LabelSet, NYUV2_13
from mtan_perception.tasks import check_tasks, NYUV2_TASKS, SEGMENTATION

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEPTH_UNITS = ('metre', 'inverse')
NORMAL_AXES = tuple(NORMAL_SIGNS)

DEFAULT_WEIGHTS = Path(__file__).parent / 'weights' / 'default.safetensors'

UNTRAINED = ("weights 'random': the network is untrained and its outputs mean nothing; they only "
             'prove that the package runs')
"""What the engine and mtan export say where they are used."""

_FORMAT = 'mtan_perception'
_FORMAT_VERSION = '1'


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file, the fault, the remedy."""


@dataclass(frozen=True)
class ModelCard:
    """
    What one has to know to run a network's weights and to read its outputs.

    :param tasks: name -> channels, in the network's order.
    :param labels: the classes of ``segmentation``, numbered ones if none are given; None where it
        is not a task.
    :param input_size: (height, width) in pixels that it was trained at.
    :param mean: and ``std``, applied to RGB in 0..1 as (rgb - mean) / std.
    :param focal_length: in pixels at ``input_size``, that depth was learnt for; None: unknown.
    :param depth_unit: 'metre', or 'inverse' for a disparity without unit: larger is nearer.
    :param normal_axes: 'optical' (right, down, forward) or 'nyu' (right, down, toward the
        camera): the axes that the normal output is in.
    :param training: summary of the training, anything that JSON can hold.
    :raises ValueError: naming the entry that cannot be.
    """

    tasks: dict[str, int]
    backbone: str = 'resnet50'
    output_stride: int = 8
    head_channels: int = 256
    aspp_rates: tuple[int, ...] = (12, 24, 36)
    labels: LabelSet | None = None
    input_size: tuple[int, int] = (288, 384)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    focal_length: float | None = None
    depth_unit: str = 'metre'
    normal_axes: str = 'optical'
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tasks(self.tasks)
        classes = self.tasks.get(SEGMENTATION)
        if self.labels is None and classes:
            object.__setattr__(self, 'labels', generic(classes))
        if self.labels is not None and len(self.labels.names) != classes:
            raise ValueError(
                f'labels: {self.labels.name} has {len(self.labels.names)} classes, but the '
                f'segmentation task has {classes}; choose the label set it was trained with')
        if len(self.input_size) != 2 or not all(
                isinstance(size, int) and size >= 1 for size in self.input_size):
            raise ValueError(f'input_size: {self.input_size}; give (height, width) in pixels')
        if (len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, self.mean))
                or not all(0 < value < math.inf for value in self.std)):
            raise ValueError(f'mean {self.mean}, std {self.std}: give three each, std above 0')
        if self.focal_length is not None and not 0 < self.focal_length < math.inf:
            raise ValueError(
                f'focal_length: {self.focal_length}; give pixels above 0, or nothing')
        if self.depth_unit not in DEPTH_UNITS:
            raise ValueError(
                f'depth_unit: {self.depth_unit!r}; choose one of {", ".join(DEPTH_UNITS)}')
        if self.normal_axes not in NORMAL_AXES:
            raise ValueError(
                f'normal_axes: {self.normal_axes!r}; choose one of {", ".join(NORMAL_AXES)}')

    @property
    def size_multiple(self) -> int:
        """
        Of what the height and width of the network's input are multiples; images are padded to it.

        Its output is stretched over the input corner to corner (align_corners), so that with
        any other padding all lies somewhere else.
        """
        return max(8, self.output_stride)

    @property
    def corrects_depth(self) -> bool:
        """Tell whether depth can be corrected by a camera's focal length."""
        return self.focal_length is not None and self.depth_unit == 'metre'

    @property
    def is_synthetic(self) -> bool:
        """Tell whether the network was trained on rendered rooms alone."""
        return self.training.get('data') == 'synthetic'

    def to_metadata(self) -> dict[str, str]:
        """Return the card as the metadata of a safetensors file."""
        card = asdict(replace(self, labels=None))
        card['labels'] = self.labels and self.labels.to_dict()
        return {'format': _FORMAT, 'format_version': _FORMAT_VERSION, 'card': json.dumps(card)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> 'ModelCard':
        """Read what ``to_metadata`` wrote; CheckpointError for anything else."""
        if metadata.get('format') != _FORMAT:
            raise CheckpointError(
                'holds no mtan_perception card, so it is the weights of something else; '
                'choose a file written by mtan train or mtan import')
        version = metadata.get('format_version')
        if version != _FORMAT_VERSION:
            raise CheckpointError(
                f'has format version {version}, and this release reads {_FORMAT_VERSION}; '
                f'use the release of mtan_perception that wrote it, or export it again')
        try:
            card = json.loads(metadata['card'])
            labels = card.pop('labels')
            card = {name: tuple(value) if isinstance(value, list) else value
                    for name, value in card.items()}
            return cls(**card, labels=labels and LabelSet.from_dict(labels))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'has a damaged card ({type(error).__name__}: {error}); '
                f'copy the file again or write it anew') from error


COMPACT = ModelCard(
    tasks=NYUV2_TASKS, backbone='resnet18', output_stride=16, head_channels=128,
    aspp_rates=(3, 6, 9), labels=NYUV2_13)


def read_card(weights: str | os.PathLike) -> ModelCard:
    """
    Return the card alone, without reading the tensors.

    :param weights: see mtan_perception.checkpoint.load_network.
    :raises CheckpointError: as that does.
    """
    if str(weights) == 'random':
        return COMPACT
    path = locate(weights)
    with open_weights(path) as file:
        return card_of(path, file)


def locate(weights: str | os.PathLike) -> Path:
    """Return the file that `weights` names; 'default' is the shipped one."""
    if str(weights) != 'default':
        return Path(weights)
    if not DEFAULT_WEIGHTS.is_file():
        raise CheckpointError(
            f'weights: default is not part of this installation ({DEFAULT_WEIGHTS} is missing); '
            'give the path of a weights file, or random to see that everything runs')
    return DEFAULT_WEIGHTS


def open_weights(path: Path, framework: str = 'np') -> safe_open:
    """
    Open a weights file, its tensors for 'np' or 'pt'.

    :raises CheckpointError: naming the file, what is wrong with it and the remedy.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(32)
        return safe_open(path, framework)
    except OSError as error:
        raise CheckpointError(
            f'{path}: cannot be opened ({error.strerror}); give the path of a weights file '
            f'(.safetensors), default or random') from error
    except SafetensorError as error:
        raise CheckpointError(f'{path}: {_diagnose(path, head)} ({error})') from error


def _diagnose(path: Path, head: bytes) -> str:
    if head.startswith((b'PK', b'\x80')):
        return (f'is a PyTorch file, not safetensors; convert it with '
                f'mtan import {path} --tasks ... --out ...')
    if head.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer, not the weights; run git lfs pull'
    return (f'is not a whole safetensors file ({path.stat().st_size} bytes); '
            f'copy or download it again')


def card_of(path: Path, file: safe_open) -> ModelCard:
    """Return the card of an open weights file; CheckpointError, with its path, for none."""
    try:
        return ModelCard.from_metadata(file.metadata() or {})
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
