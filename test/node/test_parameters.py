# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The table of parameters and the settings made from it."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='the node needs rclpy')

from rclpy.parameter import Parameter
import yaml

from mtan_perception.node.parameters import (
    changes,
    field_name,
    INACTIVE,
    LIVE,
    Settings,
    SPECIFICATIONS,
    START,
    UNCONFIGURED,
)

CONFIG = Path(__file__).parents[2] / 'config' / 'mtan.yaml'


@pytest.fixture
def settings() -> Settings:
    return Settings(**{
        field_name(name): tuple(s.default) if isinstance(s.default, list) else s.default
        for name, s in SPECIFICATIONS.items()})


def test_the_settings_have_a_field_for_each_parameter():
    assert [field.name for field in dataclasses.fields(Settings)] == [
        field_name(name) for name in SPECIFICATIONS]


def test_the_shipped_file_names_every_parameter_with_its_default():
    nodes = yaml.safe_load(CONFIG.read_text())
    (values,) = (v['ros__parameters'] for v in nodes.values())
    defaults = {name: s.default for name, s in SPECIFICATIONS.items()}
    assert {name: values.get(name) for name in defaults} == defaults


@pytest.mark.parametrize('name, specification', SPECIFICATIONS.items())
def test_descriptors_tell_meaning_and_range(name, specification):
    descriptor = specification.descriptor()
    assert specification.meaning in descriptor.description
    assert specification.change in descriptor.description
    assert descriptor.read_only == (specification.change == START)
    assert all(choice in descriptor.additional_constraints for choice in specification.choices)
    number = isinstance(specification.default, (int, float))
    if number and not isinstance(specification.default, bool):
        (limits,) = [*descriptor.integer_range, *descriptor.floating_point_range]
        assert limits.from_value <= specification.default <= limits.to_value


@pytest.mark.parametrize('values, text', [
    ({'precision': 'fp8'}, "'precision' is 'fp8'.*fp32, fp16, bf16"),
    ({'image_transport': 'theora'}, "'image_transport' is 'theora'.*raw, compressed"),
    ({'min_depth': 5.0, 'max_depth': 5.0}, "'min_depth' is 5 and 'max_depth' is 5"),
    ({'min_depth': float('nan')}, "'min_depth' is nan"),
    ({'tasks': []}, "'tasks' is empty"),
    ({'tasks': ['depth', 'depth']}, "'tasks' is .*'depth', 'depth'.*each task once"),
    ({'cameras': ['front', 'front']}, "'cameras' is .*'front', 'front'.*name of its own"),
    ({'cameras': ['front', '']}, "'cameras'.*letters, digits"),
    ({'cameras': []}, "'cameras' is \\[\\]"),
    ({'cameras': ['front left']}, "'cameras'.*letters, digits"),
    ({'cameras': ['küche']}, "'cameras'.*letters, digits"),
])
def test_values_that_no_range_excludes(settings, values, text):
    parameters = [SimpleNamespace(name=name, value=value) for name, value in values.items()]
    with pytest.raises(ValueError, match=text):
        settings.updated(parameters)


def test_an_update_is_taken_as_a_whole_and_leaves_the_original(settings):
    updated = settings.updated([
        Parameter('min_depth', value=11.0), Parameter('max_depth', value=20.0),
        Parameter('tasks', value=['depth']), Parameter('use_sim_time', value=True),
        Parameter('points.stride', value=4)])
    assert (updated.min_depth, updated.max_depth, updated.tasks) == (11.0, 20.0, ('depth',))
    assert (settings.min_depth, settings.points_stride, updated.points_stride) == (0.1, 1, 4)
    assert updated.input_size == (288, 384)


def test_what_rclpy_lets_through_at_the_edge_of_a_range(settings):
    """It allows for rounding; the engine refuses what lies outside."""
    updated = settings.updated([Parameter('confidence_threshold', value=1.0000005),
                                Parameter('min_depth', value=-0.0000005)])
    assert (updated.confidence_threshold, updated.min_depth) == (1.0, 0.0)


def test_changes_by_when_they_are_allowed(settings):
    parameters = [
        Parameter('weights', value='x'), Parameter('max_rate', value=1.0),
        Parameter('image_transport', value='compressed'), Parameter('use_sim_time', value=True)]
    assert changes(settings, parameters, UNCONFIGURED) == ['weights']
    assert changes(settings, parameters, INACTIVE) == ['image_transport']
    assert changes(settings, parameters, LIVE) == ['max_rate']


def test_a_value_that_is_there_already_is_no_change(settings):
    """As where a file of them is loaded; those of the start rclpy refuses itself."""
    parameters = [Parameter(name, value=list(value) if isinstance(value, tuple) else value)
                  for name in SPECIFICATIONS
                  for value in [getattr(settings, field_name(name))]]
    for when in (UNCONFIGURED, INACTIVE, LIVE):
        assert changes(settings, parameters, when) == []
