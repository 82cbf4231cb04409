# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Make the npy layout of NYUv2 from the official labelled file, ``nyu_depth_v2_labeled.mat``.

Silberman et al., 'Indoor Segmentation and Support Inference from RGBD Images', ECCV 2012. The
prepared files have 13 classes (Couprie et al., 2013), metric depth, and normals that are fitted
to the measured depth, in NYU's axes (right, down, toward the camera).
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from mtan_perception.files import written_whole
from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.labels import NYUV2_13
from mtan_perception.training.layouts import DatasetError
from mtan_perception.training.normal_fit import fit_normals

_FRAMES = 1449
# The official split: one bit for each frame, set for the 654 of the test set.
_TEST_FRAMES = bytes.fromhex("""
    c087c81fffe601be001e1fe000000e0fbc8000e003bf1fffffc3f01c00000040010383f801fc0738
    0ffe00033ff00001fc38003c0007e0ff0007cff80000001fbffc38e00e3fffe03e03c03e18f800fc
    1861c31f9f87cce07f8c1f3c030003ffffffe001f07c0e00fffc70fc0e00000000700e071e00e003
    ce7f8003e0f0700e01c60198c0003ff1ff7f780e3fe301fffc7e673f01f0fff1f07ce003c7ff803f
    0ffee7f06000f3f038f0198001fe7f83fc0f0780ff80""")

# Beyond this the sensor measured nothing: the official tools cut depth off at 10 m.
_MAX_MEASURED = 9.9
_SETTINGS = 'prepare.json'


@dataclass(frozen=True)
class RawCamera:
    """
    The camera of the official file.

    :param size: (height, width) of its frames.
    :param intrinsics: (fx, fy, cx, cy) of its colour camera, to which depth is registered.
    :param border: first and last row, first and last column (the last ones excluded) of what both
        cameras see; white around it.
    """

    size: tuple[int, int] = (480, 640)
    intrinsics: tuple[float, float, float, float] = (
        518.857901, 519.469611, 325.582449, 253.736166)
    border: tuple[int, int, int, int] = (45, 471, 41, 601)

    def matrix(self) -> np.ndarray:
        """Return the intrinsics as a 3 x 3 array."""
        fx, fy, cx, cy = self.intrinsics
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


