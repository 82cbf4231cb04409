# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding and encoding of image messages."""

import logging
import struct
import sys
from types import ModuleType, SimpleNamespace

from broken_pictures import BROKEN_PICTURES, on_its_side
import cv2
import numpy as np
import pytest

pytest.importorskip('sensor_msgs', reason='the node needs the ROS message packages')

from std_msgs.msg import Header

from mtan_perception.node import image_codec
from mtan_perception.node.image_codec import (
    decode_compressed,
    decode_image,
    encode_image,
    ENCODINGS,
    ImageError,
)

HEIGHT, WIDTH = 6, 8


def image_message(rows: np.ndarray, encoding: str, width=WIDTH, padding=0, **fields):
    """Lay out the rows of an array as a message's data, `padding` bytes behind each row."""
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(rows.shape[0], -1)
    data = np.pad(data, ((0, 0), (0, padding)), constant_values=77)
    return SimpleNamespace(**{
        'height': HEIGHT, 'width': width, 'encoding': encoding, 'is_bigendian': 0,
        'step': data.shape[1], 'data': data.tobytes(), **fields})


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding, channels', [
    ('rgb8', [0, 1, 2]), ('bgr8', [2, 1, 0]), ('8UC3', [2, 1, 0]), ('rgba8', [0, 1, 2, 0]),
    ('bgra8', [2, 1, 0, 0]), ('8UC4', [2, 1, 0, 0])])
