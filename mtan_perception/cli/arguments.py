# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several subcommands read in the same way."""


def parse_size(text: str, option: str = '--input-size') -> tuple[int, int]:
    """Read ``288x384``, the value of `option`, as (height, width) in pixels."""
    height, _, width = text.partition('x')
    if not all(length.isdecimal() and int(length) for length in (height, width)):
        raise ValueError(f'{option}: {text!r}; write HEIGHTxWIDTH, for example 288x384')
    from mtan_perception.geometry import INPUT_LIMITS  # and numpy
    size, most = (int(height), int(width)), INPUT_LIMITS[1]
    if max(size) > most:
        raise ValueError(f'{option}: {text}; height and width must be at most {most} pixels')
    return size


def parse_seeds(text: str) -> range:
    """Read ``0:100``, the value of --seeds, as a start and a count."""
    start, _, count = text.partition(':')
    if not (start.isdecimal() and count.isdecimal() and int(count)):
        raise ValueError(f'--seeds: {text!r}; write START:COUNT, at least one, for '
                         'example 0:100')
    return range(int(start), int(start) + int(count))


def parse_names(text: str | None) -> list[str] | None:
    """Read ``depth,normal``, the value of --tasks; None where it was not given."""
    return None if text is None else text.split(',')
