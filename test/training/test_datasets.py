# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: what comes out of each layout, and what is said of what is wrong with it."""

from pathlib import Path
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
import yaml

from mtan_perception.labels import CITYSCAPES_7, CITYSCAPES_19, generic, NYUV2_13
from mtan_perception.training.datasets import check_dataset, open_dataset
from mtan_perception.training.layouts import DatasetError, LAYOUTS, read_layout

EXAMPLE = Path(__file__).resolve().parents[2] / 'config' / 'datasets' / 'example.yaml'
SIZE = (12, 16)
CAMERA = np.array([[20.0, 0, 7.5], [0, 20.0, 5.5], [0, 0, 1]])


def frame(seed):
    """Return one frame in the author's form: float, H x W x C, NYU axes."""
    random = np.random.default_rng(seed)
    normal = random.normal(size=(*SIZE, 3)).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    frame = {'image': random.random((*SIZE, 3), np.float32),
             'label': random.integers(-1, 13, SIZE).astype(np.float32),
             'depth': random.uniform(0.5, 9, (*SIZE, 1)).astype(np.float32), 'normal': normal}
    frame['depth'][:2], frame['normal'][:3] = 0, 0
    return frame


@pytest.fixture
def nyu(tmp_path):
    for split, count in (('train', 20), ('val', 3)):
        for index in range(count):
            for name, array in frame(index + 100 * (split == 'val')).items():
                path = tmp_path / split / name / f'{index}.npy'
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
    return tmp_path


def damage(path, change):
    array = np.load(path)
    change(array)
    np.save(path, array)


# ---- what comes out ----------------------------------------------------------------------------

def test_nyuv2_in_the_authors_layout(nyu):
    dataset = open_dataset('nyuv2', nyu, 'test')
    assert dataset.tasks == {'segmentation': 13, 'depth': 1, 'normal': 3}
    assert dataset.kinds == {'segmentation': 'classification', 'depth': 'depth',
                             'normal': 'normal'}
    assert dataset.losses == {'segmentation': 'cross_entropy', 'depth': 'l1', 'normal': 'cosine'}
    assert dataset.labels == NYUV2_13
    assert (dataset.depth_unit, dataset.focal_length, dataset.size) == ('metre', None, SIZE)
    assert dataset.names == ['val/0', 'val/1', 'val/2']
    sample, source = dataset[1], frame(101)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sample.items()} == {
        'image': ((3, *SIZE), torch.float32), 'segmentation': (SIZE, torch.int64),
        'depth': ((1, *SIZE), torch.float32), 'normal': ((3, *SIZE), torch.float32)}
    np.testing.assert_array_equal(sample['image'], source['image'].transpose(2, 0, 1))
    np.testing.assert_array_equal(sample['segmentation'], source['label'])
    np.testing.assert_array_equal(sample['depth'][0], source['depth'][..., 0])
    expected = source['normal'] * (1, 1, -1)  # z forward
    np.testing.assert_allclose(sample['normal'].permute(1, 2, 0), expected, atol=1e-6)
    assert (sample['normal'].norm(dim=0) == 0).sum() == 3 * SIZE[1]


def test_intrinsics_beside_the_folders_come_with_each_sample(nyu):
    np.save(nyu / 'intrinsics.npy', CAMERA)
    dataset = open_dataset('nyuv2', nyu, 'train', ['depth'])
    assert dataset.focal_length == 20
    assert set(dataset[0]) == {'image', 'depth', 'intrinsics'}
    torch.testing.assert_close(dataset[0]['intrinsics'], torch.tensor(CAMERA).float())
    assert dataset.labels is None
    np.save(nyu / 'intrinsics.npy', CAMERA[:2])
    with pytest.raises(DatasetError, match=r'intrinsics\.npy.*\(3, 3\)'):
        open_dataset('nyuv2', nyu, 'train')