@dataclass(frozen=True)
class _Crop:
    """The part of a raw frame that is kept, and the size that it is brought to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    @classmethod
    def of(cls, camera: RawCamera, size: tuple[int, int]) -> '_Crop':
        """Return the largest part inside the border with the shape of `size`: no stretching."""
        first_row, last_row, first_column, last_column = camera.border
        height, width = last_row - first_row, last_column - first_column
        scale = min(height / size[0], width / size[1])
        rows, columns = round(size[0] * scale), round(size[1] * scale)
        return cls(first_row + (height - rows) // 2, first_column + (width - columns) // 2,
                   rows, columns, size)

    def pick(self, array: np.ndarray) -> np.ndarray:
        """Return the values of the pixels in which the new pixels' centres lie."""
        down, right = self.height / self.size[0], self.width / self.size[1]
        rows = self.top + ((np.arange(self.size[0]) + 0.5) * down).astype(int)
        columns = self.left + ((np.arange(self.size[1]) + 0.5) * right).astype(int)
        return array[rows[:, None], columns]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Return the image (H, W, 3), uint8, as float32 in 0..1."""
        part = image[self.top:self.top + self.height, self.left:self.left + self.width]
        planes = torch.tensor(part).permute(2, 0, 1)[None].float() / 255
        planes = functional.interpolate(planes, self.size, mode='bilinear', antialias=True)
        return planes[0].clamp(0, 1).permute(1, 2, 0).contiguous().numpy()

    def intrinsics(self, matrix: np.ndarray) -> np.ndarray:
        """Return the camera matrix of the result; pixel centres at whole numbers."""
        down, right = self.size[0] / self.height, self.size[1] / self.width
        matrix = matrix.copy()
        matrix[0, 2] = (matrix[0, 2] - self.left + 0.5) * right - 0.5
        matrix[1, 2] = (matrix[1, 2] - self.top + 0.5) * down - 0.5
        matrix[0, 0], matrix[1, 1] = matrix[0, 0] * right, matrix[1, 1] * down
        return matrix


def prepare_nyuv2(mat: Path, classes: Sequence[Path], out: Path,
                  size: tuple[int, int] = (288, 384), splits: Path | None = None,
                  measured: bool = False, camera: RawCamera | None = None,
                  progress: Callable[[int, int], None] = lambda done, total: None
                  ) -> dict[str, int]:
    """
    Write ``{train,val}/{image,label,depth,normal}/{i}.npy`` and ``intrinsics.npy`` below `out`.

    Each file is written whole or not at all, and one that is there is not made again: after an
    interruption the same call goes on.

    :param mat: the official file (MATLAB 7.3, which is HDF5).
    :param classes: one .mat file that maps the 894 classes to 13, or two that do so in turn.
    :param size: (height, width) of the result.
    :param splits: a .mat file with ``trainNdxs`` and ``testNdxs``, counted from 1; None for the
        official split.
    :param measured: leave depth 0 where the sensor measured none, instead of the file's guess.
    :param camera: of the frames, if they are not the official ones.
    :param progress: called with the number of frames done and of all.
    :returns: the number of frames in 'train' and 'val' (the official test set).
    :raises DatasetError: naming the file and what is wrong with it.
    """
    if min(size) < 1:
        raise ValueError(f'size: {size}; give a height and a width above 0')
    camera = camera or RawCamera()
    table = read_class_mapping(classes)
    with _open_mat(mat) as file:
        count = _check_contents(mat, file, camera, measured)
        chosen = _read_splits(splits, count)
        crop = _Crop.of(camera, size)
        _keep_settings(out, {'size': list(size), 'depth': 'measured' if measured else 'filled',
                             'classes': _digest(table), 'splits': _digest(chosen['val'])})
        _save(out / 'intrinsics.npy', crop.intrinsics(camera.matrix()))
        total, done = sum(map(len, chosen.values())), 0
        for split, frames in chosen.items():
            for number, index in enumerate(frames):
                paths = {name: out / split / name / f'{number}.npy'
                         for name in ('image', 'label', 'depth', 'normal')}
                if not all(path.exists() for path in paths.values()):
                    raw = _read_frame(mat, file, index)
                    arrays = _convert(mat, raw, index, table, crop, camera, measured)
                    for name, path in paths.items():
                        _save(path, arrays[name])
                done += 1
                progress(done, total)
    return {split: len(frames) for split, frames in chosen.items()}


def read_class_mapping(paths: Sequence[Path]) -> np.ndarray:
    """
    Return our class for each of the official ones, int8; the first entry (unlabelled) is -1.

    :param paths: the files in turn: classMapping13.mat (894 to 13), or classMapping40.mat (894
        to 40) and class13Mapping.mat (40 to 13), as they are publicly found.
    :raises DatasetError: unless they lead to the 13 classes.
    """
    table = None
    for path in paths:
        found = [array for name, array in _read_small(path).items()
                 if name.rpartition('/')[2] in ('mapClass', 'labels13')]
        if not found:
            raise DatasetError(f'{path}: holds no class mapping (mapClass or '
                               f'classMapping13.labels13)')
        step = np.concatenate(([0], found[0].astype(np.int64).ravel()))
        if table is not None and table.max() >= len(step):
            raise DatasetError(f'{path}: maps {len(step) - 1} classes, but the file before it '
                               f'leads to {table.max()}; give the files in order')
        table = step if table is None else step[table]
    classes = len(NYUV2_13.names)
    if table is None or table.max() != classes or table.min() < 0:
        raise DatasetError(
            f'{", ".join(map(str, paths))}: lead to {0 if table is None else table.max()} '
            f'classes, not {classes}; after classMapping40.mat give class13Mapping.mat')
    return (table - 1).astype(np.int8)


def _read_splits(path: Path | None, count: int) -> dict[str, list[int]]:
    """Return the frames, counted from 0, of 'train' and 'val' (the test set)."""
    if path is None:
        test = np.unpackbits(np.frombuffer(_TEST_FRAMES, np.uint8))[:min(count, _FRAMES)]
        if count > _FRAMES:
            raise DatasetError(f'the official split knows {_FRAMES} frames, not {count}; give '
                               f'--splits')
        return {'train': np.flatnonzero(test == 0).tolist(), 'val': np.flatnonzero(test).tolist()}
    content, chosen = _read_small(path), {}
    for split, name in (('train', 'trainNdxs'), ('val', 'testNdxs')):
        if name not in content:
            raise DatasetError(f'{path}: has no {name}')
        frames = content[name].astype(np.int64).ravel() - 1
        if len(frames) and not (0 <= frames.min() and frames.max() < count):
            raise DatasetError(f'{path}: {name} goes from {frames.min() + 1} to '
                               f'{frames.max() + 1}; there are {count} frames')
        chosen[split] = frames.tolist()
    return chosen


def _read_small(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a .mat file of either format, by name; structs as paths."""
    try:
        with open(path, 'rb') as file:
            head = file.read(128)
    except OSError as error:
        raise DatasetError(f'{path}: cannot be read ({error.strerror})') from error
    arrays: dict[str, np.ndarray] = {}
    if head.startswith(b'MATLAB 5.0'):
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise DatasetError(f'{path}: is in MATLAB 5 format, and reading it needs scipy; '
                               f'install it with: pip install scipy') from error
        try:
            _collect('', loadmat(path, simplify_cells=True), arrays)
        except Exception as error:  # a damaged file surfaces as many types
            raise DatasetError(f'{path}: cannot be read ({error})') from error
        return arrays
    with _open_mat(path) as file:
        file.visititems(lambda name, item: arrays.update(
            {name: item[()]} if getattr(item, 'dtype', np.dtype(object)).kind in 'iuf' else {}))
    return arrays


