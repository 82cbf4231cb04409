# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Read the frames of a data set on disk as tensors, checked.

A sample is a dictionary of tensors: 'image' (3, H, W) float32 RGB in 0..1; one entry for each
task, by its kind:

* classification: (H, W) int64, -1 where there is no truth;
* depth and inverse_depth: (1, H, W) float32, 0 where there is no truth; depth in metres;
* normal: (3, H, W) float32 unit vectors in the camera's optical frame, zero without truth;
* regression: (C, H, W) float32, NaN where there is no truth (in all C channels);

and 'intrinsics' (3, 3) float32 where the camera is known.
"""

from collections.abc import Iterable
import hashlib
import logging
import os
from pathlib import Path
import re

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtan_perception.files import decode_picture
from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION
from mtan_perception.training.layouts import (
    CLASSIFICATION,
    DatasetError,
    INVERSE_DEPTH,
    Layout,
    LAYOUTS,
    read_layout,
    REGRESSION,
    SPLITS,
    Target,
)

# The share of the training frames that is kept back for validation.
_VALIDATION_SHARE = 0.1
_MAX_LISTED = 20
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette is read as colours

_log = logging.getLogger(__name__)


class DenseDataset(Dataset):
    """
    The frames of one split.

    Indexing skips a frame that cannot be used (a corrupt file, NaN, a label out of range, a depth
    without a valid pixel) and gives the next one in its place: one bad file must not end a long
    training. It is logged with the file's name and listed in ``skipped``, also when it happens
    in a worker process. ``load`` gives exactly the frame asked for, or an error.
    """

    def __init__(self, layout: Layout, root: Path, split: str,
                 tasks: Iterable[str] | None = None) -> None:
        """
        List the files.

        :raises DatasetError: for an empty split and for a missing file, named.
        :raises ValueError: for a task or a split that does not exist.
        """
        if split not in SPLITS:
            raise ValueError(f'split: {split!r}; choose one of {", ".join(SPLITS)}')
        wanted = layout.targets if tasks is None else tuple(tasks)
        unknown = [name for name in wanted if name not in layout.targets]
        if unknown:
            raise ValueError(f'tasks: {layout.name} has no {", ".join(map(repr, unknown))}; it '
                             f'has {", ".join(layout.targets)}')
        self.targets = {name: target for name, target in layout.targets.items()
                        if name in wanted}
        self.labels = layout.labels if SEGMENTATION in wanted else None
        self.root, self.split = root, split
        self._folder = layout.folders['test' if split == 'test' else 'train']
        self._image = layout.image
        self.ids = self._list_ids()
        self._check_files()
        self.size = _header(self.paths(0)['image'])[:2]
        """(height, width) of the images in pixels."""
        self._intrinsics = _read_intrinsics(layout, root)
        # Shared, so that the main process sees what the loader's workers met.
        self._bad = torch.zeros(len(self.ids), dtype=torch.bool).share_memory_()

    @property
    def tasks(self) -> dict[str, int]:
        """Name -> channels."""
        return {name: target.channels for name, target in self.targets.items()}

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> kind, as the augmentation and the losses need it."""
        return {name: target.kind for name, target in self.targets.items()}

    @property
    def losses(self) -> dict[str, str]:
        """Name -> name of the loss: cross_entropy, l1, mse or cosine."""
        return {name: target.loss for name, target in self.targets.items()}

    @property
    def focal_length(self) -> float | None:
        """In pixels of the images, None where the camera is not known."""
        return None if self._intrinsics is None else float(self._intrinsics[0, 0])

    @property
    def depth_unit(self) -> str:
        """What the task ``depth`` is: 'metre', or 'inverse' for one without unit."""
        target = self.targets.get(DEPTH)
        return 'inverse' if target and target.kind == INVERSE_DEPTH else 'metre'

    @property
    def names(self) -> list[str]:
        """A name for each frame, unique within the data set."""
        return [f'{self._folder}/{name}' for name in self.ids]

    @property
    def skipped(self) -> list[str]:
        """The names of the frames that indexing has had to skip so far."""
        return [self.names[index] for index in self._bad.nonzero()[:, 0].tolist()]

    def paths(self, index: int) -> dict[str, Path]:
        """Return the files of a frame: 'image' and one for each task."""
        patterns = {'image': self._image,
                    **{name: target.files for name, target in self.targets.items()}}
        return {name: self.root / pattern.format(split=self._folder, id=self.ids[index])
                for name, pattern in patterns.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self._bad[place]:
                continue
            try:
                return self.load(place)
            except DatasetError as error:
                self._bad[place] = True
                _log.warning('frame skipped: %s', error)
        raise DatasetError(f'{self.root}: not one of the {len(self)} frames of {self.split} can '
                           f'be used; the log above names what is wrong with each')

    def load(self, index: int) -> dict[str, Tensor]:
        """
        Read one frame.

        :raises DatasetError: naming the file, if it cannot be used.
        """
        sample = {}
        for name, path in self.paths(index).items():
            array = _read(path)
            try:
                self._check_shape(name, array.shape)
                sample[name] = (_image(array) if name == 'image'
                                else _READERS[self.targets[name].kind](array, self.targets[name]))
            except ValueError as error:
                raise DatasetError(f'{path}: {error}') from error
        if self._intrinsics is not None:
            sample['intrinsics'] = self._intrinsics
        return sample

    def check_header(self, name: str, path: Path) -> None:
        """Raise DatasetError unless the file is whole and of the right shape, by its header."""
        try:
            self._check_shape(name, _header(path))
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(f'{path}: {error}') from error

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        channels = 3
        if name != 'image':
            target = self.targets[name]
            channels = 1 if target.kind == CLASSIFICATION else target.channels
        found = shape if len(shape) > 2 else (*shape, 1)
        # The fourth channel of a picture is its opacity.
        fits = found[2:] == (channels,) or (channels == 3 and found[2:] == (4,))
        if found[:2] != self.size or not fits:
            raise ValueError(
                f'has shape {tuple(shape)}, and {(*self.size, channels)} is needed (height, '
                f'width, channels; all files of a data set have the size of its first image)')

    def _list_ids(self) -> list[str]:
        pattern = self._image.replace('{split}', self._folder)
        once = re.escape(pattern).replace(r'\{id\}', '(?P<id>[^/]+)', 1)
        name = re.compile(once.replace(r'\{id\}', '(?P=id)'))
        depth = pattern[:pattern.index('{id}')].count('/')
        fixed, wild = pattern.split('/')[:depth], pattern.split('/')[depth:]
        files = self.root.joinpath(*fixed).glob('/'.join(
            re.sub(r'([*?[])', r'[\1]', part).replace('{id}', '*') for part in wild))
        matches = (name.fullmatch(path.relative_to(self.root).as_posix()) for path in files)
        ids = sorted((match['id'] for match in matches if match), key=_natural)
        if not ids:
            raise DatasetError(f'{self.root / pattern}: no such file for any {{id}}, so the split '
                               f'{self.split} is empty; check the root of the data set')
        if self.split == 'test':
            return ids
        kept_back = _kept_back(ids)
        chosen = [name for name in ids if (name in kept_back) == (self.split == 'val')]
        if not chosen:
            raise DatasetError(f'{self.root / pattern}: {len(ids)} file, too few to take a '
                               f'validation split from')
        return chosen

    def _check_files(self) -> None:
        missing = [path for index in range(len(self))
                   for path in self.paths(index).values() if not path.is_file()]
        if missing:
            raise DatasetError(f'{missing[0]}: missing (of {self.split}, {len(missing)} file(s) '
                               f'in all); each image needs one for each task, or leave the task '
                               f'out')


def open_dataset(name: str, root: str | os.PathLike, split: str,
                 tasks: Iterable[str] | None = None) -> DenseDataset:
    """
    Open one split of a data set.

    :param name: one of layouts.LAYOUTS, or 'folder' for one described in a YAML file.
    :param root: the folder of the data set; for 'folder' the YAML file.
    :param split: 'train', 'val' or 'test'. A tenth of the training frames, chosen by a hash of
        their ids and so always the same, is 'val'; the author's folder ``val`` is 'test'.
    :param tasks: names of the tasks to read; None for all.
    :raises DatasetError: naming the file and the fault.
    :raises ValueError: for an unknown name, split or task.
    """
    if name == 'folder':
        layout, folder = read_layout(Path(root))
    elif name in LAYOUTS:
        layout, folder = LAYOUTS[name], Path(root)
    else:
        raise ValueError(f'data set: {name!r}; choose one of {", ".join(LAYOUTS)} or folder')
    return DenseDataset(layout, folder, split, tasks)


def check_dataset(dataset: DenseDataset, contents: int = 8) -> None:
    """
    Check a data set before a training starts with it.

    The header and the length of every file, and all values of some frames.

    :param contents: of how many frames to read everything; they are spread evenly.
    :raises DatasetError: listing what is wrong, file by file.
    """
    problems = []
    for index in range(len(dataset)):
        for name, path in dataset.paths(index).items():
            try:
                dataset.check_header(name, path)
            except DatasetError as error:
                problems.append(str(error))
    if not problems:
        step = max(1, len(dataset) // max(1, contents))
        for index in range(0, len(dataset), step)[:contents]:
            try:
                dataset.load(index)
            except DatasetError as error:
                problems.append(str(error))
    if problems:
        more = len(problems) - _MAX_LISTED
        raise DatasetError('\n  '.join([
            f'{dataset.root}: {len(problems)} fault(s) in {dataset.split}:',
            *problems[:_MAX_LISTED], *([f'and {more} more'] if more > 0 else [])]))


def _natural(name: str) -> tuple:
    """Sort 2 before 10."""
    return tuple((int(part), '') if part.isdecimal() else (-1, part)
                 for part in re.split(r'(\d+)', name))


def _kept_back(ids: list[str]) -> set[str]:
    """Return the ids for validation: those with the lowest hashes, none of a single one."""
    ranked = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, round(_VALIDATION_SHARE * len(ids))) if len(ids) > 1 else 0
    return set(ranked[:count])


def _read_intrinsics(layout: Layout, root: Path) -> Tensor | None:
    if layout.intrinsics is None:
        return None
    if not isinstance(layout.intrinsics, str):
        fx, fy, cx, cy = layout.intrinsics
        return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    path = root / layout.intrinsics
    if not path.is_file():
        if layout not in LAYOUTS.values():
            raise DatasetError(f'{path}: no such file, though `intrinsics` names it; correct the '
                               'path, or leave the key out if the camera is not known')
        return None
    matrix = _read(path)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0:
        raise DatasetError(f'{path}: holds {matrix.tolist()}; a (3, 3) camera matrix is needed')
    return torch.from_numpy(matrix.astype(np.float32))


def _read(path: Path) -> np.ndarray:
    """Return the array (H, W) or (H, W, C; colours as RGB) of a file, or raise DatasetError."""
    try:
        if path.suffix == '.npy':
            return np.load(path, allow_pickle=False)
        array = decode_picture(path.read_bytes(), unchanged=True)
    except (EOFError, OSError, ValueError) as error:
        raise DatasetError(f'{path}: cannot be read ({error})') from error
    if array is None:
        raise DatasetError(f'{path}: is not a whole image or npy file')
    if array.ndim == 3:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    return array


def _header(path: Path) -> tuple[int, ...]:
    """Return the shape that a file announces; DatasetError if it is cut off or none of ours."""
    if path.suffix == '.npy':
        try:
            return np.load(path, mmap_mode='r', allow_pickle=False).shape
        except (EOFError, OSError, ValueError) as error:
            raise DatasetError(f'{path}: cannot be read ({error})') from error
    if path.suffix != '.png':
        return _read(path).shape  # a JPEG's size may stand anywhere in it
    with open(path, 'rb') as file:
        head = file.read(26)
        file.seek(max(0, path.stat().st_size - 12))
        tail = file.read()
    if head[:8] != b'\x89PNG\r\n\x1a\n' or tail[4:8] != b'IEND' or head[25] not in _PNG_CHANNELS:
        raise DatasetError(f'{path}: is not a whole PNG file')
    width, height = (int.from_bytes(head[start:start + 4], 'big') for start in (16, 20))
    return height, width, _PNG_CHANNELS[head[25]]


def _image(array: np.ndarray) -> Tensor:
    array = array[..., :3]
    if array.dtype.kind == 'u':
        array = array.astype(np.float32) / np.iinfo(array.dtype).max
    array = _finite(array, is_truth=False)
    low, high = array.min(), array.max()
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f'has values from {low:g} to {high:g}; an image of {array.dtype} needs '
                         f'0..1 (or store it as uint8)')
    return _planes(array).clamp(0, 1)