def test_val_is_a_fixed_tenth_of_train_and_never_of_test(nyu):
    train, val, test = (open_dataset('nyuv2', nyu, split) for split in ('train', 'val', 'test'))
    assert (len(train), len(val), len(test)) == (18, 2, 3)
    assert not set(train.names) & set(val.names)
    assert len(set(train.names) | set(val.names)) == 20
    assert train.ids == sorted(train.ids, key=int)
    assert val.ids == open_dataset('nyuv2', nyu, 'val').ids == ['8', '9']
    for path in val.paths(0).values():
        assert path.is_relative_to(nyu / 'train')


@pytest.mark.parametrize('name, labels, folder', [
    ('cityscapes', CITYSCAPES_7, 'label_7'), ('cityscapes_19', CITYSCAPES_19, 'label_19')])
def test_cityscapes_has_inverse_depth(tmp_path, name, labels, folder):
    classes = len(labels.names)
    label = (np.arange(128 * 256).reshape(128, 256) % (classes + 1)) - 1
    for kind, array in (('image', np.zeros((128, 256, 3))), (folder, label),
                        ('depth', np.full((128, 256, 1), 0.25))):
        (tmp_path / 'val' / kind).mkdir(parents=True)
        np.save(tmp_path / 'val' / kind / '0.npy', array)
    dataset = open_dataset(name, tmp_path, 'test')
    assert dataset.tasks == {'segmentation': classes, 'depth': 1}
    assert dataset.kinds['depth'] == 'inverse_depth' and dataset.depth_unit == 'inverse'
    assert dataset.labels == labels
    sample = dataset[0]
    assert sample['segmentation'].unique().tolist() == list(range(-1, classes))
    assert (sample['depth'] == 0.25).all()


@pytest.fixture
def pictures(tmp_path):
    """Write what config/datasets/example.yaml describes: pictures of every kind it names."""
    import cv2
    (tmp_path / 'labels').mkdir()
    shutil.copy(EXAMPLE.parent.parent / 'labels' / 'example.yaml', tmp_path / 'labels')
    root = tmp_path / 'datasets'
    root.mkdir()
    shutil.copy(EXAMPLE, root)
    ramp = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    ids = np.where(ramp % 9 == 8, 255, ramp % 9 % 7).astype(np.uint8)
    normal = np.zeros((*SIZE, 3)) + (0, 0.6, -0.8)
    normal[0] = 0
    albedo = np.full((*SIZE, 3), 0.5)
    albedo[1, :, 2] = np.nan
    for split in ('train', 'test'):
        for index in range(4):
            blue = np.zeros((*SIZE, 3), np.uint8) + np.array((250, 0, 0), np.uint8)  # OpenCV: BGR
            for path, picture in ((f'rgb/{index}.jpg', blue), (f'mask/{index}.png', ids),
                                  (f'depth/{index}.png', (1000 + ramp).astype(np.uint16)),
                                  (f'traversable/{index}.png', np.uint8(ids % 2))):
                (root / split / path).parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(root / split / path), picture)
            for name, array in (('normal', normal), ('albedo', albedo)):
                (root / split / name).mkdir(exist_ok=True)
                np.save(root / split / name / f'{index}.npy', array)
    return root / 'example.yaml'