def _collect(prefix: str, content: dict, arrays: dict[str, np.ndarray]) -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            _collect(f'{prefix}{name}/', value, arrays)
        elif np.asarray(value).dtype.kind in 'iuf':
            arrays[prefix + name] = np.asarray(value)


@contextlib.contextmanager
def _open_mat(path: Path) -> Iterator:
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(f'{path}: reading it needs h5py; install it with: pip install h5py'
                           ) from error
    try:
        file = h5py.File(path, 'r')
    except OSError as error:
        raise DatasetError(f'{path}: is no whole MATLAB 7.3 file ({error}); download it again'
                           ) from error
    with file:
        yield file


def _check_contents(path: Path, file, camera: RawCamera, measured: bool) -> int:
    """Return the number of frames; DatasetError unless all arrays are there and fit."""
    height, width = camera.size
    needed = ['images', 'depths', 'labels'] + ['rawDepths'] * measured
    missing = [name for name in needed if name not in file]
    if missing:
        raise DatasetError(f'{path}: has no {", ".join(missing)}; is it '
                           f'nyu_depth_v2_labeled.mat? It holds {", ".join(file)}')
    count = len(file['images'])
    # MATLAB's axes are reversed in HDF5: frame, channel, column, row.
    for name in needed + ['rawDepths'] * ('rawDepths' in file and not measured):
        shape = (count, 3, width, height) if name == 'images' else (count, width, height)
        if file[name].shape != shape:
            raise DatasetError(f'{path}: {name} has shape {file[name].shape}, not {shape}')
    return count


def _read_frame(path: Path, file, index: int) -> dict[str, np.ndarray]:
    names = ('images', 'depths', 'labels', 'rawDepths')
    try:
        return {name: file[name][index].T for name in names if name in file}
    except OSError as error:
        raise DatasetError(f'{path}: frame {index + 1} cannot be read ({error}); the file is '
                           f'damaged there, download it again') from error


def _convert(path: Path, raw: dict[str, np.ndarray], index: int, table: np.ndarray, crop: _Crop,
             camera: RawCamera, measured: bool) -> dict[str, np.ndarray]:
    """Return image, label, depth and normal of one frame in the author's form."""
    if raw['labels'].max() >= len(table):
        raise DatasetError(f'{path}: frame {index + 1} has class {raw["labels"].max()}, and the '
                           f'mapping knows {len(table) - 1}; give the mapping of all classes')
    filled = np.nan_to_num(raw['depths'].astype(np.float32), posinf=0)
    # A normal of depth that was guessed would be a guess, too.
    sensor = np.nan_to_num(raw.get('rawDepths', filled).astype(np.float32), posinf=0)
    if 'rawDepths' in raw:
        sensor = np.where(sensor < _MAX_MEASURED, sensor, 0)
    normal = fit_normals(sensor, camera.matrix()) * np.float32(NORMAL_SIGNS['nyu'])
    depth = sensor if measured else filled
    return {'image': crop.resize(raw['images']),
            # Public codes resize labels as floating-point numbers.
            'label': crop.pick(table[raw['labels']]).astype(np.float32),
            'depth': crop.pick(depth.clip(min=0))[..., None],
            'normal': crop.pick(normal)}


def _keep_settings(out: Path, settings: dict) -> None:
    """Note what the folder is made with; DatasetError if a part was made in another way."""
    path = out / _SETTINGS
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            raise DatasetError(f'{path}: is damaged; remove {out} and start again') from error
        if before != settings:
            raise DatasetError(f'{path}: the files there were made with {before}, not with '
                               f'{settings}; choose another folder or remove this one')
        return
    with _whole(path) as temporary:
        temporary.write_text(json.dumps(settings), encoding='utf-8')


def _digest(values: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(values, np.int64).tobytes()).hexdigest()[:16]


def _save(path: Path, array: np.ndarray) -> None:
    with _whole(path) as temporary, open(temporary, 'wb') as file:
        np.save(file, array)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the path's place when all went well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise OSError(f'{path}: cannot be written ({error}); when there is room, the same command '
                      f'goes on where it stopped') from error