def test_eight_bit_color_is_a_view(rgb, encoding, channels, padding):
    message = image_message(rgb[..., channels], encoding, padding=padding)
    decoded = decode_image(message)
    np.testing.assert_array_equal(decoded, rgb)
    assert np.shares_memory(decoded, np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_grey_is_a_view_with_three_equal_channels(rgb, encoding):
    message = image_message(rgb[..., 0], encoding, padding=3)
    decoded = decode_image(message)
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(decoded, rgb[..., :1].repeat(3, axis=2))
    assert np.shares_memory(decoded, np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize('is_bigendian', [0, 1])
@pytest.mark.parametrize('encoding, channels', [
    ('rgb16', [0, 1, 2]), ('bgr16', [2, 1, 0]), ('16UC3', [2, 1, 0]), ('rgba16', [0, 1, 2, 0]),
    ('bgra16', [2, 1, 0, 0]), ('16UC4', [2, 1, 0, 0])])
def test_sixteen_bit_keeps_the_high_byte(rgb, encoding, channels, is_bigendian):
    values = (rgb[..., channels].astype(np.uint16) * 256 + 200).astype(
        '>u2' if is_bigendian else '<u2')
    message = image_message(values, encoding, padding=4, is_bigendian=is_bigendian)
    np.testing.assert_array_equal(decode_image(message), rgb)


@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
def test_sixteen_bit_grey(rgb, encoding):
    values = rgb[..., 0].astype('<u2') * 256
    np.testing.assert_array_equal(
        decode_image(image_message(values, encoding))[..., 2], rgb[..., 0])


@pytest.mark.parametrize('is_bigendian', [0, 1])
def test_floats_of_0_to_1(rgb, is_bigendian):
    rgb[0, :2] = [[0], [255]]  # the ends of the range belong to it
    values = np.clip((rgb[..., ::-1] - 0.4) / 255, 0, 1)
    values[0, 1] = 1
    values = values.astype('>f4' if is_bigendian else '<f4')
    message = image_message(values, '32FC3', padding=8, is_bigendian=is_bigendian)
    np.testing.assert_array_equal(decode_image(message), rgb)


@pytest.mark.parametrize('is_bigendian', [0, 1])
@pytest.mark.parametrize('encoding', [
    f'bayer_{pattern}{bits}' for pattern in ('rggb', 'bggr', 'gbrg', 'grbg') for bits in (8, 16)])
def test_bayer_mosaics_of_an_even_color(encoding, is_bigendian):
    """A mosaic of one colour decodes to that colour, whichever pixel it starts with."""
    color = {'r': 200, 'g': 120, 'b': 40}
    tile = np.array([color[letter] for letter in encoding[6:10]], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    if encoding.endswith('16'):
        mosaic = mosaic.astype('>u2' if is_bigendian else '<u2') * np.uint16(256)
        mosaic = mosaic.astype('>u2' if is_bigendian else '<u2')
    message = image_message(mosaic, encoding, padding=2, is_bigendian=is_bigendian)
    decoded = decode_image(message)
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(decoded[2, 2], [200, 120, 40])


@pytest.mark.parametrize('encoding', [
    'bayer_rggb8', 'bayer_gbrg8', 'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv'])
def test_agreement_with_an_independent_library(encoding):
    rosbags_image = pytest.importorskip('rosbags.image')
    columns = WIDTH if encoding.startswith('bayer') else 2 * WIDTH
    values = np.random.default_rng(1).integers(0, 256, (HEIGHT, columns), np.uint8)
    message = image_message(values, encoding)
    np.testing.assert_array_equal(
        decode_image(message), rosbags_image.message_to_cvimage(message, 'rgb8'))


@pytest.mark.parametrize('encoding, first', [('nv12', 'u'), ('nv21', 'v')])
def test_semi_planar_yuv_of_an_even_color(encoding, first):
    """BT.601: a red of (254, 0, 0) is Y 81, U 90, V 240."""
    luma = np.full((HEIGHT, WIDTH), 81, np.uint8)
    pair = [90, 240] if first == 'u' else [240, 90]
    chroma = np.tile(np.array(pair, np.uint8), (HEIGHT // 2, WIDTH // 2))
    message = image_message(np.concatenate([luma, chroma]), encoding, padding=8)
    decoded = decode_image(message)
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(decoded[0, 0], [254, 0, 0], atol=2)


def test_cv_bridge_converts_where_it_is_installed(monkeypatch):
    """Its binary cannot exist here: the test stands in for the one call that is made."""
    calls = []

    class CvBridge:

        def imgmsg_to_cv2(self, message, desired_encoding):
            calls.append(desired_encoding)
            if message.encoding == 'nv12':
                raise RuntimeError('Unrecognized image encoding [nv12]')
            return np.zeros((message.height, message.width, 3), np.uint8)

    module = ModuleType('cv_bridge')
    module.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)
    image_codec._cv_bridge.cache_clear()
    try:
        message = image_message(np.zeros((HEIGHT, 2 * WIDTH), np.uint8), 'uyvy')
        assert decode_image(message).shape == (HEIGHT, WIDTH, 3)
        assert calls == ['rgb8']
        with pytest.raises(ImageError, match='step 7'):
            decode_image(image_message(np.zeros((HEIGHT, 7), np.uint8), 'uyvy'))
        assert len(calls) == 1, 'cv_bridge was given data that is too short'
        unknown = image_message(np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8), 'nv12')
        unknown.height = HEIGHT
        assert (decode_image(unknown) > 100).all(), "what it does not know is OpenCV's"
    finally:
        image_codec._cv_bridge.cache_clear()


def test_a_cv_bridge_that_does_not_load_is_reported_and_done_without(monkeypatch, caplog):
    class BrokenModule(ModuleType):

        def __getattr__(self, name):
            raise AttributeError('_ARRAY_API not found')

    monkeypatch.setitem(sys.modules, 'cv_bridge', BrokenModule('cv_bridge'))
    # Where pytest has ROS's plugins, they have loaded launch, which silences other loggers.
    monkeypatch.setattr(logging.getLogger(image_codec.__name__), 'propagate', True)
    image_codec._cv_bridge.cache_clear()
    try:
        decoded = decode_image(image_message(np.zeros((HEIGHT, 2 * WIDTH), np.uint8), 'yuyv'))
    finally:
        image_codec._cv_bridge.cache_clear()
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert 'cv_bridge' in caplog.text and 'OpenCV' in caplog.text


FAULTS = [
    ({'encoding': 'rgb10'}, "'rgb10'.*rgb8"),
    ({'height': 0}, '8×0'),
    ({'width': 0}, '0×6'),
    ({'step': 23}, 'step 23.*24'),
    ({'data': bytes(24 * HEIGHT - 1)}, 'data has 143 bytes.*144'),
    ({'data': bytes(24 * HEIGHT + 1)}, 'data has 145 bytes.*144'),
    ({'data': b''}, 'data has 0 bytes'),
]


@pytest.mark.parametrize('fields, text', FAULTS, ids=['-'.join(f[0]) for f in FAULTS])
def test_faulty_messages_are_named(rgb, fields, text):
    message = image_message(rgb, 'rgb8')
    message.__dict__.update(fields)
    with pytest.raises(ImageError, match=text):
        decode_image(message)


@pytest.mark.parametrize('value, text', [
    (float('nan'), '1 of 48 values'), (float('inf'), '1 of 48'), (3.5, '0 to 3.5'),
    (-0.5, '-0.5 to 0')])
def test_floats_that_are_no_colors_are_refused(value, text):
    values = np.zeros((HEIGHT, WIDTH), '<f4')
    values[2, 3] = value
    with pytest.raises(ImageError, match=text):
        decode_image(image_message(values, '32FC1'))


def test_yuv_of_an_odd_width_is_refused():
    values = np.zeros((HEIGHT, 14), np.uint8)
    with pytest.raises(ImageError, match="7×6 'uyvy'"):
        decode_image(image_message(values, 'uyvy', width=7))


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_compressed(suffix):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = 250, 20, 10
    data = cv2.imencode(suffix, image[..., ::-1])[1].tobytes()
    decoded = decode_compressed(SimpleNamespace(format=suffix[1:], data=data))
    np.testing.assert_allclose(decoded.astype(int), image, atol=6)


def test_a_message_is_not_turned_upright():
    """Its calibration and frame are those of the sensor."""
    jpeg = cv2.imencode('.jpg', np.zeros((16, 32, 3), np.uint8))[1].tobytes()
    message = SimpleNamespace(format='jpeg', data=on_its_side(jpeg))
    assert decode_compressed(message).shape == (16, 32, 3)


@pytest.mark.parametrize('data', BROKEN_PICTURES.values(), ids=BROKEN_PICTURES.keys())
def test_undecodable_compressed_data(data):
    with pytest.raises(ImageError, match=f"{len(data)} bytes of format 'jpeg'"):
        decode_compressed(SimpleNamespace(format='jpeg', data=data))


@pytest.mark.parametrize('encoding, shape, dtype', [
    ('mono8', (HEIGHT, WIDTH), np.uint8), ('rgb8', (HEIGHT, WIDTH, 3), np.uint8),
    ('32FC1', (HEIGHT, WIDTH), np.float32), ('32FC3', (HEIGHT, WIDTH, 3), np.float32)])
def test_encoding(encoding, shape, dtype):
    image = (np.random.default_rng(2).random(shape) * 255).astype(dtype)
    header = Header(frame_id='camera')
    message = encode_image(image, encoding, header)
    assert (message.height, message.width, message.encoding) == (HEIGHT, WIDTH, encoding)
    assert message.step == image[0].nbytes and message.header == header
    np.testing.assert_array_equal(
        np.frombuffer(message.data, dtype).reshape(shape), image)


def test_a_used_message_is_filled_anew_where_it_fits():
    """Its memory is written again; one of another size or encoding is left as it is."""
    first = encode_image(np.full((4, 6), 1, np.uint8), 'mono8', Header(frame_id='old'))
    memory = first.data
    again = encode_image(np.arange(24, dtype=np.uint8).reshape(4, 6)[:, ::-1], 'mono8',
                         Header(frame_id='new'), first)
    assert again is first and again.data is memory and again.header.frame_id == 'new'
    assert bytes(again.data[:6]) == bytes([5, 4, 3, 2, 1, 0])
    for image, encoding in ((np.zeros((4, 5), np.uint8), 'mono8'),
                            (np.zeros((4, 6, 3), np.uint8), 'rgb8')):
        other = encode_image(image, encoding, Header(), first)
        assert other is not first and len(other.data) == image.size and len(first.data) == 24


def test_encoding_of_strided_images_and_little_endian_floats():
    image = np.arange(HEIGHT * WIDTH, dtype='>f4').reshape(HEIGHT, WIDTH)[:, ::2]
    message = encode_image(image, '32FC1', Header())
    assert struct.unpack('<f', message.data[4:8]) == (2.0,)
    assert message.step == WIDTH // 2 * 4 and not message.is_bigendian


def test_every_encoding_named_in_the_error_can_be_decoded():
    for encoding in ENCODINGS:
        rows = HEIGHT * 3 // 2 if encoding.startswith('nv') else HEIGHT
        rows = np.zeros((rows, 2 * WIDTH), '<f8')
        message = image_message(rows, encoding)
        assert decode_image(message).shape == (HEIGHT, WIDTH, 3), encoding
