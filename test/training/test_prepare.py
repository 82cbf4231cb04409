# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""NYUv2 from a file of the official structure, filled with rendered rooms and with planes."""

import json
import shutil

import numpy as np
import pytest
import torch

from mtan_perception.cli.main import main
from mtan_perception.geometry import back_project
from mtan_perception.metrics import NormalMetrics
from mtan_perception.synthetic import render
from mtan_perception.training import prepare
from mtan_perception.training.datasets import check_dataset, open_dataset
from mtan_perception.training.layouts import DatasetError
from mtan_perception.training.normal_fit import fit_normals
from mtan_perception.training.prepare import prepare_nyuv2, RawCamera, read_class_mapping

h5py = pytest.importorskip('h5py', reason='h5py is optional; see requirements/test.txt')

SIZE = (120, 160)
# The official file has 894 classes; these nine lead, over six, to four of the thirteen.
TO_SIX = np.array([1, 2, 3, 4, 5, 6, 1, 1, 2])
TO_13 = np.array([12, 5, 1, 13, 7, 12])
DIRECT = TO_13[TO_SIX - 1]


@pytest.fixture(scope='module')
def rooms():
    """Return four views of one room, which have one camera, and that camera."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several of them stand in each other's way on a busy machine
    frames = [render([11], *SIZE, time=3.0 * step) for step in range(4)]
    torch.set_num_threads(threads)
    fx, fy, cx, cy = (float(frames[0].intrinsics[0, row, column]) for row, column in
                      ((0, 0), (1, 1), (0, 2), (1, 2)))
    return frames, RawCamera(SIZE, (fx, fy, cx, cy), (10, 118, 8, 152))


def write_mat(path, image, depth, label, raw=None):
    """Write arrays (N, H, W, ...) as MATLAB 7.3 does: all axes but the first reversed."""
    with h5py.File(path, 'w', userblock_size=512) as file:
        for name, array in (('images', image), ('depths', depth), ('labels', label),
                            ('rawDepths', raw)):
            if array is not None:
                axes = (0, *range(array.ndim - 1, 0, -1))
                file.create_dataset(name, data=array.transpose(axes), chunks=(1, *np.array(
                    array.shape)[list(axes)][1:]))
    with open(path, 'r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM')
    return path


@pytest.fixture(scope='module')
def source(rooms, tmp_path_factory):
    """Return the official-like file, its mapping file and the rooms' truth."""
    (frames, camera), folder = rooms, tmp_path_factory.mktemp('official')
    image = np.stack([np.uint8(frame.rgb[0].permute(1, 2, 0).numpy() * 255) for frame in frames])
    depth = np.stack([frame.depth[0, 0].numpy() for frame in frames])
    label = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 7 % 10).astype(np.uint16)
    raw = depth.copy()
    raw[:, 40:60, 50:80] = 0  # a hole that the official tools have filled
    mat = write_mat(folder / 'labeled.mat', image, depth, np.stack(4 * [label]), raw)
    classes = folder / 'classes.mat'
    with h5py.File(classes, 'w') as file:
        file['mapClass'] = DIRECT[:, None].astype(np.uint8)
    return mat, [classes], camera, image, label


@pytest.fixture(scope='module')
def prepared(source, tmp_path_factory):
    mat, classes, camera, *_ = source
    out = tmp_path_factory.mktemp('prepared')
    return out, prepare_nyuv2(mat, classes, out, (81, 108), camera=camera)


def test_the_layout_is_that_of_the_loader(prepared, source):
    out, counts = prepared
    assert counts == {'train': 2, 'val': 2}
    for split, number in (('train', 1), ('val', 1), ('test', 2)):
        dataset = open_dataset('nyuv2', out, split)
        check_dataset(dataset)
        assert len(dataset) == number and dataset.size == (81, 108)
    shapes = {name: np.load(out / 'train' / name / '0.npy').shape
              for name in ('image', 'label', 'depth', 'normal')}
    assert shapes == {'image': (81, 108, 3), 'label': (81, 108), 'depth': (81, 108, 1),
                      'normal': (81, 108, 3)}
    # Official frames 1 and 2 are test frames, and 3 is the first of the training set.
    image = source[3]
    for path, frame in (('val/image/0', 0), ('val/image/1', 1), ('train/image/0', 2)):
        mean = image[frame, 10:118, 8:152].mean() / 255
        assert np.load(out / f'{path}.npy').mean() == pytest.approx(mean, abs=2e-3), path


