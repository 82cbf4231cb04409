# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several subcommands read in the same way."""


def parse_size(text: str) -> tuple[int, int]:
    """Read ``288x384``, the value of ``--input-size``, as (height, width) in pixels."""
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f'--input-size: {text!r}; write HEIGHTxWIDTH, for example 288x384')
    return int(height), int(width)
