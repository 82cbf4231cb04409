# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole."""

import subprocess
import sys

import pytest

from mtan_perception.cli.main import main


def test_whoever_reads_no_further_ends_a_command_without_a_word():
    """As `mtan info default | head -1` does."""
    child = subprocess.Popen([sys.executable, '-m', 'mtan_perception.cli', 'info', 'default'],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        child.stdout.close()
        assert child.wait(timeout=60) == 141
        assert child.stderr.read() == ''
    finally:
        child.kill()
        child.stderr.close()


def test_keys_of_a_training_stand_before_and_after_its_options(tmp_path, capsys):
    assert main(['train', 'steps=1', '--out', str(tmp_path), 'pose=3']) == 2
    assert "unknown key 'pose'" in capsys.readouterr().err


@pytest.mark.parametrize('arguments', (
    ['train', 'steps=1', '--out', 'x', 'pose'], ['train', 'steps=1', '--pose=3'],
    ['info', 'default', 'a=b']), ids=str)
def test_what_no_command_takes_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert f'unrecognized arguments: {arguments[-1]}' in capsys.readouterr().err