def _classes(array: np.ndarray, target: Target) -> Tensor:
    array = array.reshape(array.shape[:2])
    ignored = _ignored(array, target)
    with np.errstate(invalid='ignore'):
        ids = array.astype(np.int64)
    ids[ignored] = -1
    wrong = ~ignored & ((ids < 0) | (ids >= target.channels) | (ids != array))
    if wrong.any():
        raise ValueError(f'has label(s) {_some(array[wrong])} in {wrong.sum()} pixel(s); they go '
                         f'from 0 to {target.channels - 1}, with {_some(target.ignore)} for none')
    return torch.from_numpy(ids)


def _depth(array: np.ndarray, target: Target) -> Tensor:
    array = array.reshape(*array.shape[:2], 1)
    depth = _finite(np.where(_ignored(array, target), 0, array)).clip(min=0)
    if not depth.any():
        raise ValueError('has no valid pixel (none above 0)')
    return _planes(depth) * target.scale


def _normals(array: np.ndarray, target: Target) -> Tensor:
    array = array[..., :3]
    ignored = _ignored(array, target)
    unknown = ignored.all(-1) | (ignored & np.isnan(array)).any(-1)
    if array.dtype.kind == 'u':  # a picture of (n + 1) / 2; its zero vector is the middle grey
        unknown |= ~array.any(-1)  # black is no unit vector, but what holes are painted with
        array = array.astype(np.float32) / np.iinfo(array.dtype).max * 2 - 1
        unknown |= np.abs(array).max(-1) < 0.01
    array = _finite(np.where(unknown[..., None], 0, array))
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    valid = length > 1e-3
    if not valid.any():
        raise ValueError('has no valid pixel (all vectors are zero)')
    if (length > 2).any():
        raise ValueError(f'has vectors of length {length.max():g}; normals have length 1')
    array = np.where(valid, array / np.where(valid, length, 1), 0)
    return _planes(array * np.array(NORMAL_SIGNS[target.axes]))


