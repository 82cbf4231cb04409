# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What a training says and writes about itself: progress, CSV, TensorBoard, curves."""

from collections.abc import Mapping
import csv
import os
from pathlib import Path
import sys

import numpy as np

from mtan_perception.files import written_whole

_KINDS = ('train', 'validation')
"""Of records. Other CSV files in the folder are somebody else's."""


class Journal:
    """
    The log of one run in its folder.

    Each kind of record is a CSV file with a row for each time; a resumed run goes on in it. Where
    TensorBoard is installed its event files are written as well, to tensorboard/.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._board = _open_board(folder / 'tensorboard')

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Add a row to KIND.csv; a new file gets a header."""
        path = self._folder / f'{kind}.csv'
        _cut(path)
        row = {'step': step, **values}
        new = path not in self._tables()
        with open(path, 'a', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow({name: f'{value:.9g}' for name, value in row.items()})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f'{kind}/{name}', value, step)

    def rewind(self, step: int) -> None:
        """Drop the rows after a step: a resumed run takes those steps again."""
        for path in self._tables():
            header, *rows = path.read_text(encoding='utf-8').splitlines(keepends=True)
            kept = [row for row in rows if _step(row) is not None and _step(row) <= step]
            if kept != rows:
                with written_whole(path) as temporary:
                    temporary.write_text(''.join([header, *kept]), encoding='utf-8')

    def _tables(self) -> list[Path]:
        """Return the CSV files that there are; one that is empty is none."""
        paths = [self._folder / f'{kind}.csv' for kind in _KINDS]
        return [path for path in paths if path.is_file() and path.stat().st_size]

    def draw(self) -> None:
        """Draw every column of the CSV files over the steps, where OpenCV is installed."""
        try:
            import cv2

            from mtan_perception.charts import band_chart
        except ImportError:
            return
        for path in self._tables():
            names, steps, columns = _read(path)
            pictures = [band_chart(steps, *_smooth(values), title=f'{path.stem} {name}',
                                   x_label='step', y_label=name)
                        for name, values in zip(names, columns, strict=True)]
            if pictures:
                sheet = np.concatenate(pictures)
                cv2.imwrite(str(path.with_suffix('.png')), sheet[..., ::-1])

    def close(self) -> None:
        """Finish the event files."""
        if self._board is not None:
            self._board.close()


class ProgressLine:
    """One line that is rewritten on a terminal; in a file, a line each time."""

    def __init__(self) -> None:
        self._rewrites = sys.stdout.isatty()

    @property
    def seconds(self) -> float:
        """How often to show it."""
        return 1.0 if self._rewrites else 10.0

    def show(self, text: str) -> None:
        """Show the state."""
        print(f'\r\033[K{text}' if self._rewrites else text, end='' if self._rewrites else '\n',
              flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(f'\r\033[K{text}' if self._rewrites else text, flush=True)


def clock(seconds: float) -> str:
    """Return h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'


def _open_board(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _cut(path: Path) -> None:
    """Take off a row without an end, as a full disk leaves it."""
    if not path.is_file() or _ends_whole(path):
        return
    os.truncate(path, path.read_bytes().rfind(b'\n') + 1)


def _ends_whole(path: Path) -> bool:
    with open(path, 'rb') as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        return file.read() in (b'', b'\n')


def _step(row: str) -> int | None:
    first = row.partition(',')[0]
    return int(first) if first.isdecimal() and row.endswith('\n') else None


def _read(path: Path) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    with open(path, newline='', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    table = np.array([row for row in rows if len(row) == len(header)], np.float64)
    table = table.reshape(-1, len(header))
    return header[1:], table[:, 0], list(table[:, 1:].T)


def _smooth(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return least, mean and greatest of a window of a fortieth of the values around each."""
    reach = len(values) // 80
    padded = np.pad(values, reach, mode='edge')
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return windows.min(1), windows.mean(1), windows.max(1)
