# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What several subcommands say of the outputs to come."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mtan_perception.tasks import DEPTH

if TYPE_CHECKING:
    from mtan_perception.model_card import ModelCard

# Of the height and width that weights were trained at: from here on depth is a tenth off and more
# (docs/topics.md).
_LEAST_SHARE = 0.75


def size_remarks(card: 'ModelCard', tasks: Iterable[str], size: tuple[int, int]) -> Iterator[str]:
    """Yield what an input size (height, width) far below that of the weights does to depth."""
    is_small = any(length < _LEAST_SHARE * trained
                   for length, trained in zip(size, card.input_size, strict=True))
    # Without a training there is nothing to be worse than, and without a unit nothing too near.
    if is_small and DEPTH in tasks and card.training and card.depth_unit == 'metre':
        trained = 'x'.join(map(str, card.input_size))
        yield (f'the weights were trained at {trained}; at {size[0]}x{size[1]} depth comes out '
               'too near')
