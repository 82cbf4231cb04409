# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Describe where the files of a data set lie and what each of its dense tasks is.

Two data sets are known by name, in the npy layout of the MTAN author's prepared files; any other
is described in a YAML file (see config/datasets/example.yaml).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import math
from pathlib import Path
from typing import Any

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.labels import (
    CITYSCAPES_7,
    CITYSCAPES_19,
    generic,
    LabelSet,
    NYUV2_13,
    read_label_set,
)
from mtan_perception.tasks import check_tasks, DEPTH, NORMAL, SEGMENTATION

CLASSIFICATION, REGRESSION, INVERSE_DEPTH = 'classification', 'regression', 'inverse_depth'

LOSSES = {
    CLASSIFICATION: ('cross_entropy',),
    REGRESSION: ('l1', 'mse'),
    DEPTH: ('l1', 'mse'),
    INVERSE_DEPTH: ('l1', 'mse'),
    NORMAL: ('cosine',),
}
"""Kind of task -> the losses that fit it, the default first."""

# What a task of one of our own names may be; any other name may be of any kind.
_KINDS_OF = {SEGMENTATION: (CLASSIFICATION,), DEPTH: (DEPTH, INVERSE_DEPTH), NORMAL: (NORMAL,)}

_IGNORE = {CLASSIFICATION: (-1, 255), REGRESSION: (math.nan,)}
_CHANNELS = {DEPTH: 1, INVERSE_DEPTH: 1, NORMAL: 3}

DEFAULT_KINDS = {name: kinds[0] for name, kinds in _KINDS_OF.items()}
"""The kind of a task, by its name, where no data set says otherwise."""

SPLITS = ('train', 'val', 'test')


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, the fault and the remedy."""


def _choose(what: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ValueError(f'{what}: {value!r}; choose one of {", ".join(choices)}')


def _check_pattern(what: str, pattern: Any) -> None:
    if not isinstance(pattern, str) or '{split}' not in pattern or '{id}' not in pattern:
        raise ValueError(f'{what}: {pattern!r}; give a path with {{split}} and {{id}} in it, for '
                         f"example '{{split}}/image/{{id}}.png'")


@dataclass(frozen=True)
class Target:
    """
    One dense task of a data set.

    :param kind: 'classification'; 'regression'; 'depth' (z in metres, valid above 0);
        'inverse_depth' (larger is nearer, valid above 0); 'normal' (unit vectors, valid unless
        zero). The last three follow the geometry when an image is scaled or flipped.
    :param channels: classes of a classification, else values per pixel.
    :param files: path below the root, with ``{split}`` and ``{id}``.
    :param loss: one of LOSSES[kind]; empty for the first of them.
    :param ignore: values in the files that mean 'no truth here'.
    :param scale: factor from the files' unit to ours, 0.001 for depth in millimetres.
    :param axes: of normals, a name of geometry.NORMAL_SIGNS.
    :raises ValueError: naming the entry that cannot be.
    """

    kind: str
    channels: int
    files: str
    loss: str = ''
    ignore: tuple[float, ...] = ()
    scale: float = 1.0
    axes: str = 'optical'

    def __post_init__(self) -> None:
        _choose('kind', self.kind, LOSSES)
        if not self.loss:
            object.__setattr__(self, 'loss', LOSSES[self.kind][0])
        _choose('loss', self.loss, LOSSES[self.kind])
        _choose('axes', self.axes, NORMAL_SIGNS)
        fixed = _CHANNELS.get(self.kind, self.channels)
        if type(self.channels) is not int or self.channels < 1 or self.channels != fixed:
            raise ValueError(f'channels: {self.channels!r}; {self.kind} has '
                             f'{_CHANNELS.get(self.kind, "a whole number of them, at least 1")}')
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f'scale: {self.scale}; give a factor above 0')
        _check_pattern('files', self.files)


@dataclass(frozen=True)
class Layout:
    """
    Where a data set's files lie.

    :param image: path below the root, with ``{split}`` and ``{id}``; RGB.
    :param targets: the tasks by name, in order.
    :param labels: the classes of ``segmentation``; None where it is not a task.
    :param folders: what ``{split}`` is for 'train' and for 'test'.
    :param intrinsics: (fx, fy, cx, cy) in pixels of the images as they lie there, or the path
        below the root of a (3, 3) npy file, which may be absent; None: unknown.
    """

    name: str
    image: str
    targets: dict[str, Target]
    labels: LabelSet | None = None
    folders: Mapping[str, str] = field(default_factory=lambda: {'train': 'train', 'test': 'test'})
    intrinsics: tuple[float, ...] | str | None = None

    def __post_init__(self) -> None:
        _check_pattern('image', self.image)
        check_tasks({name: target.channels for name, target in self.targets.items()})
        for name, target in self.targets.items():
            if target.kind not in _KINDS_OF.get(name, LOSSES):
                raise ValueError(f'tasks: {name} is of kind {" or ".join(_KINDS_OF[name])}, not '
                                 f'{target.kind}; give it another name')
        if set(self.folders) != {'train', 'test'} or len(set(self.folders.values())) != 2:
            raise ValueError(f'folders: {dict(self.folders)}; give two different ones, train and '
                             f'test (val is taken from train)')


def _author_layout(name: str, labels: LabelSet, label_folder: str, depth: str,
                   **targets: Target) -> Layout:
    path = '{{split}}/{}/{{id}}.npy'.format
    return Layout(name, path('image'), {
        SEGMENTATION: Target(CLASSIFICATION, len(labels.names), path(label_folder), ignore=(-1,)),
        DEPTH: Target(depth, 1, path('depth')), **targets}, labels,
        {'train': 'train', 'test': 'val'}, 'intrinsics.npy')


LAYOUTS = {layout.name: layout for layout in (
    _author_layout('nyuv2', NYUV2_13, 'label', DEPTH,
                   normal=Target(NORMAL, 3, '{split}/normal/{id}.npy', axes='nyu')),
    _author_layout('cityscapes', CITYSCAPES_7, 'label_7', INVERSE_DEPTH),
    _author_layout('cityscapes_19', CITYSCAPES_19, 'label_19', INVERSE_DEPTH),
)}
"""
The data sets known by name.

