# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Image messages to RGB arrays and back.

RGB, BGR, RGBA, BGRA and grey images of 8 or 16 bits are decoded without touching a pixel: the
result is a strided view of the message. Bayer and YUV images are converted by cv_bridge where it
is installed and knows them, and by OpenCV otherwise.
"""

import array
from contextlib import suppress
import functools
import logging

import cv2
import numpy as np
from sensor_msgs.msg import Image

from mtan_perception.files import decode_picture

_RGB, _BGR, _GREY = slice(0, 3), slice(2, None, -1), slice(0, 1)

# Encoding -> (channels, bits per channel, where red, green and blue are). OpenCV's own type names
# carry no colour order; drivers that use them hand over OpenCV images, and those are BGR.
_COLOR = {
    'rgb8': (3, 8, _RGB),
    'bgr8': (3, 8, _BGR),
    'rgba8': (4, 8, _RGB),
    'bgra8': (4, 8, _BGR),
    'mono8': (1, 8, _GREY),
    '8UC1': (1, 8, _GREY),
    '8UC3': (3, 8, _BGR),
    '8UC4': (4, 8, _BGR),
    'rgb16': (3, 16, _RGB),
    'bgr16': (3, 16, _BGR),
    'rgba16': (4, 16, _RGB),
    'bgra16': (4, 16, _BGR),
    'mono16': (1, 16, _GREY),
    '16UC1': (1, 16, _GREY),
    '16UC3': (3, 16, _BGR),
    '16UC4': (4, 16, _BGR),
}
_FLOAT = {
    '32FC1': (1, 32, _GREY),
    '32FC3': (3, 32, _BGR),
}
# Encoding -> (bytes per pixel and row, rows per image row, OpenCV's conversion). OpenCV names a
# Bayer pattern by the second and third pixel of its second row. In the 4:2:0 layouts the chroma
# plane, half as high as the luma plane, follows it with the same step.
_CONVERTED = {
    'bayer_rggb8': (1, 1.0, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': (1, 1.0, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': (1, 1.0, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': (1, 1.0, cv2.COLOR_BayerGB2RGB),
    'bayer_rggb16': (2, 1.0, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr16': (2, 1.0, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg16': (2, 1.0, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg16': (2, 1.0, cv2.COLOR_BayerGB2RGB),
    'yuv422': (2, 1.0, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': (2, 1.0, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (2, 1.0, cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': (2, 1.0, cv2.COLOR_YUV2RGB_YUY2),
    'nv12': (1, 1.5, cv2.COLOR_YUV2RGB_NV12),
    'nv21': (1, 1.5, cv2.COLOR_YUV2RGB_NV21),
}
ENCODINGS = (*_COLOR, *_FLOAT, *_CONVERTED)

_ENCODED_DTYPE = {'mono8': 'u1', 'rgb8': 'u1', 'bgr8': 'u1', '32FC1': '<f4', '32FC3': '<f4'}


class ImageError(ValueError):
    """An image message that cannot be decoded; the text says what was found and expected."""


def decode_image(message) -> np.ndarray:
    """
    Decode a sensor_msgs/Image.

    :param message: the message, or any object with its fields.
    :returns: RGB, uint8, H×W×3; a view of `message.data` where the encoding allows it.
    :raises ImageError: for an unknown encoding, a zero size, a `step` or `data` that does not
        match the size, and floats that are not finite or not in 0..1.
    """
    encoding = message.encoding
    if encoding in _COLOR:
        channels, bits, order = _COLOR[encoding]
        rows = _high_bytes(_rows(message, channels * bits // 8), bits, message.is_bigendian)
        return _rgb_view(rows, channels, order)
    if encoding in _FLOAT:
        channels, bits, order = _FLOAT[encoding]
        return _rgb_view(_float_to_uint8(message, channels * bits // 8), channels, order)
    if encoding in _CONVERTED:
        return _convert(message)
    raise ImageError(
        f"encoding '{encoding}' is not supported; publish one of {', '.join(ENCODINGS)}")


def decode_compressed(message) -> np.ndarray:
    """
    Decode a sensor_msgs/CompressedImage: JPEG, PNG, whatever OpenCV reads.

    :returns: RGB, uint8, H×W×3, as it is stored: what its EXIF says of turning it would not hold
        for the camera's calibration and frame.
    :raises ImageError: when the data is empty or not an image.
    """
    image = decode_picture(message.data, upright=False)
    if image is None:
        raise ImageError(
            f"{len(message.data)} bytes of format '{message.format}' are not an image that OpenCV "
            'can decode; check the publisher')
    return image[..., ::-1]


def encode_image(image: np.ndarray, encoding: str, header, used: Image | None = None) -> Image:
    """
    Fill a sensor_msgs/Image without padding.

    :param image: H×W or H×W×C of the encoding's type: mono8, rgb8, bgr8, 32FC1 or 32FC3.
    :param header: std_msgs/Header, used as it is.
    :param used: a message that has been published; if it fits, it is filled anew: memory that is
        there already is written in half the time.
    """
    image = np.ascontiguousarray(image, _ENCODED_DTYPE[encoding])
    height, width = image.shape[:2]
    if used is not None and (used.height, used.width, used.encoding) == (height, width, encoding):
        used.header = header
        memoryview(used.data)[:] = memoryview(image).cast('B')
        return used
    message = Image(
        header=header, height=height, width=width, encoding=encoding, is_bigendian=0,
        step=image.nbytes // height)
    append_bytes(message.data, image)
    return message


def append_bytes(target: array.array, data) -> None:
    """
    Append contiguous memory to the `data` of a message, in place.

    Handed to the message's constructor, 3.5 MB take 4.8 ms in place of 0.2.

    :param data: anything with a buffer: an array, bytes.
    """
    view = memoryview(data)
    if view.nbytes:  # A view of nothing cannot be cast.
        target.frombytes(view.cast('B'))


def append_zeros(target: array.array, size: int) -> None:
    """Append so many bytes, all 0, to the empty `data` of a message, to be written in place."""
    target.append(0)
    target *= size


def _rows(message, pixel_bytes: int, rows_per_row: float = 1.0) -> np.ndarray:
    """View the data as rows of `width * pixel_bytes` bytes, the padding at their ends cut off."""
    height, width, step = message.height, message.width, message.step
    if height <= 0 or width <= 0:
        raise ImageError(f'size {width}×{height} is empty; check the publisher')
    used = width * pixel_bytes
    if step < used:
        raise ImageError(
            f"step {step} is less than a row of {width} '{message.encoding}' pixels, {used} "
            'bytes; check the publisher')
    rows = int(height * rows_per_row)
    data = np.frombuffer(message.data, np.uint8)
    if data.size != rows * step:
        raise ImageError(
            f'data has {data.size} bytes where step × rows = {step} × {rows} = {rows * step} are '
            'due; check the publisher')
    return data.reshape(rows, step)[:, :used]


def _high_bytes(rows: np.ndarray, bits: int, is_bigendian: bool) -> np.ndarray:
    """View the most significant byte of each value: a 16-bit image at 8 bits."""
    return rows if bits == 8 else rows[:, (0 if is_bigendian else 1)::2]


def _rgb_view(rows: np.ndarray, channels: int, order: slice) -> np.ndarray:
    """View H×(W·C) values as H×W×3; a grey value stands for all three."""
    image = rows.reshape(rows.shape[0], -1, channels)[..., order]
    return np.broadcast_to(image, (*image.shape[:2], 3)) if channels == 1 else image


def _float_to_uint8(message, pixel_bytes: int) -> np.ndarray:
    rows = np.ascontiguousarray(_rows(message, pixel_bytes))
    values = rows.view('>f4' if message.is_bigendian else '<f4')
    bad = np.count_nonzero(~np.isfinite(values))
    if bad:
        raise ImageError(
            f"{bad} of {values.size} values of a '{message.encoding}' image are NaN or infinite; "
            'floats must be in 0..1 (is this a depth image?)')
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(
            f"values of a '{message.encoding}' image reach from {low:g} to {high:g}; floats must "
            'be in 0..1 (is this a depth image?)')
    return (values * 255 + 0.5).astype(np.uint8)


def _convert(message) -> np.ndarray:
    """Convert a Bayer or YUV image."""
    pixel_bytes, rows_per_row, conversion = _CONVERTED[message.encoding]
    # Checked before a library sees it: cv_bridge would read past data that is too short.
    rows = _rows(message, pixel_bytes, rows_per_row)
    bridge = _cv_bridge()
    if bridge is not None:
        with suppress(Exception):  # no version of it knows all of these; OpenCV does
            return bridge.imgmsg_to_cv2(message, 'rgb8')
    try:
        bits = 16 if message.encoding.endswith('16') else 8
        values = np.ascontiguousarray(_high_bytes(rows, bits, message.is_bigendian))
        if conversion in _YUV422_CONVERSIONS:
            values = values.reshape(message.height, message.width, 2)
        return cv2.cvtColor(values, conversion)
    except cv2.error as error:
        raise ImageError(
            f"a {message.width}×{message.height} '{message.encoding}' image cannot be converted: "
            f'{error}') from error


_YUV422_CONVERSIONS = (cv2.COLOR_YUV2RGB_UYVY, cv2.COLOR_YUV2RGB_YUY2)


@functools.cache
def _cv_bridge():
    """Return a CvBridge, or None where there is none that works."""
    try:
        from cv_bridge import CvBridge
    except ModuleNotFoundError:
        return None
    except Exception as error:  # Its binary fails to load beside another major version of numpy.
        logging.getLogger(__name__).warning(
            'cv_bridge is installed but does not load (%s); using OpenCV instead', error)
        return None
    return CvBridge()
