# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations: what wins over what, and what is refused by name."""

from pathlib import Path

import pytest

from mtan_perception.training.config import (
    make_config,
    parse_stages,
    PRESETS,
    read_yaml,
    Stage,
)
from mtan_perception.training.schedule import Budget, learning_rate_factor

SHIPPED = Path(__file__).parent.parent.parent / 'config' / 'train'


def test_the_command_line_wins_over_the_preset_and_that_over_the_defaults():
    config = make_config({'learning_rate': '0.5', 'losses': 'depth=l1', 'aspp_rates': '1,2',
                          'minutes': 3}, 'default')
    assert config.learning_rate == 0.5
    assert config.losses == {'depth': 'l1'}
    assert config.aspp_rates == (1, 2)
    assert config.minutes == 3.0
    assert config.loss_weights['depth'] == 4.0  # the preset's
    assert config.optimizer == 'adamw'  # the default
    assert make_config({}, 'default', 'cuda').stages != config.stages


@pytest.mark.parametrize('path', sorted(SHIPPED.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_files_are_readable(path):
    keys = read_yaml(path)
    config = make_config(keys)
    assert config.data == path.stem
    assert parse_stages(config.stages)[-1].until == 1


def test_the_file_of_the_default_is_the_preset_on_a_cpu():
    keys = read_yaml(SHIPPED / 'synthetic.yaml')
    assert make_config(keys) == make_config({}, 'default', 'cpu')
    assert set(PRESETS['default']) == {'cpu', 'cuda'}


@pytest.mark.parametrize(('keys', 'message'), (
    ({'learning_rte': 1}, "unknown key 'learning_rte'; keys are data"),
    ({'learning_rate': 'fast'}, "learning_rate: cannot read 'fast'; the default is 0.001"),
    ({'steps': '1.5'}, "steps: cannot read '1.5'"),
    ({'loss_weights': 'depth'}, "loss_weights: cannot read 'depth'"),
    ({'tasks': 'depth'}, "tasks: cannot read 'depth'"),
    ({'stages': '1:288:4'}, "stages: cannot read '1:288:4'"),
    ({'stages': '0.5:8x8:1,0.4:8x8:1'}, 'ends before it begins'),
    ({'stages': '0.5:8x8:1'}, 'the last one ends at 0.5, not at 1'),
    ({'stages': '1:8x8:0'}, 'must be above 0'),
    ({'steps': '-2'}, 'steps: -2; give 0 or more'),
    ({'loss_stride': 0}, 'loss_stride: 0; give 1 or more'),
    ({'threads': -1}, 'threads: -1; give 0 or more'),
    ({'validation_frames': 0}, 'validation_frames: 0; give 1 or more'),
    ({'warm_up': 1}, 'warm_up: 1; give 0 to 0.99'),
    ({'dropout': 'nan'}, 'dropout: nan; give 0 to 1')))
def test_what_cannot_be_read_is_named(keys, message):
    with pytest.raises(ValueError, match=message):
        make_config(keys)


def test_presets_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="preset: 'best'; choose one of default"):
        make_config({}, 'best')
    (tmp_path / 'list.yaml').write_text('- 1\n')
    with pytest.raises(ValueError, match=r'list\.yaml: holds no keys'):
        read_yaml(tmp_path / 'list.yaml')
    (tmp_path / 'broken.yaml').write_text('a: [')
    with pytest.raises(ValueError, match=r'broken\.yaml: is not YAML'):
        read_yaml(tmp_path / 'broken.yaml')


def test_stages_are_read_with_and_without_reuse():
    assert parse_stages('0.25:144x192:16:2.5,1:288x384:4') == (
        Stage(0.25, 144, 192, 16, 2.5), Stage(1.0, 288, 384, 4))


def test_the_learning_rate_rises_and_falls():
    assert learning_rate_factor(0.01, 0.04) == pytest.approx(0.25)
    assert learning_rate_factor(0.04, 0.04) == 1
    assert learning_rate_factor(0.52, 0.04) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, 0.04) == 0
    assert learning_rate_factor(0.0, 0.04) > 0


def test_a_budget_counts_seconds_or_steps():
    assert Budget(10.0, None).progress(5.0, 999) == 0.5
    assert Budget(None, 10).progress(999.0, 4) == 0.4
    assert Budget(10.0, None).progress(11.0, 0) == 1
    for wrong in ((None, None), (1.0, 1), (0.0, None), (None, -1)):
        with pytest.raises(ValueError, match='budget'):
            Budget(*wrong)
