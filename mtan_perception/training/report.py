# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation as a table and as JSON, and two of them side by side."""

from collections.abc import Mapping
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

_CLASSES_PER_LINE = 3


class Figure(NamedTuple):
    """How one figure is called and written: times `factor`, with `decimals`, in `unit`."""

    task: str
    key: str
    title: str
    unit: str = ''
    factor: float = 1.0
    decimals: int = 2
    higher_is_better: bool = False

    def text(self, value: float | None, sign: str = '') -> str:
        """Return the value with its unit, '-' for None; a sign of '+' is written out."""
        if value is None:
            return '-'
        return f'{value * self.factor:{sign}.{self.decimals}f} {self.unit}'.rstrip()


FIGURES = (
    Figure(SEGMENTATION, 'miou', 'mean IoU', '%', 100, 2, True),
    Figure(SEGMENTATION, 'pixel_accuracy', 'pixel accuracy', '%', 100, 2, True),
    Figure(DEPTH, 'abs', 'absolute error', 'm', 1, 4),
    Figure(DEPTH, 'rel', 'relative error', '', 1, 4),
    Figure(NORMAL, 'mean', 'mean angle', '°'),
    Figure(NORMAL, 'median', 'median angle', '°'),
    Figure(NORMAL, 'within_11.25', 'within 11.25°', '%', 100, 2, True),
    Figure(NORMAL, 'within_22.5', 'within 22.5°', '%', 100, 2, True),
    Figure(NORMAL, 'within_30', 'within 30°', '%', 100, 2, True),
)

_KEYS = {figure.key for figure in FIGURES}


def make_report(result: Mapping[str, Mapping], run: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return what goes into the JSON file: the figures by task, and as `run` how they came about.

    `per_class` lists the IoU in the order of `run['classes']`. A figure for which there was no
    pixel is None.
    """
    figures = {task: {key: [_plain(item) for item in value] if isinstance(value, list)
                      else _plain(value) for key, value in values.items()}
               for task, values in result.items()}
    return {**figures, 'run': dict(run)}


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report as JSON."""
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(text + '\n', encoding='utf-8')


def read_report(path: Path) -> dict[str, Any]:
    """Read what `write_report` wrote; raise ValueError naming a file that is something else."""
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
        if not _values(report):
            raise ValueError('not one figure')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: holds no figures of mtan evaluate ({type(error).__name__}: '
                         f'{error}); give a file that it wrote with --json') from error
    return report


def table(report: Mapping[str, Any]) -> str:
    """Return the figures by task, one a line, then the IoU of each class."""
    values = _values(report)
    classes = [figure for figure in values if figure.key not in _KEYS]
    lines, last = [], None
    for figure, value in values.items():
        if figure.key in _KEYS:
            task = '' if figure.task == last else figure.task
            lines.append(f'{task:14}{figure.title:16}{figure.text(value):>10}'.rstrip())
            last = figure.task
    if classes:
        lines += ['', 'IoU of each class']
        width = max(len(figure.title) for figure in classes) + 2
        cells = [f'{figure.title:{width}}{figure.text(values[figure]):>8}' for figure in classes]
        lines += ['  ' + '    '.join(cells[start:start + _CLASSES_PER_LINE])
                  for start in range(0, len(cells), _CLASSES_PER_LINE)]
    return '\n'.join(lines)


def comparison(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """
    Return two reports side by side: each figure of either, b - a, and which one is better.

    What differs in how they came about comes first, because it may explain the rest.
    """
    ours, theirs = _values(a), _values(b)
    lines = [f"{'':32}{'A':>12}{'B':>12}{'B - A':>13}  better"]
    for figure in dict.fromkeys((*ours, *theirs)):
        pair = ours.get(figure), theirs.get(figure)
        difference, better = _difference(figure, *pair)
        name = f"{figure.task if figure.key in _KEYS else 'IoU of'} {figure.title}"
        lines.append(f'{name:32}{figure.text(pair[0]):>12}{figure.text(pair[1]):>12}'
                     f'{difference:>13}  {better}'.rstrip())
    return '\n'.join([*_run_differences(a['run'], b['run']), '', *lines])


def _values(report: Mapping[str, Any]) -> dict[Figure, float | None]:
    """Return every figure of the report; raise TypeError or ValueError for what is none."""
    run = report['run']
    values = {}
    for figure in FIGURES:
        if figure.task in report:
            # Depth that is no distance, as of a stereo pair's disparity, has no metres.
            no_unit = figure.task == DEPTH and run.get('depth_unit', 'metre') != 'metre'
            named = figure._replace(unit='') if no_unit else figure
            values[named] = report[figure.task][figure.key]
    if SEGMENTATION in report:
        per_class = report[SEGMENTATION]['per_class']
        for number, (name, value) in enumerate(zip(run['classes'], per_class, strict=True)):
            values[Figure(SEGMENTATION, f'class {number}', name, '%', 100, 2, True)] = value
    for figure, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f'{figure.task} {figure.key} is {value!r}')
    return values


def _difference(figure: Figure, a: float | None, b: float | None) -> tuple[str, str]:
    """Return b - a as text, and 'A', 'B' or '=', as it is written."""
    if a is None or b is None:
        return '-', ''
    difference = figure.text(b - a, '+')
    # What the table shows as no difference is none.
    rounded = round((b - a) * figure.factor, figure.decimals)
    if rounded == 0:
        return difference.replace('-', '+'), '='
    return difference, 'B' if (rounded > 0) == figure.higher_is_better else 'A'


def _run_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    keys = [key for key in dict.fromkeys((*a, *b))
            if key != 'seconds' and a.get(key) != b.get(key)]
    lines = [f'{key}:\n  A  {_text(a.get(key))}\n  B  {_text(b.get(key))}' for key in keys]
    frames = ('data', 'split', 'seeds', 'count', 'image_size')
    if any(key in keys for key in frames):
        lines.append('The frames are not the same: a difference may come from them alone.')
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(map(str, value))
    if isinstance(value, Mapping):
        return ', '.join(f'{key} {item}' for key, item in value.items())
    return '-' if value is None else str(value)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
