# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes that are no picture, for all who read pictures."""

import struct
import zlib


def _too_large() -> bytes:
    """Return a PNG of a few bytes whose header tells of more pixels than OpenCV takes."""
    header = b'IHDR' + struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header
            + struct.pack('>I', zlib.crc32(header)) + bytes(30))


BROKEN_PICTURES = {
    'empty': b'', 'text': b'no image', 'a cut JPEG': b'\xff\xd8\xff\xe0' + bytes(50),
    'too many pixels': _too_large()}
