# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Label sets: contents, palettes, files."""

import numpy as np
import pytest
import yaml

from mtan_perception.labels import (
    CITYSCAPES_7,
    CITYSCAPES_19,
    generic,
    LABEL_SETS,
    LabelSet,
    NYUV2_13,
    read_label_set,
    UNLABELLED,
)


@pytest.mark.parametrize(('labels', 'count'), [
    (NYUV2_13, 13), (CITYSCAPES_7, 7), (CITYSCAPES_19, 19)])
def test_known_sets(labels, count):
    assert len(labels.names) == len(set(labels.names)) == count
    assert len(set(labels.colors)) == count
    assert LABEL_SETS[f'{labels.name}'] is labels


def test_ids_of_nyuv2():
    assert NYUV2_13.names.index('bed') == 0
    assert NYUV2_13.names.index('floor') == 4
    assert NYUV2_13.names.index('window') == 12
    assert NYUV2_13.colors[4] == (222, 241, 24)
    assert NYUV2_13.names == (
        'bed', 'books', 'ceiling', 'chair', 'floor', 'furniture', 'objects', 'picture', 'sofa',
        'table', 'tv', 'wall', 'window')


def test_ids_of_cityscapes():
    """The categories, and the train ids of the classes, as cityscapesscripts counts them."""
    assert CITYSCAPES_7.names == (
        'flat', 'construction', 'object', 'nature', 'sky', 'human', 'vehicle')
    assert CITYSCAPES_19.names == (
        'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
        'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
        'motorcycle', 'bicycle')


def test_palette_is_black_beyond_the_classes():
    palette = NYUV2_13.palette
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert tuple(palette[12]) == (225, 229, 194)
    assert not palette[13:].any() and not palette[UNLABELLED].any()


@pytest.mark.parametrize('count', [1, 40, 255])
def test_generic_colours_differ(count):
    labels = generic(count)
    assert labels.names[-1] == f'class_{count - 1}'
    assert len(set(labels.colors)) == count
    assert min(max(color) for color in labels.colors) > 150  # none looks unlabelled


def test_round_trip_and_by_name(tmp_path):
    path = tmp_path / 'labels.yaml'
    path.write_text(yaml.safe_dump(CITYSCAPES_19.to_dict()))
    assert read_label_set(path) == CITYSCAPES_19
    assert read_label_set('nyuv2_13') is NYUV2_13


def test_a_file_may_leave_colours_out(tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text('name: own\nclasses:\n- {name: crate}\n- {name: pallet, color: [1, 2, 3]}\n'
                    '- {name: rack}\n')
    labels = read_label_set(path)
    assert labels.names == ('crate', 'pallet', 'rack')
    assert labels.colors == (generic(3).colors[0], (1, 2, 3), generic(3).colors[2])


@pytest.mark.parametrize(('text', 'message'), [
    ('just text', 'not readable'),
    ('name: own\nclasses: [1, 2]', 'not readable'),
    ('name: own\nclasses: []', '0 classes'),
    ('name: own\nclasses: [{name: a, color: [1, 2]}]', r"colour \(1, 2\) of 'a'"),
    ('name: own\nclasses: [{name: a, color: [1, 2, 300]}]', r"\(1, 2, 300\) of 'a'"),
    ("name: own\nclasses: [{name: ''}]", "class name '' is not a text"),
    ('name: own\nclasses: [{name: a, color: [1, 2, 0.5]}]', r'\(1, 2, 0\.5\)'),
    ('name: own\nclasses: [{name: yes}]', 'class name True is not a text; quote it'),
    ('name: [', r'own\.yaml'),
])
def test_a_bad_file_is_named_with_its_fault(tmp_path, text, message):
    path = tmp_path / 'own.yaml'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_label_set(path)
    assert 'own.yaml' in str(caught.value)


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'nyu': no such file, .* nyuv2_13, cityscapes_7"):
        read_label_set('nyu')


def test_names_and_colours_must_pair():
    with pytest.raises(ValueError, match='2 names but 1 colours'):
        LabelSet('x', ('a', 'b'), ((0, 0, 0),))
    with pytest.raises(ValueError, match='256 classes'):
        generic(256)
