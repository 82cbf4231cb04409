# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures as they are read from files and messages."""

from broken_pictures import BROKEN_PICTURES, on_its_side
import cv2
import numpy as np
import pytest

from mtan_perception.files import decode_picture, list_pictures, read_picture

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize('data', BROKEN_PICTURES.values(), ids=BROKEN_PICTURES.keys())
@pytest.mark.parametrize('unchanged', (False, True))
def test_what_is_no_picture(data, unchanged, tmp_path):
    assert decode_picture(data, unchanged) is None
    (tmp_path / 'a.png').write_bytes(data)
    assert read_picture(tmp_path / 'a.png') is None


def test_files_that_cannot_be_read(tmp_path):
    assert read_picture(tmp_path / 'none.png') is None
    assert read_picture(tmp_path) is None


def test_a_picture_as_it_is_stored_and_in_colours(tmp_path):
    deep = PICTURE[..., 0].astype(np.uint16) * 1000
    stored = cv2.imencode('.png', deep)[1].tobytes()
    np.testing.assert_array_equal(decode_picture(stored, unchanged=True), deep)
    assert decode_picture(stored).shape == (2, 3, 3) and decode_picture(stored).dtype == np.uint8
    (tmp_path / 'a.png').write_bytes(cv2.imencode('.png', PICTURE)[1].tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / 'a.png'), PICTURE)


def test_a_photograph_is_turned_upright():
    jpeg = cv2.imencode('.jpg', np.zeros((16, 32, 3), np.uint8))[1].tobytes()
    assert decode_picture(jpeg).shape == (16, 32, 3)
    assert decode_picture(on_its_side(jpeg)).shape == (32, 16, 3)


def test_the_pictures_of_a_folder_by_name(tmp_path):
    """Cameras write .JPG; a folder or a text is none, whatever it is called."""
    for name in ('b.JPG', 'a.png', 'c.tiff', 'notes.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'd.png').mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ['a.png', 'b.JPG', 'c.tiff']