def _values(array: np.ndarray, target: Target) -> Tensor:
    array = array.reshape(*array.shape[:2], -1)[..., :target.channels]
    ignored = _ignored(array, target).any(-1, keepdims=True)
    values = _planes(_finite(np.where(ignored, 0, array))) * target.scale
    if ignored.all():
        raise ValueError(f'has no valid pixel (all are {_some(target.ignore)})')
    return values.masked_fill(torch.from_numpy(ignored[..., 0]), torch.nan)


_READERS = {CLASSIFICATION: _classes, DEPTH: _depth, INVERSE_DEPTH: _depth, NORMAL: _normals,
            REGRESSION: _values}


def _ignored(array: np.ndarray, target: Target) -> np.ndarray:
    ignored = np.isin(array, target.ignore)
    if np.isnan(target.ignore).any():
        ignored |= np.isnan(array)
    return ignored


def _finite(array: np.ndarray, is_truth: bool = True) -> np.ndarray:
    array = array.astype(np.float32, copy=False)
    wrong = ~np.isfinite(array)
    if wrong.any():
        remedy = ('; where NaN stands for unknown, the YAML file of the data says so by '
                  '`ignore: .nan`' if is_truth and np.isnan(array).any() else '')
        raise ValueError(f'has NaN or infinity in {wrong.sum()} value(s){remedy}')
    return array


def _planes(array: np.ndarray) -> Tensor:
    """Return (C, H, W) float32 from (H, W, C)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), np.float32))


def _some(values: Iterable[float]) -> str:
    """Return up to five different values as text."""
    unique = np.unique(np.asarray(values))
    return ', '.join(f'{value:g}' for value in unique[:5]) + (', ...' if len(unique) > 5 else '')
