# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan predict``: the files it writes, and what it says about those it cannot read."""

from dataclasses import replace
import re

from broken_pictures import BROKEN_PICTURES
import cv2
import numpy as np
import pytest

from mtan_perception.checkpoint import load_network, save_checkpoint
from mtan_perception.cli.main import main
from mtan_perception.visualization import color_depth, depth_range


@pytest.fixture
def photo(tmp_path):
    return write_photo(tmp_path / 'photo.png')


def write_photo(path):
    """Write a picture of 60 x 80 noise."""
    path.parent.mkdir(exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert cv2.imwrite(str(path), picture)
    return path


def predict(*arguments, weights='random', size='48x64'):
    """Run the command on a small input size; return its exit code."""
    return main(['predict', *map(str, arguments), '--weights', str(weights), '--device', 'cpu',
                 '--input-size', size])


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_every_output_is_written(photo, tmp_path, capsys):
    """PNGs of the network's size, lossless ids, raw depth and normals, and the sheet."""
    out = tmp_path / 'made' / 'out'
    assert predict(photo, '--out', out, '--depth-range', '0.01', '100', '--backend', 'torch') == 0
    names = ('mask.png', 'confidence.png', 'overlay.png', 'depth.png', 'normal.png',
             'depth.npy', 'normal.npy')
    assert names_in(out) == {'contact_sheet.png', *(f'photo_{name}' for name in names)}
    for name in names[:5]:
        picture = cv2.imread(str(out / f'photo_{name}'), cv2.IMREAD_UNCHANGED)
        assert picture.shape == ((48, 64) if name in names[:2] else (48, 64, 3)), name
    assert cv2.imread(str(out / 'photo_mask.png'), cv2.IMREAD_UNCHANGED).max() < 13
    depth, normal = np.load(out / 'photo_depth.npy'), np.load(out / 'photo_normal.npy')
    assert depth.shape == (48, 64) and np.nanmin(depth) >= 0.01
    assert np.linalg.norm(normal, axis=2) == pytest.approx(1, abs=1e-5)
    painted = cv2.imread(str(out / 'photo_normal.png'))[..., ::-1]
    assert painted == pytest.approx((normal + 1) * 127.5, abs=0.51)
    # From its own nearest to its own farthest point.
    colored = cv2.imread(str(out / 'photo_depth.png'))[..., ::-1]
    assert np.array_equal(colored, color_depth(depth, *depth_range(depth)))
    sheet = cv2.imread(str(out / 'contact_sheet.png'))
    assert sheet.shape[1] > 4 * 64 > sheet.shape[0]
    assert re.search(r'photo\.png: 48x64, \d+ ms by torch, the building of the model included\n',
                     capsys.readouterr().out)


def test_depth_is_corrected_by_the_focal_length(photo, tmp_path):
    """Twice the focal length, twice the depth; the sheet is written all the same."""
    network, card = load_network('random')
    save_checkpoint(tmp_path / 'w.safetensors', network, replace(card, focal_length=100.0))
    depths = []
    for focal_length in (100, 200):
        out = tmp_path / str(focal_length)
        assert predict(photo, '--out', out, '--tasks', 'depth', '--depth-range', '0.0001', '10000',
                       '--focal-length', focal_length, weights=tmp_path / 'w.safetensors') == 0
        depths.append(np.load(out / 'photo_depth.npy'))
    assert depths[1] == pytest.approx(2 * depths[0], rel=1e-5)


def test_only_wanted_tasks_are_written(photo, tmp_path):
    """One task, one picture and its array."""
    assert predict(photo, '--out', tmp_path / 'out', '--tasks', 'depth') == 0
    assert names_in(tmp_path / 'out') == {
        'contact_sheet.png', 'photo_depth.png', 'photo_depth.npy'}


def test_a_bad_image_does_not_stop_the_others(photo, tmp_path, capfd):
    """The good one is written; the error names the text file and the missing one."""
    text = tmp_path / 'notes.jpg'
    text.write_text('not a picture')
    assert predict(text, tmp_path / 'absent.png', photo, '--out', tmp_path / 'out',
                   '--tasks', 'depth') == 2
    assert (tmp_path / 'out' / 'photo_depth.npy').is_file()
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith('mtan predict: error: 2 of 3 could not be read')
    assert 'notes.jpg (damaged' in error and 'absent.png (no such file)' in error


def test_nothing_is_done_where_no_image_can_be_read(tmp_path, capfd):
    """Neither the weights, which do not exist either, are looked at nor the folder made."""
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.MP4').touch()
    assert predict(tmp_path / 'absent.jpg', tmp_path / 'empty', tmp_path / 'a.MP4', '--out',
                   tmp_path / 'out', weights='absent') == 2
    error, = capfd.readouterr().err.splitlines()
    assert 'absent.jpg (no such file)' in error and 'empty (a folder without images: .bmp' in error
    assert 'a.MP4 (a video, which predict does not read; camera_node plays it' in error
    assert not (tmp_path / 'out').exists()


def test_a_folder_is_all_its_images(tmp_path, capsys):
    """In the order of their names, each once; what else lies there is left aside."""
    folder = tmp_path / 'photos'
    first = write_photo(folder / 'a.PNG')
    write_photo(folder / 'b.jpg')
    (folder / 'notes.txt').touch()
    assert predict(folder, first, '--out', tmp_path / 'out', '--tasks', 'depth', '--backend',
                   'torch') == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0].rpartition('/')[2] for line in said] == [
        'a.PNG', 'b.jpg', 'contact_sheet.png']


