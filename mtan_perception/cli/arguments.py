# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several subcommands read in the same way."""


def parse_size(text: str, option: str = '--input-size') -> tuple[int, int]:
    """Read ``288x384``, the value of `option`, as (height, width) in pixels."""
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f'{option}: {text!r}; write HEIGHTxWIDTH, for example 288x384')
    return int(height), int(width)