def test_classes_are_mapped_in_order_and_unlabelled_is_minus_one(prepared, source):
    out, _ = prepared
    label = source[4]
    rows = 10 + ((np.arange(81) + 0.5) * 108 / 81).astype(int)
    columns = 8 + ((np.arange(108) + 0.5) * 144 / 108).astype(int)
    expected = np.concatenate(([-1], DIRECT - 1))[label[rows[:, None], columns]]
    np.testing.assert_array_equal(np.load(out / 'val/label/1.npy'), expected)


def test_fitted_normals_are_those_of_the_room(prepared, rooms):
    """The issue's figure: the median angle to the rendered truth is below 3 degrees."""
    out, _ = prepared
    frames, camera = rooms
    crop = prepare._Crop.of(camera, (81, 108))
    metrics = NormalMetrics()
    for split, number, frame in (('test', 0, 0), ('test', 1, 1)):
        sample = open_dataset('nyuv2', out, split)[number]
        truth = crop.pick(frames[frame].normal[0].permute(1, 2, 0).numpy())
        normal = sample['normal'].permute(1, 2, 0).numpy()
        known = np.linalg.norm(normal, axis=-1) > 0
        assert 0.85 < known.mean() < 1
        metrics.update(normal[known], truth[known])
    result = metrics.result()
    assert result['median'] < 3
    assert result['within_30'] > 0.75


def test_what_was_not_measured_has_no_normal_but_the_official_depth(prepared, source, tmp_path):
    out, _ = prepared
    sample = open_dataset('nyuv2', out, 'test')[0]
    hole = slice(24, 36), slice(33, 52)  # rows 40..60 and columns 50..80 of the raw frame
    assert not sample['normal'][:, hole[0], hole[1]].any()
    assert (sample['depth'][0][hole] > 0).all()
    mat, classes, camera, *_ = source
    prepare_nyuv2(mat, classes, tmp_path / 'measured', (81, 108), measured=True, camera=camera)
    sample = open_dataset('nyuv2', tmp_path / 'measured', 'test')[0]
    assert not sample['depth'][0][hole].any()
    assert (sample['depth'][0] > 0).float().mean() > 0.9


def test_a_wall_through_the_official_camera(tmp_path):
    """At full size with the default camera: crop, intrinsics, depth and normals fit together."""
    normal, distance = np.array([0.3, 0.2, -0.933]), 2.0
    normal /= np.linalg.norm(normal)
    camera = RawCamera()
    rays = back_project(np.ones(camera.size), camera.matrix())
    depth = (-distance / np.tensordot(normal, rays, 1)).astype(np.float32)
    v, u = np.mgrid[:480, :640]
    image = np.stack((u / 4, v / 4, 0 * u), -1).astype(np.uint8)
    mat = write_mat(tmp_path / 'm.mat', image[None], depth[None], np.ones((1, 480, 640), int))
    with h5py.File(tmp_path / 'c.mat', 'w') as file:
        file['mapClass'] = DIRECT
    counts = prepare_nyuv2(mat, [tmp_path / 'c.mat'], tmp_path / 'out')
    assert counts == {'train': 0, 'val': 1}
    dataset = open_dataset('nyuv2', tmp_path / 'out', 'test')
    sample, matrix = dataset[0], dataset[0]['intrinsics'].numpy()
    assert dataset.size == (288, 384)
    assert matrix[0, 0] == pytest.approx(518.857901 * 384 / 560)
    assert matrix[1, 1] / matrix[0, 0] == pytest.approx(519.469611 / 518.857901)  # no stretching
    # Red and green tell the raw column and row of each pixel: the intrinsics must agree.
    column, row = (sample['image'][plane, 100, 200].item() * 255 * 4 + 1.5 for plane in (0, 1))
    assert (200 - matrix[0, 2]) / matrix[0, 0] == pytest.approx(
        (column - 325.582449) / 518.857901, abs=2 / 518)
    assert (100 - matrix[1, 2]) / matrix[1, 1] == pytest.approx(
        (row - 253.736166) / 519.469611, abs=2 / 518)
    fitted = sample['normal'].permute(1, 2, 0).numpy()
    assert np.degrees(np.arccos((fitted @ normal).clip(-1, 1))).max() < 0.2
    points = back_project(sample['depth'][0].numpy(), matrix)
    assert np.abs(np.tensordot(normal, points, 1) + distance).max() < 0.005
    # In the file the axes are NYU's: z toward the camera.
    assert np.load(tmp_path / 'out/val/normal/0.npy')[100, 100, 2] > 0.9