def test_the_example_describes_five_tasks_in_pictures_and_arrays(pictures):
    dataset = open_dataset('folder', pictures, 'test')
    check_dataset(dataset)
    assert dataset.tasks == {'segmentation': 7, 'depth': 1, 'normal': 3, 'traversable': 2,
                             'albedo': 3}
    assert dataset.kinds['traversable'] == 'classification'
    assert dataset.losses == {'segmentation': 'cross_entropy', 'depth': 'l1', 'normal': 'cosine',
                              'traversable': 'cross_entropy', 'albedo': 'mse'}
    assert dataset.labels.names[4] == 'forklift'
    assert dataset.focal_length == pytest.approx(518.9)
    sample = dataset[2]
    assert sample['image'][2].mean() > 0.9 and sample['image'][0].mean() < 0.1
    assert sample['segmentation'].unique().tolist() == [-1, *range(7)]
    assert sample['segmentation'][0, 8] == -1
    assert sample['depth'][0, 0, 5] == pytest.approx(1.005)
    assert sample['traversable'].unique().tolist() == [0, 1]
    np.testing.assert_allclose(sample['normal'][:, 5, 5], (0, 0.6, -0.8), atol=1e-6)
    assert not sample['normal'][:, 0].any()
    assert sample['albedo'].isnan().sum(0).unique().tolist() == [0, 3]
    assert sample['albedo'][:, 1].isnan().all() and (sample['albedo'][:, 2:] == 0.5).all()


def test_a_normal_picture_is_read_as_vectors(pictures):
    import cv2
    entries = yaml.safe_load(pictures.read_text())
    entries['tasks'] = {'normal': {'files': '{split}/normal/{id}.png'}}
    pictures.write_text(yaml.safe_dump(entries))
    picture = np.full((*SIZE, 3), 128, np.uint8)  # middle grey: no normal
    picture[4:] = (26, 204, 128)  # OpenCV's order: z, y, x of (0, 0.6, -0.8)
    for split in ('train', 'test'):
        for index in range(4):
            cv2.imwrite(str(pictures.parent / split / 'normal' / f'{index}.png'), picture)
    normal = open_dataset('folder', pictures, 'train')[0]['normal']
    np.testing.assert_allclose(normal[:, 6, 6], (0, 0.6, -0.8), atol=0.01)
    assert not normal[:, :4].any()


def test_folders_are_train_and_test_unless_they_are_named(pictures):
    entries = yaml.safe_load(pictures.read_text())
    (pictures.parent / 'test').rename(pictures.parent / 'val')
    entries['folders'] = {'train': 'train', 'test': 'val'}
    pictures.write_text(yaml.safe_dump(entries))
    named = open_dataset('folder', pictures, 'test').ids
    (pictures.parent / 'val').rename(pictures.parent / 'test')
    del entries['folders']
    pictures.write_text(yaml.safe_dump(entries))
    assert open_dataset('folder', pictures, 'test').ids == named


def test_holes_of_normals_are_unknown(pictures):
    """Black in a picture; in an array the vector that is ignored, not each -1 of a good one."""
    import cv2
    entries = yaml.safe_load(pictures.read_text())
    entries['tasks'] = {'normal': {'files': '{split}/normal/{id}.png'}}
    pictures.write_text(yaml.safe_dump(entries))
    picture = np.full((*SIZE, 3), (26, 204, 128), np.uint8)
    picture[:4] = 0
    for split in ('train', 'test'):
        for index in range(4):
            cv2.imwrite(str(pictures.parent / split / 'normal' / f'{index}.png'), picture)
    normal = open_dataset('folder', pictures, 'train')[0]['normal']
    assert not normal[:, :4].any() and normal[:, 4:].norm(dim=0).min() > 0.99

    entries['tasks'] = {'normal': {'files': '{split}/normal/{id}.npy', 'ignore': -1}}
    pictures.write_text(yaml.safe_dump(entries))
    vectors = np.full((*SIZE, 3), (0, 0, -1), np.float32)
    vectors[:4] = -1
    for split in ('train', 'test'):
        for index in range(4):
            np.save(pictures.parent / split / 'normal' / f'{index}.npy', vectors)
    normal = open_dataset('folder', pictures, 'train')[0]['normal']
    assert not normal[:, :4].any() and (normal[2, 4:] == -1).all()


