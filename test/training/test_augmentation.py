# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Zoom, crop, mirror and jitter against the geometry of a plane in front of a camera."""

import numpy as np
import pytest
import torch

from mtan_perception.geometry import back_project
from mtan_perception.training import augmentation
from mtan_perception.training.augmentation import Augmentation

HEIGHT, WIDTH = 60, 80
CAMERA = torch.tensor([[70.0, 0, 37.0], [0, 72.0, 31.0], [0, 0, 1]])
PLANE = torch.nn.functional.normalize(torch.tensor([0.35, -0.4, -0.8]), dim=0)
DISTANCE = 2.5  # of the plane from the camera, metres


def plane_sample():
    """Return a slanted plane whose image's red and green are its own pixel coordinates."""
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing='ij')
    rays = torch.stack(((u - CAMERA[0, 2]) / CAMERA[0, 0], (v - CAMERA[1, 2]) / CAMERA[1, 1],
                        torch.ones(HEIGHT, WIDTH)))
    depth = -DISTANCE / (rays * PLANE[:, None, None]).sum(0, keepdim=True)
    assert depth.min() > 0.5 and depth.max() < 20
    image = torch.stack((u / WIDTH, v / HEIGHT, torch.full((HEIGHT, WIDTH), 0.5)))
    normal = PLANE[:, None, None].expand(3, HEIGHT, WIDTH)
    return {'image': image, 'depth': depth, 'normal': normal,
            'segmentation': (u // 10 + v // 10).long(), 'intrinsics': CAMERA}


def augmented(sample, seed=0, **options):
    return Augmentation(**options)(sample, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('scale', [1.0, 1.2, 1.5])
@pytest.mark.parametrize('flip', [0, 1])
def test_a_plane_stays_a_plane_with_the_transformed_normal(scale, flip):
    for seed in range(4):
        result = augmented(plane_sample(), seed, scales=(scale,), flip=flip)
        normal = PLANE * torch.tensor([-1.0 if flip else 1.0, 1, 1])
        expected = normal[:, None, None].expand(3, HEIGHT, WIDTH)
        torch.testing.assert_close(result['normal'], expected)
        # The zoomed camera sees metric depth; the depth to learn is that of the data set's camera.
        camera = result['intrinsics']
        torch.testing.assert_close(camera[0, 0], scale * CAMERA[0, 0])
        torch.testing.assert_close(camera[1, 1], scale * CAMERA[1, 1])
        metric = result['depth'][0] * (camera[0, 0] / CAMERA[0, 0])
        points = back_project(metric.numpy().astype(np.float64), camera.numpy())
        # The nearest pixel is up to half a pixel off, which slants by 2 % of the depth at most.
        off = np.abs(np.tensordot(normal.numpy(), points, 1) + DISTANCE) / metric.numpy()
        assert off.max() < (1e-5 if scale == 1 else 0.012)
        assert off.mean() < 0.004


def test_the_data_sets_camera_sees_depth_divided_by_the_scale():
    result = augmented(plane_sample(), scales=(1.5,), flip=0)
    top = round(float(result['image'][1, 0, 0] * HEIGHT))
    left = round(float(result['image'][0, 0, 0] * WIDTH))
    depth = plane_sample()['depth'][0]
    assert result['depth'][0, 0, 0] == pytest.approx(float(depth[top, left]) / 1.5, rel=1e-6)
    assert result['depth'][0, -1, -1] == pytest.approx(
        float(depth[top + 39, left + 52]) / 1.5, rel=0.01)


@pytest.mark.parametrize('scale, flip', [(1.0, 1), (1.2, 0), (1.5, 1)])
def test_image_and_camera_move_together(scale, flip):
    """A ray through the new camera meets the old pixel whose coordinates the colour tells."""
    result = augmented(plane_sample(), 3, scales=(scale,), flip=flip)
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing='ij')
    camera = result['intrinsics']
    x = (u - camera[0, 2]) / camera[0, 0] * (-1 if flip else 1)
    y = (v - camera[1, 2]) / camera[1, 1]
    inside = slice(1, -1)  # at the frame's border there is nothing to interpolate with
    for plane, expected in ((0, (x * CAMERA[0, 0] + CAMERA[0, 2]) / WIDTH),
                            (1, (y * CAMERA[1, 1] + CAMERA[1, 2]) / HEIGHT)):
        torch.testing.assert_close(result['image'][plane][inside, inside],
                                   expected[inside, inside], rtol=0, atol=1e-5)


def test_scale_one_without_flip_changes_nothing():
    sample = plane_sample()
    result = augmented(sample, scales=(1.0,), flip=0)
    for name, tensor in sample.items():
        assert torch.equal(result[name], tensor) or name == 'normal', name
    torch.testing.assert_close(result['normal'], sample['normal'])


def test_mirroring_twice_is_the_original():
    sample = plane_sample()
    result = augmented(augmented(sample, scales=(1.0,), flip=1), scales=(1.0,), flip=1)
    for name, tensor in sample.items():
        torch.testing.assert_close(result[name], tensor, msg=name)


def test_invalid_pixels_do_not_bleed():
    sample = plane_sample()
    hole = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    hole[20:41, 25:57] = True
    sample['image'] = torch.stack(3 * [hole.float()])
    sample['depth'] = sample['depth'].masked_fill(hole, 0)
    sample['normal'] = sample['normal'].masked_fill(hole, 0)
    sample['segmentation'] = sample['segmentation'].masked_fill(hole, -1)
    sample['edges'] = torch.ones(2, HEIGHT, WIDTH).masked_fill(hole, torch.nan)
    kinds = {'depth': 'depth', 'normal': 'normal', 'segmentation': 'classification',
             'edges': 'regression'}
    for seed in range(6):
        result = augmented(sample, seed, kinds=kinds)
        invalid = result['depth'][0] == 0
        assert invalid.any()
        assert torch.equal(invalid, result['segmentation'] == -1)
        assert torch.equal(invalid, result['edges'].isnan().all(0))
        assert set(result['edges'].nan_to_num(-1).unique().tolist()) == {-1, 1}
        assert (result['depth'][0][~invalid] > 0.3).all()
        length = result['normal'].norm(dim=0)
        assert torch.equal(invalid, length == 0)
        torch.testing.assert_close(length[~invalid], torch.ones_like(length[~invalid]))


def test_inverse_depth_is_multiplied():
    sample = plane_sample()
    inverse = augmented({**sample, 'depth': 1 / sample['depth']}, scales=(1.5,),
                        kinds={'depth': 'inverse_depth'})
    depth = augmented(sample, scales=(1.5,))
    torch.testing.assert_close(inverse['depth'], 1 / depth['depth'])


def test_each_frame_of_a_batch_has_a_transform_of_its_own():
    sample = plane_sample()
    batch = {name: torch.stack(16 * [tensor]) for name, tensor in sample.items()}
    result = augmented(batch)
    assert {name: tensor.shape for name, tensor in result.items()} \
        == {name: tensor.shape for name, tensor in batch.items()}
    zooms = (result['intrinsics'][:, 0, 0] / CAMERA[0, 0]).mul(10).round().div(10)
    assert set(np.round(zooms.tolist(), 1)) == {1.0, 1.2, 1.5}
    mirrored = result['normal'][:, 0, 0, 0] * PLANE[0] < 0
    assert 2 < mirrored.sum() < 14
    for index in range(16):
        depth = result['depth'][index, 0] * zooms[index]
        points = back_project(depth.numpy(), result['intrinsics'][index].numpy())
        off = np.tensordot(result['normal'][index, :, 0, 0].numpy(), points, 1) + DISTANCE
        assert np.abs(off / depth.numpy()).max() < 0.012


def test_single_and_batched_agree_and_a_seed_reproduces():
    sample = plane_sample()
    options = {'jitter': 0.4}
    single = augmented(sample, 7, **options)
    batch = augmented({name: tensor[None] for name, tensor in sample.items()}, 7, **options)
    again = augmented(sample, 7, **options)
    other = augmented(sample, 8, **options)
    for name, tensor in single.items():
        assert torch.equal(tensor, batch[name][0])
        assert torch.equal(tensor, again[name])
    assert not torch.equal(single['image'], other['image'])


def test_crops_reach_every_corner_and_stay_inside():
    sample = {'image': plane_sample()['image']}
    corners = [augmented(sample, seed, scales=(1.5,), flip=0)['image'][:2] for seed in range(200)]
    firsts = torch.stack([(image[:, 0, 0] * torch.tensor([WIDTH, HEIGHT])) for image in corners])
    lasts = torch.stack([(image[:, -1, -1] * torch.tensor([WIDTH, HEIGHT])) for image in corners])
    assert firsts.amin(0).round().tolist() == [0, 0]
    # The last window of whole pixels, of 53 1/3 by 40, begins at (26, 20).
    assert (lasts.amax(0) > torch.tensor([WIDTH - 1.6, HEIGHT - 1.1])).all()
    assert (lasts.amax(0) <= torch.tensor([WIDTH - 1.0, HEIGHT - 1.0]) + 1e-4).all()


def test_jitter_changes_the_image_alone():
    sample = plane_sample()
    result = augmented(sample, scales=(1.0,), flip=0, jitter=0.5)
    assert not torch.equal(result['image'], sample['image'])
    assert 0 <= result['image'].min() and result['image'].max() <= 1
    assert torch.equal(result['depth'], sample['depth'])
    grey = torch.full((3, 4, 4), 0.4)
    brighter = augmented({'image': grey}, 1, scales=(1.0,), jitter=0.5)['image']
    assert brighter.std() < 1e-6 and 0.2 <= brighter.mean() <= 0.6  # grey stays grey


@pytest.mark.parametrize('options, name', [
    ({'scales': (0.8, 1.0)}, 'scales'), ({'scales': ()}, 'scales'), ({'flip': 2}, 'flip'),
    ({'jitter': -0.1}, 'jitter')])
def test_impossible_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        Augmentation(**options)


def test_jitter_is_of_the_picture_that_the_window_shows():
    sample = plane_sample()
    plain, jittered = (augmented(sample, scales=(1.5,), flip=1, jitter=jitter)
                       for jitter in (0.0, 1e-4))
    torch.testing.assert_close(jittered['image'], plain['image'], rtol=0, atol=1e-3)


def test_jitter_changes_brightness_then_saturation_then_contrast():
    """Of a red and a grey pixel, by hand: each factor's part, and what is too bright is cut."""
    image = torch.tensor([[0.4, 0.0, 0.0], [0.2, 0.2, 0.2]]).T.reshape(1, 3, 1, 2)

    def result(*factors):
        found = augmentation._jittered(image, torch.tensor(factors).float()[:, None])
        return found[0, :, 0].T.flatten().tolist()
    red, mean = 0.299 * 0.4, (0.299 * 0.4 + 0.2) / 2
    assert result(1.5, 1, 1) == pytest.approx([0.6, 0, 0, 0.3, 0.3, 0.3])
    assert result(1, 1, 0.5) == pytest.approx(
        [(0.4 + red) / 2, red / 2, red / 2, 0.2, 0.2, 0.2])
    assert result(1, 0.5, 1) == pytest.approx(
        [(0.4 + mean) / 2, mean / 2, mean / 2, *3 * [(0.2 + mean) / 2]])
    assert result(9, 1, 1) == [1, 0, 0, 1, 1, 1]


def test_jitter_goes_both_ways():
    grey = torch.full((3, 4, 4), 0.4)
    means = [augmented({'image': grey}, seed, jitter=0.5)['image'].mean() for seed in range(99)]
    assert 0.2 <= min(means) < 0.22 and 0.58 < max(means) <= 0.6


def test_skew_is_mirrored_with_the_picture():
    camera = CAMERA.clone()
    camera[0, 1] = 3.0
    for flip, sign in ((0, 1), (1, -1)):
        result = augmented({**plane_sample(), 'intrinsics': camera}, scales=(1.5,), flip=flip)
        assert result['intrinsics'][0, 1] == sign * 4.5
