# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Label sets: what the class ids of a segmentation mask mean, and in which colour they show."""

from collections.abc import Mapping
import colorsys
from dataclasses import dataclass
import functools
from pathlib import Path
from typing import Any

import numpy as np

UNLABELLED = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """
    Name and RGB colour of each class; the class id is the position.

    Raise ValueError unless there are 1 to 255 classes, each with one name and one colour of
    three integers in 0..255 (id 255 is kept for unlabelled pixels).
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= UNLABELLED:
            raise ValueError(
                f'label set {self.name!r}: {len(self.names)} classes; 1 to {UNLABELLED} can be '
                f'told apart in a mono8 mask')
        if len(self.names) != len(self.colors):
            raise ValueError(
                f'label set {self.name!r}: {len(self.names)} names but {len(self.colors)} '
                f'colours; give one colour for each class')
        for name, color in zip(self.names, self.colors, strict=True):
            if not isinstance(name, str) or not name:
                raise ValueError(
                    f'label set {self.name!r}: class name {name!r} is not a text; quote it')
            if not _is_color(color):
                raise ValueError(
                    f'label set {self.name!r}: colour {color!r} of {name!r}; '
                    f'give three integers from 0 to 255')

    @functools.cached_property
    def palette(self) -> np.ndarray:
        """Return the RGB colour of every id, (256, 3) uint8, read-only; unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[:len(self.colors)] = self.colors
        palette.flags.writeable = False
        return palette

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, as in a label file (see ``read_label_set``)."""
        classes = [{'name': name, 'color': list(color)}
                   for name, color in zip(self.names, self.colors, strict=True)]
        return {'name': self.name, 'classes': classes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> 'LabelSet':
        """Read what ``to_dict`` wrote; a class without a colour gets a generated one."""
        try:
            classes = list(data['classes'])
            names = tuple(entry['name'] for entry in classes)
            colors = tuple(
                tuple(entry['color']) if 'color' in entry else _generated_color(index)
                for index, entry in enumerate(classes))
            return cls(str(data['name']), names, colors)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f'label set: not readable ({type(error).__name__}: {error}); expected a name and '
                f'a list of classes, each with a name and a color [r, g, b]') from error


def generic(count: int) -> LabelSet:
    """Return ``count`` classes named class_0, class_1, ... in colours that differ."""
    names = tuple(f'class_{index}' for index in range(count))
    return LabelSet(f'generic_{count}', names, tuple(map(_generated_color, range(count))))


def read_label_set(source: str | Path) -> LabelSet:
    """
    Return a known label set by its name, or read one from a YAML file.

    The file holds ``name: ...`` and ``classes:``, a list of ``{name: bed, color: [0, 0, 255]}``
    in the order of the ids. Raise ValueError naming the file or the known names.
    """
    known = LABEL_SETS.get(str(source))
    if known is not None:
        return known
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f'label set {str(source)!r}: no such file, and not one of {", ".join(LABEL_SETS)}')
    import yaml  # here, because a network without label files must work without it
    try:
        return LabelSet.from_dict(yaml.safe_load(path.read_text(encoding='utf-8')))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f'{path}: {error}') from error


def _is_color(color: Any) -> bool:
    return (isinstance(color, tuple) and len(color) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in color))


def _generated_color(index: int) -> Color:
    # Steps of the golden ratio never come close to a hue again; brightness tells near ones apart.
    hue = index * 0.618034 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, (1.0, 0.7, 0.85)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _label_set(name: str, classes: Mapping[str, Color]) -> LabelSet:
    return LabelSet(name, tuple(classes), tuple(classes.values()))


NYUV2_13 = _label_set('nyuv2_13', {
    'bed': (0, 0, 255),
    'books': (233, 89, 48),
    'ceiling': (0, 218, 0),
    'chair': (149, 0, 240),
    'floor': (222, 241, 24),
    'furniture': (255, 206, 206),
    'objects': (0, 224, 229),
    'picture': (106, 136, 204),
    'sofa': (117, 29, 41),
    'table': (240, 35, 235),
    'tv': (0, 167, 156),
    'wall': (249, 139, 0),
    'window': (225, 229, 194),
})

CITYSCAPES_7 = _label_set('cityscapes_7', {
    'flat': (128, 64, 128),
    'construction': (70, 70, 70),
    'object': (153, 153, 153),
    'nature': (107, 142, 35),
    'sky': (70, 130, 180),
    'human': (220, 20, 60),
    'vehicle': (0, 0, 142),
})

CITYSCAPES_19 = _label_set('cityscapes_19', {
    'road': (128, 64, 128),
    'sidewalk': (244, 35, 232),
    'building': (70, 70, 70),
    'wall': (102, 102, 156),
    'fence': (190, 153, 153),
    'pole': (153, 153, 153),
    'traffic light': (250, 170, 30),
    'traffic sign': (220, 220, 0),
    'vegetation': (107, 142, 35),
    'terrain': (152, 251, 152),
    'sky': (70, 130, 180),
    'person': (220, 20, 60),
    'rider': (255, 0, 0),
    'car': (0, 0, 142),
    'truck': (0, 0, 70),
    'bus': (0, 60, 100),
    'train': (0, 80, 100),
    'motorcycle': (0, 0, 230),
    'bicycle': (119, 11, 32),
})

LABEL_SETS = {labels.name: labels for labels in (NYUV2_13, CITYSCAPES_7, CITYSCAPES_19)}
