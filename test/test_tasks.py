# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Reading and choosing tasks."""

import pytest

from mtan_perception.tasks import NYUV2_TASKS, parse_tasks, select_tasks


def test_parse_keeps_the_order():
    assert list(parse_tasks('normal:3, depth:1,edges:2').items()) == [
        ('normal', 3), ('depth', 1), ('edges', 2)]
    assert parse_tasks('segmentation:13,depth:1,normal:3') == NYUV2_TASKS


@pytest.mark.parametrize(('text', 'message'), [
    ('', "cannot read ''"),
    ('depth', "cannot read 'depth'; write name:channels"),
    ('depth:x', "cannot read 'depth:x'"),
    ('depth:1,depth:1', "'depth' is listed twice"),
    ('Depth:1', "'Depth' cannot name a task"),
    ('edge-map:1', "'edge-map' cannot name a task"),
    ('depth:2', r'depth has 1 channel\(s\), not 2'),
    ('normal:1', r'normal has 3 channel\(s\), not 1'),
    ('segmentation:0', 'segmentation needs at least 1 channel, not 0'),
    ('segmentation:256', 'at most 255 classes .* not 256'),
])
def test_parse_names_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_tasks(text)


def test_select_orders_and_drops_doubles():
    assert select_tasks(['normal', 'depth', 'normal'], NYUV2_TASKS) == ('depth', 'normal')
    assert select_tasks([], NYUV2_TASKS) == ()


def test_select_names_the_unknown_and_the_choices():
    with pytest.raises(ValueError, match=r"unknown 'flow'; .* segmentation, depth, normal"):
        select_tasks(['flow', 'depth'], NYUV2_TASKS)