def test_fit_survives_the_steps_of_a_depth_camera(rooms):
    frames, camera = rooms
    metrics = NormalMetrics()
    for frame in frames[:2]:
        # Disparity in eighths of a pixel, for a focal length times baseline of 43.5 m (Kinect).
        depth = 43.5 / (np.round(43.5 / frame.depth[0, 0].numpy() * 8) / 8)
        metrics.update(fit_normals(depth, camera.matrix()),
                       frame.normal[0].permute(1, 2, 0).numpy())
    assert metrics.result()['median'] < 2


def test_fit_keeps_apart_what_depth_keeps_apart():
    """Two walls at different distances, a hole, and a lonely pixel."""
    matrix = np.array([[60.0, 0, 40], [0, 60.0, 30], [0, 0, 1]])
    depth = np.full((60, 80), 2.0)
    depth[:, 40:] = 3.0
    depth[10:20, 10:20] = 0
    depth[40, 20] = 1.0
    normal = fit_normals(depth, matrix)
    unknown = depth == 0
    unknown[40, 20] = True
    assert not normal[unknown].any()
    np.testing.assert_allclose(normal[~unknown], np.broadcast_to((0, 0, -1), (4699, 3)),
                               atol=1e-4)


def test_an_interrupted_run_goes_on(source, tmp_path):
    mat, classes, camera, *_ = source
    out = tmp_path / 'out'

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_nyuv2(mat, classes, out, (81, 108), camera=camera, progress=stop)
    first = out / 'train' / 'depth' / '0.npy'
    (out / 'train' / 'normal' / '1.npy').unlink()
    before = first.stat().st_mtime_ns
    calls = []
    counts = prepare_nyuv2(mat, classes, out, (81, 108), camera=camera,
                           progress=lambda done, total: calls.append((done, total)))
    assert counts == {'train': 2, 'val': 2} and calls == [(n, 4) for n in range(1, 5)]
    assert first.stat().st_mtime_ns == before
    assert (out / 'train' / 'normal' / '1.npy').exists()
    assert not list(out.rglob('*.tmp'))
    with pytest.raises(DatasetError, match=r'prepare\.json: .*\[81, 108\].*\[54, 72\]'):
        prepare_nyuv2(mat, classes, out, (54, 72), camera=camera)


def test_a_failed_write_leaves_no_part_of_a_file(source, tmp_path, monkeypatch):
    mat, classes, camera, *_ = source

    def full_disk(file, array):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'save', full_disk)
    with pytest.raises(OSError, match=r'intrinsics\.npy: cannot be written .*No space left'):
        prepare_nyuv2(mat, classes, tmp_path / 'out', (81, 108), camera=camera)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['prepare.json']


# ---- mapping and split -------------------------------------------------------------------------

@pytest.fixture
def old_format(tmp_path):
    """Write the mapping files as they are publicly found: MATLAB 5, one of them a struct."""
    io = pytest.importorskip('scipy.io', reason='scipy is optional; see requirements/test.txt')
    names = np.array(['a', 'b'], dtype=object)
    io.savemat(tmp_path / 'six.mat', {'mapClass': TO_SIX.astype(np.uint8), 'className': names})
    io.savemat(tmp_path / 'map13.mat', {
        'classMapping13': {'labels13': TO_13.astype(np.uint8), 'classNames': names}})
    io.savemat(tmp_path / 'splits.mat', {'trainNdxs': np.uint16([[4], [1]]),
                                         'testNdxs': np.uint16([[2]])})
    return tmp_path


def test_mappings_in_the_old_format_are_chained(old_format):
    table = read_class_mapping([old_format / 'six.mat', old_format / 'map13.mat'])
    assert table.tolist() == [-1, *(DIRECT - 1)]
    assert table.dtype == np.int8


