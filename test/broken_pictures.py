# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes that are no picture, and a picture on its side, for all who read pictures."""

import struct
import zlib


def _too_large() -> bytes:
    """Return a PNG of a few bytes whose header tells of more pixels than OpenCV takes."""
    header = b'IHDR' + struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header
            + struct.pack('>I', zlib.crc32(header)) + bytes(30))


def on_its_side(jpeg: bytes) -> bytes:
    """Return a JPEG whose EXIF says that the top of the scene is on the right of the sensor."""
    exif = b'Exif\0\0II*\0' + struct.pack('<IHHHII', 8, 1, 0x0112, 3, 1, 8) + bytes(4)
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + jpeg[2:]


BROKEN_PICTURES = {
    'empty': b'', 'text': b'no image', 'a cut JPEG': b'\xff\xd8\xff\xe0' + bytes(50),
    'too many pixels': _too_large()}