def test_files_may_share_a_part_of_their_name(pictures):
    for split in ('train', 'test'):
        for index in range(4):
            shutil.copy(pictures.parent / split / f'rgb/{index}.jpg',
                        pictures.parent / f'{split}_{index}_{index}_left.jpg')
    entries = yaml.safe_load(pictures.read_text())
    entries['image'] = '{split}_{id}_{id}_left.jpg'
    entries['tasks'] = {'depth': entries['tasks']['depth']}
    pictures.write_text(yaml.safe_dump(entries))
    assert open_dataset('folder', pictures, 'test').ids == ['0', '1', '2', '3']


# ---- what is wrong, before it starts -----------------------------------------------------------

def test_a_sound_data_set_passes(nyu):
    for split in ('train', 'val', 'test'):
        check_dataset(open_dataset('nyuv2', nyu, split))


def test_an_empty_split_is_named(nyu):
    shutil.rmtree(nyu / 'val' / 'image')
    with pytest.raises(DatasetError, match=r'val/image/\{id\}\.npy.*split test is empty'):
        open_dataset('nyuv2', nyu, 'test')
    with pytest.raises(DatasetError, match=r'nowhere.*empty'):
        open_dataset('nyuv2', nyu / 'nowhere', 'train')
    for path in list((nyu / 'train' / 'image').iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match='too few to take a validation split'):
        open_dataset('nyuv2', nyu, 'val')
    assert len(open_dataset('nyuv2', nyu, 'train')) == 1


def test_a_missing_modality_is_named_unless_it_is_not_wanted(nyu):
    (nyu / 'val' / 'normal' / '1.npy').unlink()
    with pytest.raises(DatasetError, match=r'val/normal/1\.npy: missing \(of test, 1 file'):
        open_dataset('nyuv2', nyu, 'test')
    assert len(open_dataset('nyuv2', nyu, 'test', ['segmentation', 'depth'])) == 3
    with pytest.raises(ValueError, match="nyuv2 has no 'edges'; it has segmentation, depth"):
        open_dataset('nyuv2', nyu, 'test', ['edges'])


@pytest.mark.parametrize('name, array, fault', [
    ('depth', np.ones((12, 17, 1)), r'\(12, 17, 1\).*\(12, 16, 1\) is needed'),
    ('normal', np.ones((12, 16)), r'\(12, 16, 3\) is needed'),
    ('label', np.zeros((12, 16, 13)), r'\(12, 16, 1\) is needed'),
    ('image', np.zeros((16, 12, 3)), r'\(16, 12, 3\).*\(12, 16, 3\) is needed')])
def test_a_wrong_shape_is_found_in_any_file(nyu, name, array, fault):
    np.save(nyu / 'train' / name / '7.npy', array)
    with pytest.raises(DatasetError, match=rf'train/{name}/7\.npy: has shape .*{fault}'):
        check_dataset(open_dataset('nyuv2', nyu, 'train'))


@pytest.mark.parametrize('content', [b'', b'\x93NUMPY', b'<html>', None], ids=str)
def test_a_corrupt_or_truncated_file_is_found_in_any_file(nyu, content):
    path = nyu / 'train' / 'depth' / '7.npy'
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(DatasetError, match=r'1 fault.*\n.*train/depth/7\.npy: cannot be read'):
        check_dataset(open_dataset('nyuv2', nyu, 'train'))


def test_all_faults_are_listed_at_once(nyu):
    for index in (2, 5):
        np.save(nyu / 'train' / 'depth' / f'{index}.npy', np.ones(3))
    with pytest.raises(DatasetError) as error:
        check_dataset(open_dataset('nyuv2', nyu, 'train'))
    assert '2 fault(s)' in str(error.value)
    assert 'depth/2.npy' in str(error.value) and 'depth/5.npy' in str(error.value)


def test_a_truncated_png_is_found(pictures):
    path = pictures.parent / 'train' / 'mask' / '0.png'
    path.write_bytes(path.read_bytes()[:-5])
    dataset = open_dataset('folder', pictures, 'train')
    with pytest.raises(DatasetError, match=r'mask/0\.png: is not a whole PNG'):
        check_dataset(dataset)