``cityscapes`` has 7 classes and ``cityscapes_19`` has 19. Their depth is inverse depth without
a unit (a disparity), so larger is nearer and its errors are no metres.
"""


def read_layout(path: Path) -> tuple[Layout, Path]:
    """
    Read the description of a data set, and where its files lie.

    :param path: a YAML file as config/datasets/example.yaml, which explains each key.
    :raises DatasetError: naming the file and the key.
    """
    import yaml  # here, because training on the known data sets must work without it
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DatasetError(f'{path}: cannot be read ({error.strerror}); give the YAML file that '
                           f'describes the data set') from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f'{path}: is not YAML: {error}') from error
    try:
        return _layout(content, path)
    except (TypeError, ValueError) as error:
        raise DatasetError(f'{path}: {error}') from error


def _layout(content: Any, path: Path) -> tuple[Layout, Path]:
    entries = _mapping('the file', content, {'image', 'tasks'},
                       {'name', 'root', 'folders', 'intrinsics'})
    root = path.parent / entries.get('root', '.')
    targets, labels = {}, None
    for name, entry in _mapping('tasks', entries['tasks']).items():
        try:
            targets[name], own_labels = _target(name, entry, path.parent)
        except (TypeError, ValueError) as error:
            raise ValueError(f'tasks: {name}: {error}') from error
        labels = own_labels if name == SEGMENTATION else labels
    layout = Layout(str(entries.get('name', path.stem)), entries['image'], targets, labels,
                    intrinsics=_intrinsics(entries.get('intrinsics')))
    if 'folders' in entries:
        folders = _mapping('folders', entries['folders'], {'train', 'test'})
        layout = replace(layout, folders={key: str(value) for key, value in folders.items()})
    return layout, root


def _target(name: str, entry: Any, folder: Path) -> tuple[Target, LabelSet | None]:
    optional = {'kind', 'channels', 'labels', 'loss', 'ignore', 'scale', 'axes'}
    entry = dict(_mapping('', entry, {'files'}, optional))
    kind = entry.setdefault('kind', DEFAULT_KINDS.get(name, REGRESSION))
    labels = None
    if 'labels' in entry:
        source = entry.pop('labels')
        known = (folder / source).is_file()
        labels = read_label_set(folder / source if known else source)
        entry.setdefault('channels', len(labels.names))
        if entry['channels'] != len(labels.names):
            raise ValueError(f'channels: {entry["channels"]!r}, but the label set {labels.name} '
                             f'has {len(labels.names)} classes')
    if kind == CLASSIFICATION and 'channels' not in entry:
        raise ValueError('channels: missing; give the number of classes, or labels')
    entry.setdefault('channels', _CHANNELS.get(kind, 1))
    ignore = entry.get('ignore', _IGNORE.get(kind, ()))
    entry['ignore'] = tuple(map(float, ignore if isinstance(ignore, (list, tuple)) else [ignore]))
    target = Target(**entry)
    if kind == CLASSIFICATION and labels is None:
        labels = generic(target.channels)
    return target, labels


def _intrinsics(value: Any) -> tuple[float, ...] | str | None:
    if value is None or isinstance(value, str):
        return value
    entries = _mapping('intrinsics', value, {'fx', 'fy', 'cx', 'cy'})
    return tuple(float(entries[key]) for key in ('fx', 'fy', 'cx', 'cy'))


def _mapping(where: str, value: Any, required: set[str] | None = None,
             optional: set[str] = frozenset()) -> Mapping:
    """Return `value` if it is a mapping with the required and no unknown keys, or ValueError."""
    where = where and f'{where}: '
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f'{where}{value!r}; a mapping of keys to values is needed')
    if required is not None:
        missing, unknown = required - set(value), set(value) - required - set(optional)
        if missing:
            raise ValueError(f'{where}{", ".join(sorted(missing))} missing')
        if unknown:
            raise ValueError(f'{where}unknown {", ".join(sorted(map(repr, unknown)))}; known are '
                             f'{", ".join(sorted(required | set(optional)))}')
    return value