def test_incomplete_mappings_are_refused(old_format):
    with pytest.raises(DatasetError, match=r'six\.mat: lead to 6 classes, not 13; .*class13Map'):
        read_class_mapping([old_format / 'six.mat'])
    with pytest.raises(DatasetError, match=r'six\.mat: maps 9 classes, but .* leads to 13'):
        read_class_mapping([old_format / 'map13.mat', old_format / 'six.mat'])
    with pytest.raises(DatasetError, match=r'splits\.mat: holds no class mapping'):
        read_class_mapping([old_format / 'splits.mat'])
    (old_format / 'broken.mat').write_bytes((old_format / 'six.mat').read_bytes()[:200])
    with pytest.raises(DatasetError, match=r'broken\.mat: cannot be read'):
        read_class_mapping([old_format / 'broken.mat'])


def test_a_split_of_ones_own(source, old_format, tmp_path):
    mat, classes, camera, image, _ = source
    counts = prepare_nyuv2(mat, classes, tmp_path / 'out', (27, 36), camera=camera,
                           splits=old_format / 'splits.mat')
    assert counts == {'train': 2, 'val': 1}
    first = np.load(tmp_path / 'out/train/image/0.npy').mean()
    assert first == pytest.approx(image[3, 10:118, 8:152].mean() / 255, abs=2e-3)


def test_the_official_split():
    chosen = prepare._read_splits(None, 1449)
    assert (len(chosen['train']), len(chosen['val'])) == (795, 654)
    assert sorted(chosen['train'] + chosen['val']) == list(range(1449))
    # The first and last frames of the published trainNdxs and testNdxs, counted from 1.
    assert [frame + 1 for frame in chosen['val'][:6]] == [1, 2, 9, 14, 15, 16]
    assert [frame + 1 for frame in chosen['train'][:6]] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(DatasetError, match='1449 frames, not 1450'):
        prepare._read_splits(None, 1450)


# ---- bad input ---------------------------------------------------------------------------------

def test_a_file_that_is_not_the_official_one_is_named(source, tmp_path):
    mat, classes, *_ = source
    wrong = tmp_path / 'wrong.mat'
    wrong.write_bytes(b'no mat')
    with pytest.raises(DatasetError, match=r'wrong\.mat: is no whole MATLAB 7.3 file'):
        prepare_nyuv2(wrong, classes, tmp_path / 'out')
    cut = tmp_path / 'cut.mat'
    cut.write_bytes(mat.read_bytes()[:10000])
    with pytest.raises(DatasetError, match=r'cut\.mat: is no whole'):
        prepare_nyuv2(cut, classes, tmp_path / 'out')
    with pytest.raises(DatasetError, match=r'classes\.mat: has no images, depths, labels'):
        prepare_nyuv2(classes[0], classes, tmp_path / 'out')
    with pytest.raises(DatasetError, match=r'images has shape \(4, 3, 160, 120\), not \(4, 3, 6'):
        prepare_nyuv2(mat, classes, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_class_that_the_mapping_does_not_know_is_named(source, tmp_path):
    mat, classes, camera, *_ = source
    mat = shutil.copy(mat, tmp_path)
    with h5py.File(mat, 'r+') as file:
        file['labels'][3, 80, 60] = 10
    with pytest.raises(DatasetError, match=r'labeled\.mat: frame 4 has class 10, .* knows 9'):
        prepare_nyuv2(mat, classes, tmp_path / 'out', (27, 36), camera=camera)


def test_missing_libraries_are_named(source, tmp_path, monkeypatch):
    mat, classes, *_ = source
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(DatasetError, match='pip install h5py'):
        prepare_nyuv2(mat, classes, tmp_path / 'out')


def test_the_command(source, tmp_path, monkeypatch, capsys):
    mat, classes, camera, *_ = source
    monkeypatch.setattr(prepare, 'RawCamera', lambda: camera)
    command = ['prepare', 'nyuv2', '--mat', str(mat), '--classes', str(classes[0]),
               '--out', str(tmp_path / 'out'), '--size', '27x36']
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out'}: 2 frames to train, 2 to test (in val/)\n"
    assert '4/4 frames' in printed.err
    assert json.loads((tmp_path / 'out' / 'prepare.json').read_text())['size'] == [27, 36]
    assert main([*command[:-1], 'small']) == 2
    assert "--size: 'small'; write HEIGHTxWIDTH" in capsys.readouterr().err