def put(value):
    return lambda array: array.__setitem__((5, 3), value)


FAULTS = [
    ('label', put(13), r'label\(s\) 13 in 1 pixel\(s\); they go from 0 to 12'),
    ('label', put(-2), r'label\(s\) -2'),
    ('label', put(1.5), r'label\(s\) 1.5'),
    ('label', put(np.nan), r'label\(s\) nan'),
    ('depth', put(np.nan), 'NaN or infinity in 1 value'),
    ('depth', put(np.inf), 'NaN or infinity'),
    ('depth', lambda array: array.fill(0), 'no valid pixel'),
    ('normal', put(np.nan), 'NaN or infinity'),
    ('normal', put(3), 'length'),
    ('normal', lambda array: array.fill(0), 'no valid pixel'),
    ('image', put(np.nan), 'NaN or infinity'),
    ('image', lambda array: array.__imul__(255), 'needs 0..1'),
]


@pytest.mark.parametrize('name, change, fault', FAULTS)
def test_wrong_values_are_named(nyu, name, change, fault):
    damage(nyu / 'val' / name / '1.npy', change)
    with pytest.raises(DatasetError, match=rf'val/{name}/1\.npy: has .*{fault}'):
        check_dataset(open_dataset('nyuv2', nyu, 'test'))


# ---- what is wrong, and found on the way -------------------------------------------------------

def test_a_bad_frame_in_the_middle_is_skipped_counted_and_logged(nyu, caplog):
    dataset = open_dataset('nyuv2', nyu, 'train')
    check_dataset(dataset, contents=2)
    place = dataset.ids.index('7')
    damage(nyu / 'train' / 'depth' / '7.npy', put(np.nan))
    following = dataset.load(place + 1)
    assert torch.equal(dataset[place]['image'], following['image'])
    assert dataset.skipped == ['train/7']
    assert 'train/depth/7.npy: has NaN' in caplog.text
    caplog.clear()
    assert torch.equal(dataset[place]['image'], following['image'])
    assert not caplog.text and len(dataset.skipped) == 1  # said once
    with pytest.raises(DatasetError, match=r'depth/7\.npy'):
        dataset.load(place)


def test_what_a_loaders_workers_skip_is_counted_here(nyu):
    (nyu / 'train' / 'label' / '3.npy').write_bytes(b'gone')
    dataset = open_dataset('nyuv2', nyu, 'train')
    batches = list(DataLoader(dataset, batch_size=6, num_workers=2))
    assert [tuple(batch['image'].shape) for batch in batches] == 3 * [(6, 3, *SIZE)]
    assert dataset.skipped == ['train/3']


def test_a_data_set_of_bad_frames_alone_is_an_error(nyu):
    for index in range(3):
        damage(nyu / 'val' / 'depth' / f'{index}.npy', lambda array: array.fill(0))
    dataset = open_dataset('nyuv2', nyu, 'test')
    with pytest.raises(DatasetError, match='not one of the 3 frames of test can be used'):
        dataset[0]


def test_iteration_ends(nyu):
    assert sum(1 for _ in open_dataset('nyuv2', nyu, 'test')) == 3


# ---- descriptions ------------------------------------------------------------------------------

def test_unknown_names_and_splits_are_refused(nyu):
    with pytest.raises(ValueError, match=f"'kitti'; choose one of {', '.join(LAYOUTS)} or folder"):
        open_dataset('kitti', nyu, 'train')
    with pytest.raises(ValueError, match="'eval'; choose one of train, val, test"):
        open_dataset('nyuv2', nyu, 'eval')


def change_task(**entries):
    return lambda content: content['tasks']['depth'].update(entries)


