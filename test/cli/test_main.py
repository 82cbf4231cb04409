# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole."""

from importlib.util import find_spec
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


needs_ros = pytest.mark.skipif(find_spec('rclpy') is None, reason='rclpy is not installed')


@pytest.mark.parametrize('missing, package, arguments', [
    pytest.param('cv2', 'opencv-python', ['evaluate', '--live'], marks=needs_ros, id='live'),
    ('cv2', 'opencv-python', ['predict', 'a.png', '--out', 'out']),
    ('cv2', 'opencv-python', ['evaluate', '--data', 'synthetic', '--pictures', 'out',
                              '--weights', 'absent']),  # said before they are looked at
    ('yaml', 'pyyaml', ['import', 'a.pth', '--tasks', 'segmentation:2', '--labels', 'a.yaml',
                        '--out', 'a.safetensors']),
], ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_missing_package_is_named(missing, package, arguments, tmp_path):
    for name in ('a.png', 'a.yaml'):
        (tmp_path / name).touch()
    script = f"""if True:
        import sys
        sys.modules[{missing!r}] = None
        from mtan_perception.cli.main import main
        sys.exit(main({arguments!r}))"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (f'mtan {arguments[0]}: error: it needs {missing}, which is not '
                           f'installed; install it with: python3 -m pip install {package}\n')


@pytest.mark.parametrize('arguments', (
    ['train', 'steps=1', '--out', 'x', 'pose'], ['train', 'steps=1', '--pose=3'],
    ['info', 'default', 'a=b']), ids=str)
def test_what_no_command_takes_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert f'unrecognized arguments: {arguments[-1]}' in capsys.readouterr().err
