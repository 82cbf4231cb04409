# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan benchmark``: what it refuses; its figures are tested in test/inference."""

import pytest

from mtan_perception.cli.main import main


@pytest.mark.parametrize('arguments, words', [
    (['--sizes', '100x128'], '--sizes: 100x128; the original takes multiples of 8'),
    (['--sizes', 'large'], "--sizes: 'large'"),
    (['--contenders', 'theirs/fast'], "--contenders: 'theirs/fast'; choose of original/eager"),
    (['--rounds', '0'], '--rounds: 0; give at least 1'),
    (['--device', 'tpu'], "device: 'tpu' is not known"),
])
def test_what_cannot_be_measured(arguments, words, capsys):
    assert main(['benchmark', *arguments]) == 2
    assert words in capsys.readouterr().err