def test_all_images_of_one_name_are_named(photo, tmp_path, capsys):
    others = [write_photo(tmp_path / folder / name) for folder, name in (
        ('p', 'photo.jpg'), ('p', 'b.jpg'), ('q', 'b.jpg'))]
    assert predict(photo, *others, '--out', tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert f'{photo} and {others[0]} would be written to the same photo_*; ' in error
    assert f'{others[1]} and {others[2]} would be written to the same b_*; predict' in error


def test_what_an_earlier_run_wrote_does_not_stay_beside_the_new(photo, tmp_path):
    """Of this name, by exact names, and never where the image itself lies."""
    out = tmp_path / 'out'
    out.mkdir()
    for folder in (out, tmp_path):
        for name in ('photo_mask.png', 'photo_normal.npy', 'photo_mask2.png', 'other_mask.png'):
            (folder / name).write_text('earlier')
        assert predict(photo, '--out', folder, '--tasks', 'depth', '--backend', 'torch') == 0
    new = {'photo_depth.png', 'photo_depth.npy', 'contact_sheet.png'}
    assert names_in(out) == new | {'photo_mask2.png', 'other_mask.png'}
    assert names_in(tmp_path) == names_in(out) | {
        'out', 'photo.png', 'photo_mask.png', 'photo_normal.npy'}


def test_an_image_is_not_written_over(photo, tmp_path, capsys):
    """As a measured depth beside its photograph is not, nor what another run wrote here."""
    depth = write_photo(tmp_path / 'photo_depth.png')
    before = depth.read_bytes()
    assert predict(tmp_path, '--out', tmp_path) == 2
    assert f'over 1 of the images ({depth}); choose another folder' in capsys.readouterr().err
    assert depth.read_bytes() == before and names_in(tmp_path) == {photo.name, depth.name}


def test_a_full_disk_is_named_and_leaves_nothing(photo, tmp_path, full_disk, capsys):
    out = tmp_path / 'out'
    with full_disk():
        assert predict(photo, '--out', out, '--tasks', 'depth', '--backend', 'torch',
                       size='480x640') == 2
    error = capsys.readouterr().err
    assert f'{out / "photo_depth.npy"}: cannot be written (File too large); make room' in error
    assert names_in(out) == {'photo_depth.png'}


def test_an_output_that_is_no_folder_is_named(photo, capfd):
    """Before the weights are looked at."""
    for out in (photo, '/proc/out'):
        assert predict(photo, '--out', out, weights='absent') == 2
        assert f'error: --out: cannot write to {out}, because ' in capfd.readouterr().err


def test_no_name_at_all_is_refused(photo, tmp_path, capsys):
    """As an unset variable gives; it would be the present folder."""
    for arguments in ((photo, '--out', ''), ('', '--out', tmp_path)):
        with pytest.raises(SystemExit) as end:
            predict(*arguments)
        assert end.value.code == 2 and "'' is no path; give one" in capsys.readouterr().err


@pytest.mark.parametrize('size, tasks, is_said', [
    ('48x64', 'depth', True), ('72x72', 'depth', True), ('72x96', 'depth', False),
    ('48x64', 'normal', False)])
def test_a_size_far_below_that_of_the_weights_is_remarked(photo, tmp_path, capfd, size, tasks,
                                                          is_said):
    network, card = load_network('random')
    card = replace(card, input_size=(96, 128), training={'steps': 1})
    save_checkpoint(tmp_path / 'w.safetensors', network, card)
    assert predict(photo, '--out', tmp_path / 'out', '--tasks', tasks, '--backend', 'torch',
                   size=size, weights=tmp_path / 'w.safetensors') == 0
    remark = f'the weights were trained at 96x128; at {size} depth comes out too near'
    assert (remark in capfd.readouterr().err) == is_said


def test_what_to_know_about_the_default_weights_is_said(photo, tmp_path, capfd):
    """Of which camera their depth is, as long as that of the photograph is not known."""
    for options, is_said in (((), True), (('--focal-length', 400), False)):
        assert predict(photo, '--out', tmp_path, *options, weights='default') == 0
        text = capfd.readouterr().err
        assert 'these weights know rendered rooms only' in text
        assert ('a focal length of 288 pixels' in text) == is_said


@pytest.mark.parametrize('data', BROKEN_PICTURES.values(), ids=BROKEN_PICTURES.keys())
def test_a_broken_picture_is_named(tmp_path, capfd, data):
    path = tmp_path / 'broken.png'
    path.write_bytes(data)
    assert predict(path, '--out', tmp_path / 'out') == 2
    assert f'1 of 1 could not be read as images: {path}' in capfd.readouterr().err


@pytest.mark.parametrize('arguments, words', [
    (['--tasks', 'edges'], "tasks: unknown 'edges'"),
    (['--tasks', ''], "tasks: unknown ''"),
    (['--device', 'tpu'], "device: 'tpu' is not known"),
    (['--weights', 'absent.safetensors'], 'absent.safetensors: cannot be opened'),
    (['--input-size', 'big'], "--input-size: 'big'; write HEIGHTxWIDTH"),
    (['--depth-range', '5', '1'], r'depth_range: (5.0, 1.0)'),
    (['--focal-length', '-5'], '--focal-length: -5; give it in pixels, above 0'),
    (['--focal-length', '500'], 'these weights do not say which camera'),
    (['other/photo.jpg'], 'would be written to the same photo_*'),
])
def test_a_bad_argument_is_one_line_and_nothing_is_written(
        photo, tmp_path, capsys, arguments, words):
    """Exit code 2, the parameter and the value named, no traceback."""
    common = ['--weights', 'random', '--device', 'cpu', '--out', str(tmp_path / 'out')]
    assert main(['predict', *common, *arguments, str(photo)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if 'untrained' not in line]
    assert len(error) == 1 and words in error[0]
    assert not (tmp_path / 'out').exists()