@pytest.mark.parametrize('change, fault', [
    (lambda content: content.pop('image'), 'image missing'),
    (lambda content: content.pop('tasks'), 'tasks missing'),
    (lambda content: content.update(tasks={}), 'tasks: {}'),
    (lambda content: content.update(taskss=1), "unknown 'taskss'; known are .*tasks"),
    (lambda content: content.update(image='rgb/{id}.png'), r'image: .*\{split\} and \{id\}'),
    (lambda content: content.update(folders={'train': 'a', 'test': 'a'}), 'two different ones'),
    (lambda content: content.update(intrinsics={'fx': 1}), 'intrinsics: cx, cy, fy missing'),
    (lambda content: content['tasks'].update(Bad={'files': '{split}{id}'}), "'Bad' cannot name"),
    (change_task(kind='classes'), "tasks: depth: kind: 'classes'; choose one of class"),
    (change_task(kind='regression'), 'depth is of kind depth or inverse_depth'),
    (change_task(channels=2), 'tasks: depth: channels: 2; depth has 1'),
    (change_task(loss='cross_entropy'), "loss: 'cross_entropy'; choose one of l1, mse"),
    (change_task(scale=0), 'scale: 0'),
    (change_task(files='depth.png'), r'files: .*\{split\} and \{id\}'),
    (change_task(axes='up'), "axes: 'up'; choose one of optical, nyu"),
    (change_task(fils=1), "tasks: depth: unknown 'fils'"),
    (lambda content: content['tasks']['segmentation'].update(channels=9), 'has 7 classes'),
    (lambda content: content['tasks']['traversable'].pop('channels'), 'number of classes'),
])
def test_a_wrong_description_names_file_and_key(pictures, change, fault):
    content = yaml.safe_load(pictures.read_text())
    change(content)
    pictures.write_text(yaml.safe_dump(content))
    with pytest.raises(DatasetError, match=f'example.yaml: .*{fault}'):
        open_dataset('folder', pictures, 'train')


def test_intrinsics_that_are_named_have_to_be_there(pictures):
    """Else weights would not know their camera, and nobody would know why."""
    content = yaml.safe_load(pictures.read_text())
    content['intrinsics'] = 'K_typo.npy'
    pictures.write_text(yaml.safe_dump(content))
    with pytest.raises(DatasetError, match=r'K_typo\.npy: no such file, though `intrin'):
        open_dataset('folder', pictures, 'train')


def test_the_camera_of_a_description_comes_with_each_sample(pictures):
    content = yaml.safe_load(pictures.read_text())
    content['intrinsics'] = {'cx': 7.5, 'cy': 5.5, 'fx': 20, 'fy': 21}
    pictures.write_text(yaml.safe_dump(content))
    assert open_dataset('folder', pictures, 'train')[0]['intrinsics'].tolist() == [
        [20, 0, 7.5], [0, 21, 5.5], [0, 0, 1]]


def test_classes_without_names_are_numbered_and_255_is_none_of_them(pictures):
    """Where the description says nothing of either."""
    content = yaml.safe_load(pictures.read_text())
    content['tasks'] = {'segmentation': {'files': '{split}/mask/{id}.png', 'channels': 7}}
    pictures.write_text(yaml.safe_dump(content))
    dataset = open_dataset('folder', pictures, 'train')
    check_dataset(dataset)
    assert dataset.labels == generic(7)
    assert dataset[0]['segmentation'].unique().tolist() == [-1, *range(7)]


def test_what_is_no_description_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r'none\.yaml: cannot be read'):
        open_dataset('folder', tmp_path / 'none.yaml', 'train')
    (tmp_path / 'bad.yaml').write_text('a: [')
    with pytest.raises(DatasetError, match=r'bad\.yaml: is not YAML'):
        open_dataset('folder', tmp_path / 'bad.yaml', 'train')


def test_the_shipped_example_is_readable():
    layout, root = read_layout(EXAMPLE)
    assert layout.name == 'warehouse' and root == EXAMPLE.parent
    assert list(layout.targets) == ['segmentation', 'depth', 'normal', 'traversable', 'albedo']
